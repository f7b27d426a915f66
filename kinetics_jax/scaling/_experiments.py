"""The continuous optimum beside the grid's, and how both grow with the budget: the paper's first question."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ._allocation import percentiles
from ._kkt import Bounds
from ._lanes import solve_lanes, stack
from ._optimum import require_affordable
from ._power_law import PowerLaw, fit_power_law
from ._price import RequestPrice
from ._round import values_of
from ._setting import Price, Setting, Surface

Quantity = Literal["gen_len", "num_trials", "num_tokens", "budget_len"]


@dataclass(frozen=True, kw_only=True)
class GridOptimum:
    """Hold the best of a grid of settings at each budget: Algorithm 1 on a surface. X budgets.

    Attributes:
        setting: The best setting, leaves [X]; NaN where none is affordable.
        accuracy: Its accuracy; 0 likewise.
        cost: Its price; 0 likewise [FLOP].
    """

    setting: Setting
    accuracy: Float[np.ndarray, " X"]
    cost: Float[np.ndarray, " X"]


def grid_optimum(
    surface: Surface,
    price: Price,
    budget: Float[np.ndarray, " X"],
    *,
    gen_lens: Sequence[int | float],
    num_trials: Sequence[int | float],
    budget_lens: Sequence[int | float],
    page_lens: Sequence[int | float] = (1,),
) -> GridOptimum:
    """Return the best of all combinations that each budget pays for, by the same surface and price as the optimum.

    Args:
        surface: As for `optimal_allocation`.
        price: As for `optimal_allocation`.
        budget: Budgets [FLOP].
        gen_lens: Lengths to combine [tokens].
        num_trials: Trials to combine.
        budget_lens: KV budgets to combine [tokens].
        page_lens: Pages to combine [tokens].

    Returns:
        The best setting at each budget; of equally good ones the cheapest.

    Raises:
        ValueError: If one of the lists is empty.

    Example:
        >>> from kinetics_jax.specs import HARDWARE, MODELS
        >>> from kinetics_jax.scaling import AccuracySurface, request_price
        >>> law = AccuracySurface(log_rate=-1.0, difficulty=jnp.zeros(2), length_slope=1.0, keep_slope=1.0,
        ...     keep_log_len=3.0, loss_slope=1.0, loss_log_len=2.0, page_slope=0.0, ceiling=0.9,
        ...     weights=jnp.array([0.5, 0.5]))
        >>> price = request_price(MODELS["Qwen3-0.6B"], "topk", HARDWARE["H100-SXM"], prompt_len=300.0)
        >>> best = grid_optimum(law, price, np.array([1e10, 1e13]), gen_lens=[64, 256], num_trials=[1, 4],
        ...     budget_lens=[32, 128])
        >>> best.setting.gen_len.tolist(), best.setting.num_trials.tolist()
        ([nan, 256.0], [nan, 4.0])

    References:
        PAPER.md section 3 (Algorithms 1 and 2).
    """
    if not all(map(len, (gen_lens, num_trials, budget_lens, page_lens))):
        raise ValueError("a grid needs a number of each: lengths, trials, KV budgets and pages; got an empty list.")
    axes = np.meshgrid(gen_lens, num_trials, budget_lens, page_lens, indexing="ij")
    gen_len, trials, budget_len, page_len = (np.asarray(axis, dtype=float).ravel()[None] for axis in axes)
    grid = Setting(gen_len=gen_len, num_trials=trials, budget_len=budget_len, page_len=page_len)
    accuracy, cost = (values_of(law, grid)[0] for law in (surface, price))
    is_paid = cost[None] <= np.asarray(budget, dtype=float)[:, None]
    # Sorted by price, so that the first of equals is the cheapest.
    order = np.argsort(cost, kind="stable")
    best = order[np.argmax(np.where(is_paid[:, order], accuracy[order], -np.inf), axis=1)]
    is_some = is_paid.any(1)
    return GridOptimum(
        setting=jax.tree.map(lambda leaf: np.where(is_some, leaf[0, best], np.nan), grid),
        accuracy=np.where(is_some, accuracy[best], 0.0),
        cost=np.where(is_some, cost[best], 0.0),
    )


def allocation_laws(
    surface: Surface,
    resamples: Surface,
    price: Price,
    budget: Float[np.ndarray, " X"],
    *,
    bounds: Bounds,
    quantities: Sequence[Quantity] = ("num_tokens", "budget_len"),
    level: float = 0.9,
) -> dict[Quantity, PowerLaw]:
    """Fit power laws to how the continuous optimum grows with the budget, with intervals from refitted surfaces.

    Budgets that are not spent in full (everything at its upper bound) are left out. Each resample is solved at every
    budget and gets a line of its own; the interval is the percentiles of their slopes. If the price is `averaged`,
    each resample stops by its own law.

    Args:
        surface: Law of one model.
        resamples: Laws of the same model with a first axis S (`bootstrap_surface`).
        price: As for `optimal_allocation`.
        budget: Budgets, each above the cheapest setting's price [FLOP].
        bounds: As for `optimal_allocation`.
        quantities: What grows.
        level: Coverage of the interval.

    Returns:
        A law a quantity, against the budget.

    Raises:
        ValueError: If fewer than two budgets are spent in full, or as `optimal_allocation`.

    References:
        PAPER.md section 6 (1.74x tokens and 1.18x budget per doubling of cost).
    """
    require_affordable(surface, price, budget, bounds)
    num_resamples = len(jax.tree.leaves(resamples)[0])
    laws = [surface, *(jax.tree.map(lambda leaf, s=s: leaf[s], resamples) for s in range(num_resamples))]
    prices: list[Price] = [price] * len(laws)
    if isinstance(price, RequestPrice) and price.lengths is not None:
        prices = [price.averaged(law) for law in laws]
    budgets = jnp.asarray(budget, jnp.zeros(()).dtype)
    optima, is_met = solve_lanes(stack(laws), stack(prices), stack([bounds] * len(laws)), budgets)
    is_spent = np.asarray(is_met).all(0) & (np.asarray(optima.cost[0]) > 0.999 * np.asarray(budget))
    if is_spent.sum() < 2:
        raise ValueError(f"a law needs two budgets that are spent in full; got {is_spent.sum()}. Lower them.")
    spent = np.asarray(budget, dtype=float)[is_spent]
    found: dict[Quantity, PowerLaw] = {}
    for name in quantities:
        chosen = np.asarray(getattr(optima.setting, name), dtype=float)[:, is_spent]
        slopes = np.polyfit(np.log(spent), np.log(chosen).T, 1)[0][1:]
        low, high = percentiles(slopes, level=level, num_problems=len(slopes))
        found[name] = replace(
            fit_power_law(spent, chosen[0], level=level),
            exponent_stderr=float(slopes.std()),
            exponent_low=float(low),
            exponent_high=float(high),
        )
    return found
