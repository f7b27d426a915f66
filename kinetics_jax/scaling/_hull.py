"""The exact optimum of an average budget: upper concave hulls of the choices, merged by slope.

Rows share one budget; each takes one of its options, or nothing. With a coin between two options of one row this is a
linear program (the relaxed multiple-choice knapsack), and taking hull segments by falling slope solves it. Rows are
problems in `allocate_average` and lengths seen so far in `evaluate_policy`.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True, kw_only=True)
class Spending:
    """Hold which option each row takes at each budget. X budgets, Q rows.

    Attributes:
        choice: Option of each row, -1 for nothing.
        mixed_row: Row whose next option is taken with chance `mixed_share`; -1 where the budget needs no coin.
        mixed_choice: That option.
        mixed_share: That chance.
    """

    choice: Int[np.ndarray, "X Q"]
    mixed_row: Int[np.ndarray, " X"]
    mixed_choice: Int[np.ndarray, " X"]
    mixed_share: Float[np.ndarray, " X"]

    def weights(self, num_options: int) -> Float[np.ndarray, "X Q C"]:
        """Return the chance of each option in each row; what is left to 1 is nothing."""
        option = np.arange(num_options).reshape(1, 1, -1)
        weight = (self.choice[..., None] == option).astype(float)
        budget = np.flatnonzero(self.mixed_row >= 0)
        row, share = self.mixed_row[budget], self.mixed_share[budget]
        weight[budget, row] *= 1 - share[:, None]
        weight[budget, row, self.mixed_choice[budget]] += share
        return weight

    def at_choice(self, numbers: Float[np.ndarray, "Q C"]) -> Float[np.ndarray, "X Q"]:
        """Return the expected number of what each row takes; nothing counts 0."""
        # Not by `weights`: those are C numbers for each of these.
        padded = np.append(numbers, np.zeros((len(numbers), 1)), axis=1)  # -1 reads the 0 at the end
        taken = padded[np.arange(len(numbers)), self.choice]
        budget = np.flatnonzero(self.mixed_row >= 0)
        row, share = self.mixed_row[budget], self.mixed_share[budget]
        taken[budget, row] += share * (padded[row, self.mixed_choice[budget]] - taken[budget, row])
        return taken


def hull_vertices(cost: Float[np.ndarray, "Q C"], value: Float[np.ndarray, "Q C"]) -> Int[np.ndarray, "Q V"]:
    """Return each row's options on its upper concave hull from (0, 0), by rising cost; -1 fills the rows up.

    From each vertex the hull goes on to the option of steepest slope, the farthest of equals, as long as value rises.
    """
    at_cost, at_value = np.zeros((len(cost), 1)), np.zeros((len(cost), 1))
    vertices = []
    while True:
        run, rise = cost - at_cost, value - at_value
        is_further = (run > 0) & (rise > 0)
        slope = np.where(is_further, rise / np.where(is_further, run, 1.0), 0.0)
        steepest = slope.max(1, initial=0.0, keepdims=True)
        if not steepest.any():
            break
        goes_on = steepest[:, 0] > 0
        option = np.argmax(np.where((slope == steepest) & is_further, cost, -np.inf), axis=1)
        vertices.append(np.where(goes_on, option, -1))
        at_cost[goes_on, 0] = cost[goes_on, option[goes_on]]
        at_value[goes_on, 0] = value[goes_on, option[goes_on]]
    return np.stack(vertices, axis=1) if vertices else np.full((len(cost), 0), -1)


def spend_exactly(
    cost: Float[np.ndarray, "Q C"], value: Float[np.ndarray, "Q C"], totals: Float[np.ndarray, " X"]
) -> Spending:
    """Maximise the summed value under each total cost, with at most one coin a total.

    Args:
        cost: Price of each option of each row, positive.
        value: Worth of each option; nothing is worth 0.
        totals: What all rows together may cost.

    Returns:
        The optimum at each total. Rows of equal slope are served in their order.
    """
    vertex_QV = hull_vertices(cost, value)
    num_rows, num_steps = vertex_QV.shape
    row_Q1 = np.arange(num_rows)[:, None]
    exists = vertex_QV >= 0
    step_cost = np.diff(np.where(exists, cost[row_Q1, vertex_QV], 0.0), axis=1, prepend=0.0)
    step_value = np.diff(np.where(exists, value[row_Q1, vertex_QV], 0.0), axis=1, prepend=0.0)
    slope = np.where(exists, step_value / np.where(exists, step_cost, 1.0), -np.inf)
    slope = np.minimum.accumulate(slope, axis=1)  # rounding must not put a later step of a row before an earlier one
    order = np.argsort(-slope, axis=None, kind="stable")[: int(exists.sum())]
    spent = np.cumsum(step_cost.ravel()[order])
    # The last bit of a sum must not turn a whole step into a coin.
    num_whole = np.searchsorted(spent, totals * (1 + 1e-12), side="right")
    rank = np.full(num_rows * num_steps, order.size)
    rank[order] = np.arange(order.size)
    num_taken = (rank.reshape(1, num_rows, num_steps) < num_whole[:, None, None]).sum(-1)
    choices = np.append(np.full((num_rows, 1), -1), vertex_QV, axis=1)
    choice = choices[np.arange(num_rows), num_taken]

    left = totals - np.append(0.0, spent)[num_whole]
    is_mixed = (num_whole < order.size) & (left > 1e-12 * totals)
    cut = np.append(order, 0)[np.where(is_mixed, num_whole, order.size)]
    share = left / np.where(is_mixed, np.append(step_cost.ravel(), 1.0)[cut], 1.0)
    return Spending(
        choice=choice,
        mixed_row=np.where(is_mixed, cut // max(num_steps, 1), -1),
        mixed_choice=np.where(is_mixed, np.append(vertex_QV.ravel(), -1)[cut], -1),
        mixed_share=np.where(is_mixed, share, 0.0),
    )
