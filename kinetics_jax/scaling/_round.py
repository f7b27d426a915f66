"""From a point between the grid's points to one that an engine runs: whole tokens, trials and pages, within the cap."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._kkt import Bounds
from ._optimum import Optimum
from ._setting import VARIABLES, Price, Setting, Surface

_NUM_HALVINGS = 32


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Rounded:
    """Hold the best whole setting near each optimum, leaves [X].

    Attributes:
        setting: Whole tokens, trials and pages.
        accuracy: Accuracy of the surface there; NaN where no neighbour fits the budget.
        cost: Its price [FLOP].
        loss: What rounding costs: accuracy of the optimum less `accuracy`.
    """

    setting: Setting
    accuracy: Any
    cost: Any
    loss: Any


def round_allocation(
    optimum: Optimum,
    surface: Surface,
    price: Price,
    budget: Any,
    *,
    bounds: Bounds,
    bill: Callable[[Setting], np.ndarray] | None = None,
    num_trials: Sequence[int] | None = None,
    budget_lens: Sequence[int] | None = None,
    page_lens: Sequence[int] | None = None,
) -> Rounded:
    """Find the best whole setting beside each optimum that the budget pays for, and what rounding costs.

    Trials go to the whole numbers (or the allowed ones) next to the optimum, two on either side; the page to powers of
    two; the budget to whole pages. For each such combination the length is the largest whole one that the budget still
    pays for, since accuracy rises with it, and so what rounding down leaves over is spent on tokens.

    Args:
        optimum: Optima of one model at budgets [X].
        surface: The surface they are optima of.
        price: The price they were found with.
        budget: The budgets, [X] [FLOP].
        bounds: The bounds they were found in.
        bill: Exact price of whole settings (`request_bill`), a function of arrays; None = `price` itself.
        num_trials: Numbers of trials to choose from; None = all whole ones.
        budget_lens: Budgets to choose from [tokens]; None = all whole numbers of pages.
        page_lens: Pages to choose from [tokens]; None = powers of two where the page is free.

    Returns:
        The rounded settings.

    References:
        PAPER.md section 3 (the paper's grid of budgets, trials and lengths).
    """
    budgets = np.atleast_1d(np.asarray(budget, dtype=float))
    chosen = {name: np.atleast_1d(np.asarray(getattr(optimum.setting, name), dtype=float)) for name in VARIABLES}
    allowed = {"num_trials": num_trials, "budget_len": budget_lens, "page_len": page_lens}
    rows = [
        _neighbours({name: float(chosen[name][x]) for name in VARIABLES}, bounds, allowed) for x in range(budgets.size)
    ]
    widest = max(map(len, rows))
    # [X, K, 3]; a row is filled up with its first combination.
    fixed = np.array([row + row[:1] * (widest - len(row)) for row in rows])
    pay = bill or partial(values_of, price)

    def at(gen_len: np.ndarray) -> Setting:
        trials, budget_len, page_len = np.moveaxis(fixed, -1, 0)
        return Setting(gen_len=gen_len, num_trials=trials, budget_len=budget_len, page_len=page_len)

    low, high = (np.full(fixed.shape[:2], round_end) for round_end in _length_ends(bounds))
    is_affordable = pay(at(low)) <= budgets[:, None]
    for _ in range(_NUM_HALVINGS):
        middle = np.ceil((low + high) / 2)
        fits = pay(at(middle)) <= budgets[:, None]
        low, high = np.where(fits, middle, low), np.where(fits, high, np.maximum(middle - 1, low))
        if (low == high).all():
            break
    accuracy = values_of(surface, at(low))
    best = np.argmax(np.where(is_affordable, accuracy, -np.inf), axis=1)[:, None]
    cost, is_some = pay(at(low)), is_affordable.any(1)

    def taken(array: np.ndarray) -> np.ndarray:
        return np.where(is_some, np.take_along_axis(array, best, axis=1)[:, 0], np.nan)

    return Rounded(
        setting=jax.tree.map(taken, at(low)),
        accuracy=taken(accuracy),
        cost=taken(cost),
        loss=np.atleast_1d(np.asarray(optimum.accuracy, dtype=float)) - taken(accuracy),
    )


def values_of(law: Any, setting: Setting) -> np.ndarray:
    """Return accuracies of a surface or prices of a price at settings [X, K]; laws of one kind share a program."""
    return np.asarray(_evaluate(law, jax.tree.map(jnp.asarray, setting)), dtype=float)


@jax.jit
def _evaluate(law: Any, setting: Setting) -> Any:
    return jax.vmap(jax.vmap(getattr(law, "accuracy", law)))(setting)


def _length_ends(bounds: Bounds) -> tuple[float, float]:
    low, high = bounds.ends("gen_len")
    return float(np.ceil(low)), float(max(np.floor(high), np.ceil(low)))


def _neighbours(
    at: dict[str, float], bounds: Bounds, allowed: dict[str, Sequence[int] | None]
) -> list[tuple[float, float, float]]:
    """Return the combinations of whole trials, budget and page beside a point."""
    trials = _beside(at["num_trials"], allowed["num_trials"], *bounds.ends("num_trials"), step=1.0)
    pages = [at["page_len"]]
    if "page_len" in bounds.free:
        powers = allowed["page_len"] or [2**power for power in range(11)]
        pages = _beside(at["page_len"], powers, *bounds.ends("page_len"), step=1.0)
    combinations = []
    for page in pages:
        low, high = bounds.ends("budget_len")
        budgets = [at["budget_len"]]
        if "budget_len" in bounds.free:
            top = np.inf if high is None else high
            budgets = _beside(at["budget_len"], allowed["budget_len"], max(low, page), top, step=page)
        combinations += list(product(trials, budgets, [page]))
    return [(num_trials, budget_len, page) for num_trials, budget_len, page in combinations]


def _beside(value: float, allowed: Sequence[int] | None, low: float, high: float, *, step: float) -> list[float]:
    """Return up to two allowed numbers on either side, inside the bounds; multiples of `step` if all are allowed."""
    if allowed is None:
        first = np.floor(value / step + 1e-9)
        numbers = step * (first + np.arange(-1, 3))
    else:
        numbers = np.sort(np.asarray(allowed, dtype=float))
    numbers = numbers[(numbers >= low - 1e-9) & (numbers <= high + 1e-9)]
    if numbers.size == 0:  # nothing whole between the bounds
        return [float(np.clip(step * np.round(value / step), low, high))]
    if allowed is not None:
        above = int(np.searchsorted(numbers, value))
        numbers = numbers[max(0, above - 2) : above + 2]
    return numbers.tolist()
