"""Is the continuous optimum worth anything on trials that the fit has not seen? Beside Algorithms 1 and 2.

Same information, same folds: the surface is fitted to the trials that Algorithm 1 would choose by, the optimum is
found for each grade of difficulty under a cap on the expected price, rounded to what was recorded, and scored on the
other trials.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from kinetics_jax.accuracy import pass_at_k
from kinetics_jax.cost import Combine, eflops, expected_cost
from kinetics_jax.specs import Dense, HardwareSpec, ModelSpec, parse_attention
from kinetics_jax.traces import TraceTable

from ._allocation import Allocation, resample_weights, weighted_accuracy
from ._lanes import solve_lanes, stack
from ._price import request_price
from ._recorded_lanes import Pay, RecordedLane, Strategy, recorded_lanes
from ._round import round_allocation
from ._setting import VARIABLES, Setting
from ._surface import AccuracySurface

_NUM_FOLDS = 2


@dataclass(frozen=True, kw_only=True)
class GridComparison:
    """Hold rounded optima beside Algorithm 1 or 2 at equal caps, X of them.

    Attributes:
        budgets: Caps on the expected price of a request [eFLOPs].
        accuracy: Held-out accuracy of the rounded optima.
        grid_accuracy: Of the algorithm's choices.
        grid_stderr: Standard error of `grid_accuracy` over problems.
        gain: `accuracy` less `grid_accuracy`.
        gain_stderr: Standard error of `gain`, problems paired.
        spent: What the optima paid on held-out trials, mean [eFLOPs].
        grid_spent: What the algorithm's choices paid: between the grid's points a part of the cap is left [eFLOPs].
        gain_at_spent: `accuracy` less what the algorithm reaches, by a coin between two caps, where it pays `spent`.
        gain_at_spent_stderr: Its standard error.
    """

    budgets: Float[np.ndarray, " X"]
    accuracy: Float[np.ndarray, " X"]
    grid_accuracy: Float[np.ndarray, " X"]
    grid_stderr: Float[np.ndarray, " X"]
    gain: Float[np.ndarray, " X"]
    gain_stderr: Float[np.ndarray, " X"]
    spent: Float[np.ndarray, " X"]
    grid_spent: Float[np.ndarray, " X"]
    gain_at_spent: Float[np.ndarray, " X"]
    gain_at_spent_stderr: Float[np.ndarray, " X"]


@dataclass(frozen=True, kw_only=True)
class HeldOutOptimum:
    """Hold what rounded optima are worth on held-out trials. X budgets, Q problems.

    Attributes:
        budgets: Caps on the expected price of a request [eFLOPs].
        solved: Held-out accuracy by problem, mean over folds; 0 where nothing is affordable.
        paid: Held-out price by problem, likewise [eFLOPs].
    """

    budgets: Float[np.ndarray, " X"]
    solved: Float[np.ndarray, "X Q"]
    paid: Float[np.ndarray, "X Q"]

    @property
    def accuracy(self) -> Float[np.ndarray, " X"]:
        """Mean over problems."""
        return self.solved.mean(1)

    @property
    def spent(self) -> Float[np.ndarray, " X"]:
        """Mean price over problems."""
        return self.paid.mean(1)

    def beside(self, grid: Allocation, *, num_resamples: int = 400, seed: int = 0) -> GridComparison:
        """Compare with what a grid allocation of the same problems reaches at the same caps.

        Args:
            grid: The allocation (`allocate`).
            num_resamples: Bootstrap draws of the problems, the same for both.
            seed: Seed of the draws.

        Returns:
            The comparison.

        Raises:
            ValueError: If the caps differ.
        """
        if not np.allclose(np.asarray(grid.budgets), self.budgets, rtol=1e-5):
            raise ValueError("both allocations must have the same caps. Allocate at `budgets` of this one.")
        paid, solved = (np.asarray(array, dtype=float) for array in (grid.paid, grid.solved))
        weights = resample_weights(self.solved.shape[1], num_resamples=num_resamples, seed=seed)
        drawn, drawn_grid = weights @ self.solved.T, weights @ solved.T
        at_spent = weighted_accuracy(paid, solved, weights, self.spent)
        grid_accuracy = solved.mean(1)
        return GridComparison(
            budgets=self.budgets,
            accuracy=self.accuracy,
            grid_accuracy=grid_accuracy,
            grid_stderr=drawn_grid.std(0),
            gain=self.accuracy - grid_accuracy,
            gain_stderr=(drawn - drawn_grid).std(0),
            spent=self.spent,
            grid_spent=paid.mean(1),
            gain_at_spent=self.accuracy - grid.accuracy_at(self.spent),
            gain_at_spent_stderr=(drawn - at_spent).std(0),
        )


def score_optima(
    tables: Iterable[TraceTable],
    *,
    models: Mapping[str, ModelSpec],
    hardware: HardwareSpec,
    budgets: Float[np.ndarray, " X"],
    strategy: Strategy = "long_cot",
    combine: Combine = "add",
    on_progress: Callable[[int, int], None] | None = None,
) -> HeldOutOptimum:
    """Fit on one half of the trials, allocate by gradient, round, score on the other half; and the other way round.

    Caps are on the expected price, as in Algorithms 1 and 2, where a trial that is right stops. The optimum is found
    for each grade of difficulty, model and page, by a law of that page; of these, each problem gets what the fit says
    is best for it. Rounded settings keep to the budgets and pages that were recorded and to the trials of a fold.

    Args:
        tables: As for `fit_accuracy_surface`: one method at several budgets. Dense tables help the fit as the largest
            budget, and are not chosen.
        models: Specs by name.
        hardware: The chip.
        budgets: Caps on the expected price of a request [eFLOPs].
        strategy: "long_cot" chooses lengths and budgets, "best_of_n" trials and budgets, "both" all three.
        combine: How eFLOPs join compute and memory.
        on_progress: Called after each grade of each fold with how many are done and how many there are.

    Returns:
        The scores.

    Raises:
        ValueError: If there is nothing but dense attention, or as `fit_accuracy_surface`.
    """
    tables, budgets = list(tables), np.asarray(budgets, dtype=float)
    if not any(map(_sparse_method, tables)):
        raise ValueError(
            "a KV budget can be chosen among sparse traces only; got none. Run one method at some budgets."
        )
    pay = partial(eflops, hardware=hardware, combine=combine)
    prompt_len, method = float(tables[0].prompt_len.mean()), next(filter(None, map(_sparse_method, tables)))
    prices = {
        name: request_price(models[name], method, hardware, prompt_len=prompt_len, combine=combine)
        for name in dict.fromkeys(table.model for table in tables)
    }
    folds, num_grades = [], len(set(tables[0].difficulty.tolist()))
    for fold in range(_NUM_FOLDS):
        seen, kept = ([_trials_of(table, part) for table in tables] for part in (1 - fold, fold))
        lanes = recorded_lanes(seen, models, prices, pay, strategy)

        def on_grade(num_done: int, fold: int = fold) -> None:
            if on_progress is not None:
                on_progress(fold * num_grades + num_done, _NUM_FOLDS * num_grades)

        chosen = _choose(lanes, seen[0].difficulty, budgets, on_grade)
        folds.append(_score(chosen, kept, models, pay))
    solved, paid = (np.mean(arrays, axis=0) for arrays in zip(*folds, strict=True))
    return HeldOutOptimum(budgets=budgets, solved=solved, paid=paid)


def _sparse_method(table: TraceTable) -> str:
    """Return the method of a table, "" of dense attention."""
    return table.attention.partition(":")[0].removeprefix("dense")


def _trials_of(table: TraceTable, fold: int) -> TraceTable:
    """Return every second trial, from the given one on: the folds of `tradeoff_table`."""
    arrays = {name: getattr(table, name)[:, fold::_NUM_FOLDS] for name in ("gen_len", "solved_len", "mask")}
    return replace(table, **arrays, answer=None)


@dataclass(frozen=True, kw_only=True)
class _Choice:
    """Hold what each problem gets at each budget, arrays [X, Q].

    Attributes:
        model: Its name; "" where nothing is affordable.
        setting: The whole setting, leaves [X, Q].
    """

    model: np.ndarray
    setting: Setting


def _choose(
    lanes: Sequence[RecordedLane],
    difficulty: Int[np.ndarray, " Q"],
    budgets: Float[np.ndarray, " X"],
    on_grade: Callable[[int], None],
) -> _Choice:
    """Return the best rounded optimum for each problem, grade by grade."""
    shape = (budgets.size, difficulty.size)
    best, model = np.full(shape, -np.inf), np.full(shape, "", dtype=object)
    chosen = {name: np.ones(shape) for name in VARIABLES}
    for num_done, grade in enumerate(sorted(set(difficulty.tolist())), start=1):
        rows = np.flatnonzero(difficulty == grade)
        # One program for all lanes: what differs between models, folds and grades of one size are numbers.
        laws = [lane.law_of(rows) for lane in lanes]
        prices = [lane.price_of(rows, law) for lane, law in zip(lanes, laws, strict=True)]
        boxes = [lane.bounds for lane in lanes]
        caps = jnp.asarray(budgets, jnp.zeros(()).dtype)
        # Where no optimum is affordable by the smooth price, the exact one decides about the cheapest setting.
        optima, _ = solve_lanes(stack(laws), stack(prices), stack(boxes), caps)
        for place, (lane, law) in enumerate(zip(lanes, laws, strict=True)):
            whole = round_allocation(
                jax.tree.map(lambda leaf, place=place: leaf[place], optima),
                law,
                prices[place],
                budgets,
                bounds=lane.bounds,
                bill=partial(lane.bill, rows),
                budget_lens=list(lane.prices),
            )
            coverage = np.asarray(_coverage(law, jax.tree.map(jnp.asarray, whole.setting)), dtype=float)
            better = np.zeros(shape, dtype=bool)
            better[:, rows] = np.where(np.isfinite(whole.accuracy)[:, None], coverage, -np.inf) > best[:, rows]
            best[:, rows] = np.where(better[:, rows], coverage, best[:, rows])
            model[better] = lane.model
            for variable, values in chosen.items():
                chosen[variable] = np.where(better, np.asarray(getattr(whole.setting, variable))[:, None], values)
        on_grade(num_done)
    return _Choice(model=model, setting=Setting(**chosen))


@jax.jit
def _coverage(surface: AccuracySurface, setting: Setting) -> Any:
    """Return the chance that each problem is solved at settings [X]; [X, Q]."""
    return jax.vmap(surface.coverage)(setting)


def _score(
    chosen: _Choice, tables: Sequence[TraceTable], models: Mapping[str, ModelSpec], pay: Pay
) -> tuple[Float[np.ndarray, "X Q"], Float[np.ndarray, "X Q"]]:
    """Return Pass@N within the limit and the expected price of what was chosen, on the trials of the tables."""
    limit, num_trials = chosen.setting.gen_len, chosen.setting.num_trials
    solved, paid = np.zeros(limit.shape), np.zeros(limit.shape)
    for table in tables:
        attention = parse_attention(table.attention)
        if isinstance(attention, Dense):
            continue
        is_here = (chosen.model == table.model) & (chosen.setting.budget_len == attention.budget_len)
        is_here &= chosen.setting.page_len == getattr(attention, "page_len", 1)
        if not is_here.any():
            continue
        right = (table.mask & (table.solved_len <= limit[..., None])).sum(-1)
        total = np.broadcast_to(table.mask.sum(1), right.shape)
        count = np.where(is_here, num_trials, 1.0)
        cost = expected_cost(
            models[table.model],
            attention,
            prompt_len=table.prompt_len[None],
            gen_lens=np.minimum(table.gen_len, limit[..., None]),
            mask=np.broadcast_to(table.mask, (*right.shape, table.num_trials)),
            num_trials=count,
        )
        solved[is_here] = np.asarray(pass_at_k(right, total, count))[is_here]
        paid[is_here] = np.asarray(pay(cost))[is_here]
    return solved, paid
