"""The best use of a budget, problem by problem (Algorithms 1 and 2), without flattering the choice.

The paper picks the best of many noisy estimates and reports the same estimates. That alone shows +6 to +11 points
for sparse attention when it changes nothing (PAPER.md errata 10). Here the choice is made on one part of the
trials and scored on the other.
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from kinetics_jax.accuracy import pass_at_k

from ._tradeoff import Candidate, Tradeoff

# Accuracies within one step are a tie, whatever the last bits say. A prime: no share of trials is on a rounding edge.
# The product of the two fits an int32.
_TIE_STEPS = 16_381
_POOLED_STEPS = 131_071


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Allocation:
    """Hold what a cap per request buys. X caps, Q problems, F folds. A JAX pytree.

    Attributes:
        budgets: Caps on the price of a request [FLOPs or eFLOPs, see `price`].
        accuracy: Cross-fitted accuracy: chosen on the other folds, scored on the held-out one, averaged.
        naive_accuracy: The paper's estimate: chosen and scored on the same trials; biased upwards.
        spent: Mean held-out price of what was chosen; a cap is met on the choosing trials only.
        solved: Cross-fitted accuracy by problem; its mean over problems is `accuracy`.
        choice: Candidate chosen on all trials (the one to deploy), -1 where none is affordable.
        fold_choice: Candidate chosen without the fold, -1 where none is affordable.
        candidates: What a choice stands for.
        price: "eflops" or "flops".
    """

    budgets: Float[Array, " X"]
    accuracy: Float[Array, " X"]
    naive_accuracy: Float[Array, " X"]
    spent: Float[Array, " X"]
    solved: Float[Array, "X Q"]
    choice: Int[Array, "X Q"]
    fold_choice: Int[Array, "F X Q"]
    candidates: tuple[Candidate, ...] = field(metadata={"static": True})
    price: str = field(metadata={"static": True})

    @property
    def bias(self) -> Float[Array, " X"]:
        """What the naive estimate adds to the cross-fitted one."""
        return self.naive_accuracy - self.accuracy

    def mean_choice(self, what: str) -> np.ndarray:
        """Return the mean of a number of the chosen candidates at each cap, NaN where none is affordable.

        Args:
            what: "gen_len" [tokens], "num_trials" or "budget_len" [tokens; dense choices do not count].

        Returns:
            Mean over folds and problems, [X].

        Raises:
            ValueError: If `what` is no number of a candidate.
        """
        if what not in ("gen_len", "num_trials", "budget_len"):
            raise ValueError(f"candidates have no number {what!r}. Known: gen_len, num_trials, budget_len")
        values = [getattr(candidate, what) for candidate in self.candidates]
        number = np.array([np.nan if value is None else value for value in values] + [np.nan])
        chosen = number[np.asarray(self.fold_choice)]  # -1 reads the NaN at the end
        counts = np.isfinite(chosen).sum(axis=(0, 2))
        return np.where(counts > 0, np.nansum(chosen, axis=(0, 2)) / np.maximum(counts, 1), np.nan)

    def interval(
        self, *, level: float = 0.9, num_resamples: int = 1000, seed: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return a bootstrap interval of `accuracy` over problems: percentiles of the mean over resampled problems.

        Trial noise is inside the spread between problems, so resampling the problems covers both.

        Args:
            level: Share of resamples inside the interval.
            num_resamples: Resamples.
            seed: Seed of the resampling; equal seeds give paired intervals on equal problems.

        Returns:
            Lower and upper end, each [X].
        """
        return percentile_interval(np.asarray(self.solved), level=level, num_resamples=num_resamples, seed=seed)


