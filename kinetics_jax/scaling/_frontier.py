"""The exact accuracy-cost staircase: no smoothing before the maximum, no point that another one dominates."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Array, Float, Int

from ._allocation import Allocation, percentiles, resample_weights


def pareto_frontier(
    cost: Float[Array | np.ndarray, " C"], accuracy: Float[Array | np.ndarray, " C"]
) -> Int[np.ndarray, " S"]:
    """Return the indices of the points that no other point dominates, by rising cost.

    A point is dominated when another costs no more and is at least as accurate, and is better in one of the two.
    Of equal points the first stands. Accuracy rises strictly along the result.

    Args:
        cost: Price of each point.
        accuracy: Accuracy of each point.

    Returns:
        Indices into the points, by rising cost.

    Raises:
        ValueError: If a number is NaN or the lengths differ.

    Example:
        >>> pareto_frontier(np.array([3.0, 1.0, 2.0, 2.0]), np.array([0.9, 0.5, 0.4, 0.7])).tolist()
        [1, 3, 0]
    """
    costs, accuracies = np.asarray(cost), np.asarray(accuracy)
    if costs.shape != accuracies.shape:
        raise ValueError(f"every point needs a cost and an accuracy; got {costs.shape} and {accuracies.shape}")
    if np.isnan(costs).any() or np.isnan(accuracies).any():
        raise ValueError("cost and accuracy must be numbers; got NaN. Drop the points that were not measured.")
    if not costs.size:
        return np.empty(0, dtype=np.intp)
    order = np.lexsort((-accuracies, costs))  # stable: equal points keep their order
    best_before = np.concatenate([[-np.inf], np.maximum.accumulate(accuracies[order])[:-1]])
    return order[accuracies[order] > best_before]


def cost_to_reach(
    cost: Float[Array | np.ndarray, " C"],
    accuracy: Float[Array | np.ndarray, " C"],
    targets: Float[Array | np.ndarray, " A"],
) -> Float[np.ndarray, " A"]:
    """Return the lowest cost of a point at least as accurate as each target, inf where none is.

    An accuracy that misses the target by less than 1e-6 reaches it: single precision holds no 0.7.

    Args:
        cost: Price of each point.
        accuracy: Accuracy of each point.
        targets: Accuracies to reach.

    Returns:
        Costs, in the unit of `cost`.

    Example:
        >>> cost_to_reach(np.array([1.0, 2.0]), np.array([0.5, 0.7]), np.array([0.5, 0.6, 0.8])).tolist()
        [1.0, 2.0, inf]
    """
    stair = pareto_frontier(cost, accuracy)
    stair_cost = np.append(np.asarray(cost, dtype=np.float64)[stair], np.inf)
    wanted = np.asarray(targets, dtype=np.float64) - 1e-6
    return stair_cost[np.searchsorted(np.asarray(accuracy, dtype=np.float64)[stair], wanted, side="left")]


@dataclass(frozen=True, kw_only=True)
class FrontierBand:
    """Hold a staircase and its confidence band.

    Attributes:
        spending: Mean spendings, rising [in the price of the curves].
        accuracy: Best accuracy of a point that spends no more.
        low: Lower ends of the interval at each spending; never falls. NaN with one problem.
        high: Upper ends; never falls.
    """

    spending: Float[np.ndarray, " S"]
    accuracy: Float[np.ndarray, " S"]
    low: Float[np.ndarray, " S"]
    high: Float[np.ndarray, " S"]


def frontier_band(
    frontiers: Allocation | Mapping[str, Allocation],
    spending: Float[np.ndarray, " S"] | None = None,
    *,
    level: float = 0.9,
    num_resamples: int = 1000,
    seed: int = 0,
) -> FrontierBand:
    """Return the staircase of cross-fitted curves with a bootstrap band over problems.

    Each resample of the problems redraws what every point spends and solves, and builds its own staircase; the band
    is their percentiles at each spending, so that it covers the place of a step as well as its height. It is moved
    so that the resamples centre on the estimate: the highest of many points is higher in a resample, too.

    The staircase still takes a maximum over noisy points. Over the budgets of one curve that is little, since they
    share their choices; over several models it flatters like any choice on the scored sample. For an envelope without
    that, `allocate` over all models at once and pass the one curve.

    Args:
        frontiers: One curve, or several over the same problems, whose points make one staircase.
        spending: Where to state the band, rising; None is every step of the staircase.
        level: Share of resamples inside the band, at each spending on its own.
        num_resamples: Bootstrap draws.
        seed: Seed of the bootstrap.

    Returns:
        The staircase and its band.

    Raises:
        ValueError: If the curves have different prices or numbers of problems, or nothing was ever spent.
    """
    curves = [frontiers] if isinstance(frontiers, Allocation) else list(frontiers.values())
    shapes = {(curve.price, curve.solved.shape[1]) for curve in curves}
    if len(shapes) != 1:
        raise ValueError(f"the curves of one staircase need one price and the same problems; got {sorted(shapes)}")
    paid, solved = (
        np.concatenate([np.asarray(getattr(curve, name), dtype=np.float64) for curve in curves])
        for name in ("paid", "solved")
    )
    spent, accuracy = paid.mean(1), solved.mean(1)
    if not (spent > 0).any():
        raise ValueError("no budget of these curves buys anything. Raise the budgets (`Tradeoff.budget_grid`).")
    places = spent[pareto_frontier(spent, accuracy)] if spending is None else spending
    weights = resample_weights(paid.shape[1], num_resamples=num_resamples, seed=seed)
    pairs = zip(weights @ paid.T, weights @ solved.T, strict=True)
    stairs = np.stack([_stair_at(*pair, places) for pair in pairs])
    stair = _stair_at(spent, accuracy, places)
    ends = np.stack(percentiles(stairs, level=level, num_problems=paid.shape[1])) + (stair - stairs.mean(0))
    # On a step itself half of the resamples step later: without this the moved band could miss its own staircase.
    ends = np.stack([np.minimum(ends[0], stair), np.maximum(ends[1], stair)])
    low, high = np.maximum.accumulate(np.clip(ends, 0.0, 1.0), axis=1)
    return FrontierBand(spending=places, accuracy=stair, low=low, high=high)


def _stair_at(spent: np.ndarray, accuracy: np.ndarray, spending: np.ndarray) -> np.ndarray:
    """Return the best accuracy among the points that spend no more, 0 where none does."""
    order = np.argsort(spent)
    best = np.maximum.accumulate(np.append(0.0, accuracy[order]))
    return best[np.searchsorted(spent[order], spending, side="right")]
