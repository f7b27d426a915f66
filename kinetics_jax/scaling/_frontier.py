"""The exact accuracy-cost staircase: no smoothing before the maximum, no point that another one dominates."""

import numpy as np
from jaxtyping import Array, Float, Int


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
    return stair_cost[np.searchsorted(np.asarray(accuracy)[stair], np.asarray(targets), side="left")]
