"""Decide the number of trials and the KV budget of a request from the length of its first trial.

The paper fixes both beforehand, or lets an oracle choose them by problem. A server sees neither grades nor answers,
but it sees how long a thought has become. Everything is estimated from recorded trials, on problems that the decision
was not made on.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from jaxtyping import Array, Float

from kinetics_jax.specs import HardwareSpec, ModelSpec
from kinetics_jax.traces import TraceTable

from ._allocate import require_budgets
from ._allocation import interpolate, percentiles, resample_weights, weighted_accuracy
from ._average import allocate_average
from ._followups import Followups, price_followups
from ._hull import spend_exactly
from ._table import require_comparable, smallest_fold, tradeoff_table


@dataclass(frozen=True, kw_only=True)
class AdaptivePolicy:
    """Say what the policy looks at and what it may decide; `evaluate_policy` finds the decisions.

    A request starts with one trial, which always runs to its end. The policy acts when that trial ends, or when it
    reaches the last edge, if earlier: it starts so many further trials with such an attention, or none.

    Attributes:
        first: Attention of the first trial, in text form.
        edges: Lengths of the first trial, rising; the state is how many of them it reached [tokens].
        trial_counts: Numbers of further trials to choose from; none at all is always possible.

    Raises:
        ValueError: If the edges do not rise from at least 1, or a count is negative.

    Example:
        >>> policy = AdaptivePolicy(first="dense", edges=(16, 64), trial_counts=(1, 2, 4))
        >>> [policy.state(length) for length in (3, 16, 63, 64, 500)]
        [0, 1, 1, 2, 2]
    """

    first: str
    edges: tuple[int, ...]
    trial_counts: tuple[int, ...] = (1, 2, 4)

    def __post_init__(self) -> None:
        if not all(low < high for low, high in pairwise((0, *self.edges))):
            raise ValueError(f"edges must rise from at least 1 token; got {self.edges}")
        if not self.trial_counts or min(self.trial_counts) < 0:
            raise ValueError(f"trial_counts must be 0 or more, at least one of them; got {self.trial_counts}")

    def state(self, gen_len: int) -> int:
        """Return how many edges a length has reached."""
        return sum(gen_len >= edge for edge in self.edges)


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Name what follows the first trial.

    Attributes:
        attention: Attention of the further trials; empty where there are none.
        num_trials: Further trials.
        chance: How often; a coin between two decisions makes a mean budget exact.
    """

    attention: str
    num_trials: int
    chance: float


