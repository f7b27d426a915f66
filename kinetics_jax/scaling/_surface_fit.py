"""How good is a fitted surface? Every grid point against the measurement, and left-out points against baselines."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from kinetics_jax.accuracy import accuracy_interval
from kinetics_jax.traces import TraceTable

from ._fit_surface import fit_outcomes, require_many_points
from ._outcomes import Outcomes, count_outcomes
from ._setting import Setting
from ._surface import AccuracySurface

_CAUTION = 1e-4  # a chance of 0 or 1 that meets the other outcome once would lose by infinity


@dataclass(frozen=True, kw_only=True)
class GridPoint:
    """Hold measured and fitted accuracy of single trials at one model, attention and limit.

    Attributes:
        model: Model name.
        attention: Text form of the attention spec.
        gen_len: Length limit [tokens].
        measured: Share of right trials.
        low: Lower end of its 90% interval over problems (`accuracy.accuracy_interval`).
        high: Upper end.
        fitted: What the surface says, mean over problems.
    """

    model: str
    attention: str
    gen_len: float
    measured: float
    low: float
    high: float
    fitted: float


def grid_points(
    surface: AccuracySurface, tables: Iterable[TraceTable], *, limits: Sequence[float] | None = None
) -> tuple[GridPoint, ...]:
    """Return every grid point of the tables beside what a surface says of it.

    Args:
        surface: The law, of all models of the tables.
        tables: As for `fit_accuracy_surface`.
        limits: Limits to look at; None = half octaves.

    Returns:
        Points by model, attention and limit.
    """
    outcomes = count_outcomes(tables, limits)
    right, chance = _right(outcomes), predict(surface, outcomes)
    places = [(m, c) for m, c in np.argwhere(outcomes.num_trials.sum(-1) > 0).tolist()]
    counts = np.stack([np.moveaxis(right[place], -1, 0) for place in map(tuple, places)])  # [places, I, Q]
    totals = np.stack([np.broadcast_to(outcomes.num_trials[place], counts.shape[1:]) for place in map(tuple, places)])
    interval = accuracy_interval(counts, totals, level=0.9)
    low, high = np.asarray(interval.low), np.asarray(interval.high)
    return tuple(
        GridPoint(
            model=outcomes.models[m],
            attention=outcomes.attentions[c],
            gen_len=limit,
            measured=float((counts[place, i] / totals[place, i]).mean()),
            low=float(low[place, i]),
            high=float(high[place, i]),
            fitted=float(chance[m, c, :, i].mean()),
        )
        for place, (m, c) in enumerate(places)
        for i, limit in enumerate(outcomes.limits.tolist())
    )


@dataclass(frozen=True, kw_only=True)
class SurfaceScore:
    """Hold how well left-out grid points are told, in mean log likelihood of a trial [nats]; higher is better.

    Attributes:
        surface: Of the surface fitted without them.
        constant: Of one number: the mean of all points that were kept.
        grid_mean: Of means over problems, interpolated between the kept points (in log budget, then log length).
        problem_mean: Of each problem's own shares, interpolated likewise: what the trials say without a law.
        num_points: Grid points left out.
        predicted: Mean prediction in each tenth of the predictions (calibration).
        measured: Share of right trials in each.
        num_trials: Trials in each.
    """

    surface: float
    constant: float
    grid_mean: float
    problem_mean: float
    num_points: int
    predicted: Float[np.ndarray, " T"]
    measured: Float[np.ndarray, " T"]
    num_trials: Float[np.ndarray, " T"]


def score_left_out(
    tables: Iterable[TraceTable], *, limits: Sequence[float] | None = None, num_steps: int = 150
) -> SurfaceScore:
    """Leave out each inner KV budget in turn, and every second limit of all; fit the rest, score what was left out.

    A left-out point is a budget that the fit has not seen, at a limit that it has not seen, on every model and problem.
    All fits have one shape: a left-out budget keeps its column and loses its trials.

    Args:
        tables: As for `fit_accuracy_surface`, with three budgets or more (dense counts as one).
        limits: All limits; None = half octaves.
        num_steps: As in `fit_accuracy_surface`.

    Returns:
        The scores over all left-out points.

    Raises:
        ValueError: If there are fewer than three budgets, or as `fit_accuracy_surface`.
    """
    tables = list(tables)
    whole = count_outcomes(tables, limits)
    kept = count_outcomes(tables, whole.limits[(whole.limits.size - 1) % 2 :: 2].tolist())
    require_many_points(kept)
    inner = _inner_columns(whole)
    if not inner:
        raise ValueError(
            f"interpolation needs three KV budgets of one page or more; got {', '.join(whole.attentions)}. Run more."
        )
    totals, chances, rights = np.zeros(4), [], []
    unseen = np.flatnonzero(~np.isin(whole.limits, kept.limits))
    for column in inner:
        others = np.arange(len(whole.attentions)) != column
        part = replace(
            kept, solved=kept.solved * others[None, :, None, None], unsolved=kept.unsolved * others[None, :, None]
        )
        surface = fit_outcomes(part, num_steps=num_steps)
        right = _right(whole)[:, column][..., unseen]
        total = whole.num_trials[:, column][..., None]
        guesses = (
            predict(surface, whole)[:, column][..., unseen],
            *(np.broadcast_to(guess, right.shape) for guess in _baselines(whole, part, column, unseen)),
        )
        totals += [_likelihood(guess, right, total) for guess in guesses]
        chances.append(guesses[0].ravel())
        rights.append(np.stack([right.ravel(), np.broadcast_to(total, right.shape).ravel()]))
    chance, (right, total) = np.concatenate(chances), np.concatenate(rights, axis=1)
    tenth = np.minimum((chance * 10).astype(int), 9)
    weight = [np.bincount(tenth, weights=values, minlength=10) for values in (total, chance * total, right)]
    scores = (totals / total.sum()).tolist()
    return SurfaceScore(
        surface=scores[0],
        constant=scores[1],
        grid_mean=scores[2],
        problem_mean=scores[3],
        num_points=len(inner) * len(whole.models) * unseen.size,
        predicted=weight[1] / np.maximum(weight[0], 1),
        measured=weight[2] / np.maximum(weight[0], 1),
        num_trials=weight[0],
    )


def predict(surface: AccuracySurface, outcomes: Outcomes) -> Float[np.ndarray, "M C Q I"]:
    """Return the chance that one trial is right within each limit."""
    dtype = jnp.zeros(()).dtype
    shared = [jnp.asarray(array, dtype) for array in (outcomes.budget_len, outcomes.page_len, outcomes.limits)]
    leaves = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), surface)
    return np.asarray(_predict(leaves, *shared))


@jax.jit
def _predict(surface: AccuracySurface, budget: Any, page: Any, limits: Any) -> Any:
    def at(law: AccuracySurface, budget_len: Any, page_len: Any, limit: Any) -> Any:
        return law.solved(Setting(gen_len=limit, num_trials=1.0, budget_len=budget_len, page_len=page_len))

    over_limits = jax.vmap(at, (None, None, None, 0), out_axes=-1)
    over_budgets = jax.vmap(over_limits, (None, 0, 0, None))
    return jax.vmap(over_budgets, (0, None, None, None))(surface, budget, page, limits)


def _right(outcomes: Outcomes) -> np.ndarray:
    """Return how many trials are right within each limit, [M, C, Q, I]."""
    return np.cumsum(outcomes.solved, axis=-1)


def _inner_columns(outcomes: Outcomes) -> list[int]:
    """Return the attention specs that have a smaller and a larger budget of their own page (dense has every page)."""
    whole = outcomes.budget_len.max()
    inner = []
    for column, (budget, page) in enumerate(zip(outcomes.budget_len, outcomes.page_len, strict=True)):
        peers = outcomes.budget_len[(outcomes.page_len == page) | (outcomes.budget_len == whole)]
        if peers.min() < budget < peers.max():
            inner.append(column)
    return inner


def _baselines(whole: Outcomes, part: Outcomes, column: int, unseen: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return three guesses at the left-out points of a column, each to be broadcast to [M, Q, unseen]."""
    right, total = _right(part), part.num_trials
    constant = right.sum() / (total.sum() * part.limits.size)
    is_peer = (part.page_len == part.page_len[column]) | (part.budget_len == part.budget_len.max())
    is_peer[column] = False
    log_budgets, target = np.log(part.budget_len), np.log(part.budget_len[column])
    below = max(np.flatnonzero(is_peer & (log_budgets < target)), key=lambda c: log_budgets[c])
    above = min(np.flatnonzero(is_peer & (log_budgets > target)), key=lambda c: log_budgets[c])
    share = (target - log_budgets[below]) / (log_budgets[above] - log_budgets[below])

    def between(chance: np.ndarray) -> np.ndarray:
        at_budget = (1 - share) * chance[:, below] + share * chance[:, above]
        place = np.log(whole.limits[unseen])
        return np.apply_along_axis(lambda row: np.interp(place, np.log(part.limits), row), -1, at_budget)

    means = right.sum(2, keepdims=True) / np.maximum(total.sum(2)[..., None, None], 1)
    shares = (right + 0.5) / (total[..., None] + 1.0)
    return np.full((1, 1, 1), constant), between(means), between(shares)


def _likelihood(chance: np.ndarray, right: np.ndarray, total: np.ndarray) -> float:
    chance = np.clip(chance, _CAUTION, 1 - _CAUTION)
    return float((right * np.log(chance) + (total - right) * np.log1p(-chance)).sum())
