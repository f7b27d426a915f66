"""How much one curve is above another: points gained at equal cost, and times cheaper at equal accuracy."""

from dataclasses import dataclass

import numpy as np

from ._allocate import Allocation, percentile_interval
from ._frontier import cost_to_reach


@dataclass(frozen=True, kw_only=True)
class Gap:
    """Describe the widest vertical and horizontal distance between two curves.

    Attributes:
        gain: Largest accuracy gained at equal cap (0 to 1; negative if the curve is always below).
        gain_low: Lower end of the paired 90% bootstrap interval of `gain`.
        gain_high: Upper end.
        gain_budget: Cap at which it is gained.
        base_accuracy: Accuracy of the base at that cap.
        cost_ratio: Largest factor by which the base is dearer at equal accuracy; NaN if none is shared.
        ratio_accuracy: Accuracy at which it is cheaper.
        base_cost: What the base needs for it.
        other_cost: What the other curve needs for it.
    """

    gain: float
    gain_low: float
    gain_high: float
    gain_budget: float
    base_accuracy: float
    cost_ratio: float
    ratio_accuracy: float
    base_cost: float
    other_cost: float


def widest_gap(
    base: Allocation, other: Allocation, *, min_accuracy: float = 0.1, level: float = 0.9, seed: int = 0
) -> Gap:
    """Return where `other` gains most over `base` (dense, say), on cross-fitted curves over the same caps.

    The place is the maximum over the curve, so it leans to the lucky side of the noise: read the gain with its
    interval, which pairs the problems.

    Args:
        base: The curve to beat.
        other: The curve that may beat it, over the same problems and caps.
        min_accuracy: Lowest accuracy at which costs are compared; below it a few lucky trials make the ratio.
        level: Share of bootstrap resamples inside the interval of the gain.
        seed: Seed of the resampling.

    A curve with more candidates is ahead at caps where affordability is noisy even if nothing is gained: see the
    caveat in `allocate`.

    Raises:
        ValueError: If the curves have different caps, prices or numbers of problems.

    References:
        PAPER.md sections 5 (Figs. 8, 14, 21, 22) and 6 (sparse over dense).
    """
    base_budgets, other_budgets = np.asarray(base.budgets), np.asarray(other.budgets)
    if base.price != other.price or not np.array_equal(base_budgets, other_budgets):
        raise ValueError("both curves must share one price and one grid of caps")
    if base.solved.shape != other.solved.shape:
        raise ValueError(f"both curves must be over the same problems; got {base.solved.shape}, {other.solved.shape}")
    difference_XQ = np.asarray(other.solved, dtype=np.float64) - np.asarray(base.solved, dtype=np.float64)
    place = int(np.argmax(difference_XQ.mean(1)))
    low, high = percentile_interval(difference_XQ[place : place + 1], level=level, num_resamples=1000, seed=seed)

    targets = np.unique(np.asarray(base.accuracy)[np.asarray(base.accuracy) >= min_accuracy])
    base_cost = cost_to_reach(base_budgets, np.asarray(base.accuracy), targets)
    other_cost = cost_to_reach(other_budgets, np.asarray(other.accuracy), targets)
    ratios = np.where(np.isfinite(other_cost), base_cost / other_cost, 0.0)
    shared = bool(ratios.size) and bool(ratios.max() > 0)
    best = int(np.argmax(ratios)) if shared else 0
    return Gap(
        gain=float(difference_XQ.mean(1)[place]),
        gain_low=float(low[0]),
        gain_high=float(high[0]),
        gain_budget=float(base_budgets[place]),
        base_accuracy=float(np.asarray(base.accuracy)[place]),
        cost_ratio=float(ratios[best]) if shared else float("nan"),
        ratio_accuracy=float(targets[best]) if shared else float("nan"),
        base_cost=float(base_cost[best]) if shared else float("nan"),
        other_cost=float(other_cost[best]) if shared else float("nan"),
    )