@dataclass(frozen=True, kw_only=True)
class PolicyValue:
    """Hold what a policy achieves on problems that it was not made on. X budgets, Q problems.

    Attributes:
        budgets: Mean prices of a request [eFLOPs or FLOPs].
        accuracy: Share of requests with a right trial.
        spent: Mean price on the held-out problems [as `budgets`].
        solved: Accuracy by problem.
        paid: Price by problem.
        fixed_accuracy: What the best fixed choice achieves at the same spending, made and scored in the same way.
        fixed_solved: That choice at each budget, by problem.
        fixed_paid: Its price, by problem.
        oracle_low: At the same spending, what a choice by problem among the policy's numbers of trials achieves, made
            on half of its trials and scored on the other. An oracle does better.
        oracle_high: The same, made and scored on all trials. No oracle does better, in expectation.
        decisions: By budget and state, made on all problems.
        served: Share of requests answered at each budget; below 1 where not even a first trial is affordable.
    """

    budgets: Float[np.ndarray, " X"]
    accuracy: Float[np.ndarray, " X"]
    spent: Float[np.ndarray, " X"]
    solved: Float[np.ndarray, "X Q"]
    paid: Float[np.ndarray, "X Q"]
    fixed_accuracy: Float[np.ndarray, " X"]
    fixed_solved: Float[np.ndarray, "X Q"]
    fixed_paid: Float[np.ndarray, "X Q"]
    oracle_low: Float[np.ndarray, " X"]
    oracle_high: Float[np.ndarray, " X"]
    decisions: tuple[tuple[tuple[Decision, ...], ...], ...]
    served: Float[np.ndarray, " X"]

    @property
    def regret_to_fixed(self) -> Float[np.ndarray, " X"]:
        """What the best fixed choice achieves more; negative where looking at lengths pays."""
        return self.fixed_accuracy - self.accuracy

    @property
    def regret_to_oracle(self) -> tuple[Float[np.ndarray, " X"], Float[np.ndarray, " X"]]:
        """What an oracle achieves more: at least, and at most."""
        return self.oracle_low - self.accuracy, self.oracle_high - self.accuracy

    def regret_interval(
        self, *, level: float = 0.9, num_resamples: int = 1000, seed: int = 0
    ) -> tuple[Float[np.ndarray, " X"], Float[np.ndarray, " X"]]:
        """Return the paired bootstrap interval of `regret_to_fixed` over problems, at the policy's spending.

        The decisions stay as they are; the noise of making them is not in it.

        Args:
            level: Coverage of the interval at each budget.
            num_resamples: Bootstrap draws.
            seed: Seed of the bootstrap.

        Returns:
            Lower and upper ends.
        """
        weights = resample_weights(self.solved.shape[1], num_resamples=num_resamples, seed=seed)
        regret = weighted_accuracy(self.fixed_paid, self.fixed_solved, weights, self.spent)
        regret = regret - weighted_accuracy(self.paid, self.solved, weights, self.spent)
        return percentiles(regret, level=level, num_problems=self.solved.shape[1])