def percentile_interval(
    values: np.ndarray, *, level: float, num_resamples: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return percentiles of the mean of `values` [X, Q] over resampled problems."""
    num_problems = values.shape[1]
    weights = np.random.default_rng(seed).multinomial(
        num_problems, np.full(num_problems, 1 / num_problems), size=num_resamples
    )
    means = values @ (weights.T / num_problems)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=1)
    return low, high


def allocate(tradeoff: Tradeoff, budgets: Float[Array, " X"]) -> Allocation:
    r"""Spend each cap as well as the trials can tell: per problem, the best Pass@k among affordable candidates.

    ```
    choice[x, q]   = argmax_c { pass@k_c on the choosing trials : cost[q, c] on the choosing trials <= budget[x] }
    accuracy[x]    = mean_q mean_f pass@k of choice_{-f}[x, q] on fold f          (0 where none is affordable)
    ```

    k_c = 1 is Algorithm 2 (Long-CoT over lengths and budgets), k_c = N is Algorithm 1 (Best-of-N over trials and
    budgets). The cap holds per request and problem, as in the paper. Unlike the paper's, the choice starts anew at
    each problem (errata 5), and the score comes from trials that the choice has not seen (errata 10); the naive
    estimate stands beside it.

    Ties are common with few trials (8 of 8 right) and the paper leaves them open. Here they go to the candidate that
    the choosing trials of *all* problems favour, then to the cheaper, then to the earlier one. Taking the cheapest
    at once lost 2 to 11 points at the largest cap on one draw of the synthetic tables in tests/scaling, most where
    there are many candidates. The naive accuracy does not depend on this rule.

    Cross-fitting removes the bias of choosing by *accuracy*. It does not remove that of choosing by *price*: whether a
    candidate is affordable is read off sampled lengths, so that many candidates of equal true price are affordable
    sooner than one, and `spent` exceeds what fewer candidates would spend at the same cap. Curves with different
    numbers of candidates (dense, sparse) are comparable at one cap only where all of them are affordable.

    Args:
        tradeoff: Prices and successes by fold, at least 2 folds.
        budgets: Caps on the price of a request [in the price of the tradeoff], finite.

    Returns:
        The allocation at each cap.

    Raises:
        ValueError: If there is one fold only, or a fold has fewer trials than a candidate spends.

    Example:
        >>> import jax.numpy as jnp
        >>> tradeoff = Tradeoff(
        ...     cost=jnp.array([[[1.0, 4.0]], [[1.0, 4.0]]]),
        ...     num_correct=jnp.array([[[1.0, 4.0]], [[1.0, 2.0]]]),
        ...     num_trials=jnp.full((2, 1, 2), 4.0),
        ...     k=jnp.ones(2),
        ...     difficulty=jnp.array([3]),
        ...     candidates=tuple(
        ...         Candidate(model=name, attention="dense", gen_len=8, num_trials=1) for name in ("small", "large")
        ...     ),
        ...     problems=("p0",),
        ...     price="eflops",
        ... )
        >>> allocate(tradeoff, jnp.array([0.5, 1.0, 5.0])).accuracy.round(6).tolist()
        [0.0, 0.25, 0.75]

    References:
        PAPER.md section 3, Algorithms 1 and 2; errata 5 and 10.
    """
    num_folds = tradeoff.cost.shape[0]
    if num_folds < 2:
        raise ValueError(f"allocate chooses on some folds and scores on another; got {num_folds} fold. Use at least 2.")
    is_traced = isinstance(tradeoff.num_trials, Tracer) or isinstance(tradeoff.k, Tracer)
    if not is_traced and bool(jnp.any(tradeoff.num_trials.min((0, 1)) < tradeoff.k)):
        raise ValueError(
            f"every fold needs as many trials as a candidate spends; got folds of {tradeoff.num_trials.min():.0f} and "
            f"candidates of {tradeoff.k.max():.0f} trials. Draw more trials, or use fewer folds or smaller counts."
        )
    num_candidates = len(tradeoff.candidates)
    # Columns that nobody can pay fill up to a power of two, so that few shapes compile.
    padding = (0, max(64, 1 << (num_candidates - 1).bit_length()) - num_candidates)
    arrays = _allocate(
        jnp.pad(tradeoff.cost, ((0, 0), (0, 0), padding), constant_values=jnp.inf),
        jnp.pad(tradeoff.num_correct, ((0, 0), (0, 0), padding)),
        jnp.pad(tradeoff.num_trials, ((0, 0), (0, 0), padding), constant_values=1),
        jnp.pad(tradeoff.k, padding, constant_values=1),
        budgets,
    )
    return Allocation(budgets=budgets, candidates=tradeoff.candidates, price=tradeoff.price, **arrays)


def model_frontiers(tradeoff: Tradeoff, budgets: Float[Array, " X"]) -> dict[str, Allocation]:
    """Allocate within each model alone: one accuracy-against-cost curve a model.

    Args:
        tradeoff: Prices and successes.
        budgets: Caps that all models share [in the price of the tradeoff].

    Returns:
        The allocations by model name, in the order of the candidates.
    """
    return {model: allocate(tradeoff.select(models=[model]), budgets) for model in tradeoff.models}


@jax.jit
def _allocate(
    cost_FQC: Array, num_correct_FQC: Array, num_trials_FQC: Array, k_C: Array, budgets_X: Array
) -> dict[str, Array]:
    weighted_cost_FQC = cost_FQC * num_trials_FQC

    def choosing(terms_FQC: Array) -> Array:
        """Return what each choice may look at: first all folds (naive), then all but fold f."""
        total = terms_FQC.sum(0, keepdims=True)
        others = [terms_FQC[:fold].sum(0) + terms_FQC[fold + 1 :].sum(0) for fold in range(len(terms_FQC))]
        return jnp.concatenate([total, jnp.stack(others)])

    seen_trials = choosing(num_trials_FQC)
    seen_value = pass_at_k(choosing(num_correct_FQC), seen_trials, jnp.broadcast_to(k_C, seen_trials.shape))
    choices = _best_affordable(choosing(weighted_cost_FQC) / seen_trials, seen_value, budgets_X)
    fold_choice_FQX = choices[1:]
    held_out_FQC = pass_at_k(num_correct_FQC, num_trials_FQC, jnp.broadcast_to(k_C, num_trials_FQC.shape))
    solved_QX = _at_choice(held_out_FQC, fold_choice_FQX).mean(0)
    return {
        "accuracy": solved_QX.mean(0),
        "naive_accuracy": _at_choice(seen_value[0], choices[0]).mean(0),
        "spent": _at_choice(cost_FQC, fold_choice_FQX).mean((0, 1)),
        "solved": solved_QX.T,
        "choice": choices[0].T,
        "fold_choice": jnp.swapaxes(fold_choice_FQX, 1, 2),
    }


def _best_affordable(cost: Array, value: Array, budgets_X: Array) -> Array:
    """Return the best candidate at most as dear as each budget: [S, Q, C] -> [S, Q, X], -1 for none.

    Sorted by cost, the affordable candidates are a prefix: a running best serves all budgets, no [X, C] is built.
    """
    order = jnp.argsort(cost, axis=-1, stable=True)
    pooled = jnp.broadcast_to(value.mean(1, keepdims=True), value.shape)
    sorted_cost = jnp.take_along_axis(cost, order, axis=-1)
    # One integer holds both: what the problem's trials say first, then what all problems say.
    value_step, pooled_step = (jnp.round(_TIE_STEPS * value), jnp.round((_POOLED_STEPS - 1) * pooled))
    key = _POOLED_STEPS * value_step.astype(jnp.int32) + pooled_step.astype(jnp.int32)
    sorted_key = jnp.take_along_axis(key, order, axis=-1)
    is_record = sorted_key[..., 1:] > jax.lax.cummax(sorted_key, axis=2)[..., :-1]
    position = jnp.broadcast_to(jnp.arange(1, key.shape[-1], dtype=order.dtype), is_record.shape)
    record = jax.lax.cummax(jnp.where(is_record, position, 0), axis=2)
    best = jnp.take_along_axis(order, jnp.pad(record, ((0, 0), (0, 0), (1, 0))), axis=-1)
    count = jax.vmap(lambda costs: jnp.searchsorted(costs, budgets_X, side="right"))
    num_affordable = count(sorted_cost.reshape(-1, cost.shape[-1])).reshape(*cost.shape[:-1], -1)
    chosen = jnp.take_along_axis(best, jnp.maximum(num_affordable - 1, 0), axis=-1)
    return jnp.where(num_affordable > 0, chosen, -1).astype(jnp.int32)


def _at_choice(values: Array, choice: Array) -> Array:
    """Return values [..., C] at choice [..., X], 0 where nothing was chosen."""
    return jnp.where(choice >= 0, jnp.take_along_axis(values, jnp.maximum(choice, 0), axis=-1), 0)
