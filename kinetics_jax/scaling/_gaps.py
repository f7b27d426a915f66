"""How much one curve is above another: points gained at equal spending, times cheaper at equal accuracy."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from ._allocation import Allocation, percentiles, resample_weights, weighted_accuracy
from ._frontier import cost_to_reach


@dataclass(frozen=True, kw_only=True)
class Gap:
    """Describe the widest vertical and horizontal distance between two curves.

    Attributes:
        gain: Largest accuracy gained at equal held-out spending (0 to 1; 0 or less if the curve is never above).
        gain_held_out: The same without the luck of the place: on each fifth of the problems, the gain at the
            spending that the other problems choose; their mean.
        gain_low: Lower end of the paired bootstrap interval of `gain`, 90% by default; NaN with one problem.
        gain_high: Upper end.
        gain_spent: Mean spending at which it is gained [in the price of the curves].
        base_accuracy: Accuracy of the base at that spending.
        cost_ratio: Largest factor by which the base is dearer at equal accuracy; NaN if none is shared.
        ratio_accuracy: Accuracy at which it is cheaper.
        base_cost: What the base spends for it.
        other_cost: What the other curve spends for it.
    """

    gain: float
    gain_held_out: float
    gain_low: float
    gain_high: float
    gain_spent: float
    base_accuracy: float
    cost_ratio: float
    ratio_accuracy: float
    base_cost: float
    other_cost: float


def widest_gap(
    base: Allocation,
    other: Allocation,
    *,
    min_accuracy: float = 0.1,
    level: float = 0.9,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Gap:
    """Return where `other` gains most over `base` (dense, say), on cross-fitted curves at equal held-out spending.

    The place is the maximum over the curve, so it leans to the lucky side of the noise: read the gain with its
    interval, which pairs the problems. Where nothing is gained (seven copies of dense attention, one against six, 80
    problems, 16 trials) the widest place still shows 2.5 points on average, `gain_held_out` 0.4.

    Args:
        base: The curve to beat.
        other: The curve that may beat it, over the same problems.
        min_accuracy: Lowest accuracy at which costs are compared; below it a few lucky trials make the ratio.
        level: Share of bootstrap resamples inside the interval of the gain.
        num_resamples: Bootstrap draws.
        seed: Seed of the resampling.

    Returns:
        The gap.

    Raises:
        ValueError: If the curves have different prices or numbers of problems, or nothing was ever affordable.

    References:
        PAPER.md sections 5 (Figs. 8, 14, 21, 22) and 6 (sparse over dense).
    """
    _require_paired(base, other)
    places = np.unique(np.concatenate([np.asarray(base.spent), np.asarray(other.spent)]))
    places = places[places > 0]
    if not places.size:
        raise ValueError("no cap of either curve buys anything. Raise the caps (`Tradeoff.budget_grid`).")
    gains = other.accuracy_at(places) - base.accuracy_at(places)
    place = int(np.argmax(gains))
    at_place = places[place : place + 1]
    (low,), (high,) = _gain_interval(base, other, at_place, level=level, num_resamples=num_resamples, seed=seed)

    targets = np.unique(np.asarray(base.accuracy)[np.asarray(base.accuracy) >= min_accuracy])
    base_cost = cost_to_reach(np.asarray(base.spent), np.asarray(base.accuracy), targets)
    other_cost = cost_to_reach(np.asarray(other.spent), np.asarray(other.accuracy), targets)
    ratios = np.where(np.isfinite(other_cost), base_cost / other_cost, 0.0)
    shared = bool(ratios.size) and bool(ratios.max() > 0)
    best = int(np.argmax(ratios)) if shared else 0
    return Gap(
        gain=float(gains[place]),
        gain_held_out=_held_out_gain(base, other, places),
        gain_low=float(low),
        gain_high=float(high),
        gain_spent=float(places[place]),
        base_accuracy=float(base.accuracy_at(at_place)[0]),
        cost_ratio=float(ratios[best]) if shared else float("nan"),
        ratio_accuracy=float(targets[best]) if shared else float("nan"),
        base_cost=float(base_cost[best]) if shared else float("nan"),
        other_cost=float(other_cost[best]) if shared else float("nan"),
    )


@dataclass(frozen=True, kw_only=True)
class GainCurve:
    """Describe what one curve gains over another at given spendings.

    Attributes:
        spending: Mean spendings [in the price of the curves].
        gain: Accuracy gained at each.
        low: Lower ends of the paired bootstrap interval, each place on its own; NaN with one problem.
        high: Upper ends.
    """

    spending: Float[np.ndarray, " S"]
    gain: Float[np.ndarray, " S"]
    low: Float[np.ndarray, " S"]
    high: Float[np.ndarray, " S"]


def gain_at(
    base: Allocation,
    other: Allocation,
    spending: Float[np.ndarray, " S"],
    *,
    level: float = 0.9,
    num_resamples: int = 1000,
    seed: int = 0,
) -> GainCurve:
    """Return what `other` gains over `base` at equal held-out spending, at places that the data did not choose.

    Args:
        base: The curve to beat.
        other: The curve that may beat it, over the same problems.
        spending: Mean spendings of a request [in the price of the curves], set beforehand.
        level: Share of bootstrap resamples inside the interval.
        num_resamples: Bootstrap draws.
        seed: Seed of the resampling.

    Returns:
        Gain and paired interval at each spending.

    Raises:
        ValueError: If the curves have different prices or numbers of problems.
    """
    _require_paired(base, other)
    low, high = _gain_interval(base, other, spending, level=level, num_resamples=num_resamples, seed=seed)
    gain = other.accuracy_at(spending) - base.accuracy_at(spending)
    return GainCurve(spending=spending, gain=gain, low=low, high=high)


def _require_paired(base: Allocation, other: Allocation) -> None:
    if base.price != other.price:
        raise ValueError(f"both curves must be in one price; got {base.price} and {other.price}")
    if base.solved.shape[1] != other.solved.shape[1]:
        raise ValueError(f"both curves must be over the same problems; got {base.solved.shape}, {other.solved.shape}")


def _gain_interval(
    base: Allocation, other: Allocation, places: np.ndarray, *, level: float, num_resamples: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Bootstrap the gain at each spending, two of [S]: each resample of the problems redraws both whole curves."""
    weights = resample_weights(base.solved.shape[1], num_resamples=num_resamples, seed=seed)
    gains = _weighted_accuracy(other, weights, places) - _weighted_accuracy(base, weights, places)
    return percentiles(gains, level=level, num_problems=base.solved.shape[1])


def _weighted_accuracy(curve: Allocation, weights_SQ: np.ndarray, places: np.ndarray) -> np.ndarray:
    return weighted_accuracy(np.asarray(curve.paid), np.asarray(curve.solved), weights_SQ, places)


def _held_out_gain(base: Allocation, other: Allocation, places: np.ndarray) -> float:
    """Choose the place on four fifths of the problems and measure it on the last, for each fifth.

    Fifths are dealt out by price, so that one spending means the same on all of them.
    """
    num_problems = base.solved.shape[1]
    fifth = np.empty(num_problems, dtype=int)
    fifth[np.argsort(np.asarray(base.paid).sum(0), kind="stable")] = np.arange(num_problems) % 5
    is_held_out = np.unique(fifth)[:, None] == fifth
    if len(is_held_out) < 2:
        return float("nan")
    gains = []
    for part in (~is_held_out, is_held_out):
        weights = part / part.sum(1, keepdims=True)
        gains.append(_weighted_accuracy(other, weights, places) - _weighted_accuracy(base, weights, places))
    chosen = np.argmax(gains[0], axis=1)
    return float(np.average(gains[1][np.arange(len(chosen)), chosen], weights=is_held_out.sum(1)))