def evaluate_policy(
    tables: Iterable[TraceTable],
    policy: AdaptivePolicy,
    budgets: Float[Array | np.ndarray, " X"],
    *,
    models: Mapping[str, ModelSpec],
    hardware: HardwareSpec,
    price: Literal["eflops", "flops"] = "eflops",
    num_folds: int = 5,
) -> PolicyValue:
    r"""Evaluate a policy off-policy, from recorded trials, with decisions made on other problems.

    ```
    value[q, s, a] = mean_r [state_r = s] (right_r + (1 - right_r) pass@N_a of the other trials of q)
    decisions      = argmax sum_s value[s, a_s]  subject to  sum_s cost[s, a_s] <= budget,  means over the other folds
    ```

    Trials of a problem are independent, so a recorded trial followed by others of the same problem is a request as the
    policy would have run it: no model of what might have happened is needed. The best decisions under a mean budget
    are again the linear program of `allocate_average`, with states for problems. Folds are of *problems*: a policy
    must do well on problems that it has never seen. The best fixed choice is made by the same program, from one
    row of options: N trials with any attention, or the policy's own first trial and the same decision in every state.

    Args:
        tables: One table a (model, attention) of one model, all on the same problems.
        policy: What to look at and what to decide.
        budgets: Mean prices of a request [in `price`], positive, none below the one before it.
        models: Specs by model name.
        hardware: Sets the arithmetic intensity of eFLOPs.
        price: "eflops" or "flops". The first trial and those that follow read the prompt once each.
        num_folds: Folds of problems.

    Returns:
        Accuracy, spending and regret at each budget.

    Raises:
        ValueError: If the tables are of several models or do not fit together, none has the first trial's attention,
            a problem has too few trials, there are fewer problems than folds, or budgets fall or are not positive.

    References:
        PAPER.md section 8 (adaptive N and B from the length seen so far, left to future work); section 5, Fig. 24.
    """
    tables = list(tables)
    require_comparable(tables, 2)
    by_attention = {table.attention: table for table in tables}
    if len({table.model for table in tables}) != 1 or policy.first not in by_attention:
        raise ValueError(
            f"a policy needs tables of one model, one of them with {policy.first!r} for the first trial; got "
            f"{[f'{table.model} {table.attention}' for table in tables]}"
        )
    num_problems = tables[0].num_problems
    if not 2 <= num_folds <= num_problems:
        raise ValueError(f"num_folds must lie in 2..{num_problems} problems; got {num_folds}")
    budgets = np.asarray(budgets, dtype=np.float64)
    if not np.all(np.isfinite(budgets) & (budgets > 0)):
        raise ValueError(f"budgets must be positive and finite; got {budgets.min():.3g} to {budgets.max():.3g}")
    require_budgets(budgets)
    model = models[tables[0].model]
    options = price_followups(
        by_attention, policy.first, policy.edges, policy.trial_counts, model=model, hardware=hardware, price=price
    )
    fixed_value = np.concatenate([options.plain_value, options.value.sum(1)], axis=1)
    fixed_cost = np.concatenate([options.plain_cost, options.cost.sum(1)], axis=1)
    solved, paid, fixed_solved, fixed_paid = np.zeros((4, budgets.size, num_problems))
    for fold in range(num_folds):
        held_out = np.arange(num_problems) % num_folds == fold
        served, weights = _decide(options, ~held_out, budgets)
        solved[:, held_out] = served[:, None] * np.einsum("xsa,qsa->xq", weights, options.value[held_out])
        paid[:, held_out] = served[:, None] * np.einsum("xsa,qsa->xq", weights, options.cost[held_out])
        mean_cost, mean_value = (numbers[~held_out].mean(0, keepdims=True) for numbers in (fixed_cost, fixed_value))
        fixed_weights = spend_exactly(mean_cost, mean_value, budgets).weights(fixed_cost.shape[1])[:, 0]
        fixed_solved[:, held_out] = fixed_weights @ fixed_value[held_out].T
        fixed_paid[:, held_out] = fixed_weights @ fixed_cost[held_out].T
    spent = paid.mean(1)
    hindsight = spend_exactly(fixed_cost, fixed_value, budgets * num_problems)
    # The oracle below has the options of the one above, as far as half of the trials serve them.
    counts = [count for count in sorted({1, *policy.trial_counts} - {0}) if count <= smallest_fold(tables, 2)]
    tradeoff = tradeoff_table(
        tables, models=models, hardware=hardware, price=price, strategy="best_of_n", trial_counts=counts
    )
    by_problem = allocate_average(tradeoff, budgets)
    served, weights = _decide(options, np.ones(num_problems, dtype=bool), budgets)
    return PolicyValue(
        budgets=budgets,
        accuracy=solved.mean(1),
        spent=spent,
        solved=solved,
        paid=paid,
        fixed_accuracy=interpolate(fixed_paid.mean(1), fixed_solved.mean(1), spent),
        fixed_solved=fixed_solved,
        fixed_paid=fixed_paid,
        oracle_low=by_problem.accuracy_at(spent),
        oracle_high=interpolate(
            hindsight.at_choice(fixed_cost).mean(1), hindsight.at_choice(fixed_value).mean(1), spent
        ),
        decisions=tuple(tuple(_named(chances, options) for chances in by_state) for by_state in weights),
        served=served,
    )


def _decide(options: Followups, rows: np.ndarray, budgets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the share of requests served, [X], and the chance of each option in each state, [X, S, A]."""
    cost, value = options.cost[rows].mean(0), options.value[rows].mean(0)
    least = cost[:, 0].sum()
    # No further trial costs nothing more: the program spends what is left beyond the first trials.
    more = spend_exactly(
        cost[:, 1:] - cost[:, :1], value[:, 1:] - value[:, :1], np.maximum(budgets - least, 0.0)
    ).weights(cost.shape[1] - 1)
    none = 1 - more.sum(-1, keepdims=True)
    return np.minimum(budgets / least, 1.0), np.concatenate([none, more], axis=-1)


def _named(chances: np.ndarray, options: Followups) -> tuple[Decision, ...]:
    return tuple(
        Decision(attention=attention, num_trials=count, chance=float(chance))
        for (attention, count), chance in zip(options.options, chances, strict=True)
        if chance > 1e-9
    )
