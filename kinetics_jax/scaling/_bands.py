"""Which model is cheapest for which accuracy, under a price, and what it costs to follow the other price's answer."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from ._allocation import Allocation
from ._frontier import cost_to_reach


@dataclass(frozen=True, kw_only=True)
class Band:
    """Name the model that reaches a range of accuracies at the lowest cost.

    Attributes:
        model: Model name.
        accuracy_from: Accuracy that the band before reaches (0 for the first); this band is better than that.
        accuracy_to: Best accuracy of the band.
        cost_from: Lowest mean spending at which the model leads [in the price of the frontiers].
        cost_to: Spending at which the next band takes over, or the most that any model spends.
    """

    model: str
    accuracy_from: float
    accuracy_to: float
    cost_from: float
    cost_to: float


def model_bands(frontiers: Mapping[str, Allocation], *, margin: float = 0.01) -> tuple[Band, ...]:
    """Return which model leads from which accuracy to which: runs of one model on the staircase of all curves.

    The models are compared at equal held-out spending, on cross-fitted curves from where half of the requests are
    served. The lead itself is still read off the sample: a band a few points wide may be noise
    (`Allocation.interval` tells). A leader is replaced only by a model that is better by more than the margin; without
    one, equal models take turns.

    Args:
        frontiers: One allocation a model, over shared caps, smallest model first (it wins ties).
        margin: Accuracy by which a new leader must be better (0.01 is one point).

    Returns:
        Bands by rising cost and accuracy; empty if nothing was ever solved.

    Raises:
        ValueError: If the frontiers have different caps or prices.

    References:
        PAPER.md sections 5 (Figs. 3, 4, 6) and 6; errata 9 (labels that shift where nobody can pay).
    """
    models = list(frontiers)
    spending = _shared_spending(frontiers)
    accuracy = np.stack([_served_accuracy(frontiers[model], spending) for model in models])
    reached = 0.0
    steps: list[tuple[int, int, float, float]] = []  # leader, place, accuracy before, accuracy reached
    for place in range(spending.size):
        best = int(np.argmax(accuracy[:, place]))
        leader = steps[-1][0] if steps else best
        if accuracy[best, place] > accuracy[leader, place] + margin:
            leader = best
        if accuracy[leader, place] > reached:
            steps.append((leader, place, reached, float(accuracy[leader, place])))
            reached = steps[-1][3]
    if not steps:
        return ()
    starts = [i for i, step in enumerate(steps) if i == 0 or steps[i - 1][0] != step[0]]
    return tuple(
        Band(
            model=models[steps[start][0]],
            accuracy_from=steps[start][2],
            accuracy_to=steps[end - 1][3],
            cost_from=float(spending[steps[start][1]]),
            cost_to=float(spending[steps[end][1]] if end < len(steps) else spending[-1]),
        )
        for start, end in zip(starts, [*starts[1:], len(steps)], strict=True)
    )


@dataclass(frozen=True, kw_only=True)
class LawComparison:
    """Compare the models that two prices choose for one accuracy, both paid in eFLOPs.

    Attributes:
        accuracy: Accuracy to reach.
        flops_model: Model that reaches it with the fewest FLOPs; None if none does.
        flops_model_eflops: What that model needs at least, in eFLOPs (inf if it only got there under FLOPs caps).
        eflops_model: Model that reaches it with the fewest eFLOPs; None if none does.
        eflops_model_eflops: What it needs, in eFLOPs.
    """

    accuracy: float
    flops_model: str | None
    flops_model_eflops: float
    eflops_model: str | None
    eflops_model_eflops: float

    @property
    def cost_ratio(self) -> float:
        """How many times dearer the FLOPs law's model is; 1 where the laws agree, NaN where nobody gets there."""
        if self.flops_model is None or self.eflops_model is None:
            return float("nan")
        return self.flops_model_eflops / self.eflops_model_eflops


def wrong_law_cost(
    flops_frontiers: Mapping[str, Allocation],
    eflops_frontiers: Mapping[str, Allocation],
    targets: Float[np.ndarray, " A"],
) -> tuple[LawComparison, ...]:
    """Return, for each accuracy, which model each law picks and what the FLOPs law's pick really costs.

    Costs are held-out spendings at caps that serve half of the requests or more. Only the model is picked by the
    wrong law: its length, trials and budget are then spent as well as eFLOPs allow, so the ratio is what the wrong
    *model* costs.

    Args:
        flops_frontiers: One allocation a model, priced in FLOPs.
        eflops_frontiers: The same models, priced in eFLOPs.
        targets: Accuracies to reach.

    Returns:
        One comparison a target, in their order.

    Raises:
        ValueError: If a mapping has the wrong price or the two hold different models.

    References:
        PAPER.md section 1 (up to 3x) and Fig. 1.
    """
    for frontiers, price in ((flops_frontiers, "flops"), (eflops_frontiers, "eflops")):
        wrong = [name for name, frontier in frontiers.items() if frontier.price != price]
        if wrong:
            raise ValueError(f"{price}_frontiers must be priced in {price}; got another price for {wrong}. Swap them?")
    if set(flops_frontiers) != set(eflops_frontiers):
        raise ValueError(f"the laws need the same models; got {list(flops_frontiers)} and {list(eflops_frontiers)}")
    models = list(eflops_frontiers)
    flops_cost = np.stack([_reach(flops_frontiers[model], targets) for model in models])
    eflops_cost = np.stack([_reach(eflops_frontiers[model], targets) for model in models])
    rows = []
    for column, accuracy in enumerate(np.asarray(targets).tolist()):
        by_flops = _cheapest(flops_cost[:, column])
        by_eflops = _cheapest(eflops_cost[:, column])
        rows.append(
            LawComparison(
                accuracy=accuracy,
                flops_model=None if by_flops is None else models[by_flops],
                flops_model_eflops=float("inf") if by_flops is None else float(eflops_cost[by_flops, column]),
                eflops_model=None if by_eflops is None else models[by_eflops],
                eflops_model_eflops=float("inf") if by_eflops is None else float(eflops_cost[by_eflops, column]),
            )
        )
    return tuple(rows)


def _shared_spending(frontiers: Mapping[str, Allocation]) -> np.ndarray:
    """Return the caps as a grid of spendings, cut off where no model spends more."""
    first, *others = frontiers.values()
    for other in others:
        if other.price != first.price or not np.array_equal(np.asarray(other.budgets), np.asarray(first.budgets)):
            raise ValueError("frontiers must share one price and one grid of caps. Make them with one model_frontiers.")
    most = max(float(np.max(np.asarray(frontier.spent))) for frontier in frontiers.values())
    budgets = np.asarray(first.budgets, dtype=np.float64)
    return np.append(budgets[budgets < most], most)


def _served_accuracy(frontier: Allocation, spending: np.ndarray) -> np.ndarray:
    """Return the accuracy at each spending, 0 below what serving half of the requests takes."""
    serving = np.asarray(frontier.spent)[frontier.is_serving]
    least = serving.min() if serving.size else np.inf
    return np.where(spending >= least, frontier.accuracy_at(spending), 0.0)


def _reach(frontier: Allocation, targets: np.ndarray) -> np.ndarray:
    serving = frontier.is_serving
    return cost_to_reach(np.asarray(frontier.spent)[serving], np.asarray(frontier.accuracy)[serving], targets)


def _cheapest(costs: np.ndarray) -> int | None:
    """Return the position of the lowest finite cost, the first of equals, or None."""
    return int(np.argmin(costs)) if np.isfinite(costs).any() else None
