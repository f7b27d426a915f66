"""The best use of a budget, problem by problem (Algorithms 1 and 2), without flattering the choice.

The paper picks the best of many noisy estimates and reports the same estimates. That alone shows +6 to +11 points
for sparse attention when it changes nothing (PAPER.md errata 10). Here the choice is made on one part of the
trials and scored on the other.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from kinetics_jax.accuracy import pass_at_k

from ._allocation import Allocation
from ._tradeoff import Tradeoff

# Accuracies within one step are a tie, whatever the last bits say. The steps are a prime: of all shares only 1/2 is on
# a rounding edge, and the shift moves that edge to where no share of up to 64 trials is near. The product of the two
# numbers of steps fits an int32.
_TIE_STEPS, _TIE_SHIFT = 16_381, 1 / 256
_POOLED_STEPS = 131_071


def allocate(
    tradeoff: Tradeoff, budgets: Float[Array, " X"], *, price_over: Literal["difficulty", "problem"] = "difficulty"
) -> Allocation:
    r"""Spend each cap as well as the trials can tell: per problem, the best Pass@k among affordable candidates.

    ```
    choice[x, q]   = argmax_c { pass@k_c on the choosing trials of q : price[q, c] <= budget[x] }
    price[q, c]    = mean price on the choosing trials of all problems as difficult as q
    accuracy[x]    = mean_q mean_f pass@k of choice_{-f}[x, q] on fold f          (0 where none is affordable)
    spent[x]       = mean_q mean_f price of choice_{-f}[x, q] on fold f           (0 where none is affordable)
    ```

    k_c = 1 is Algorithm 2 (Long-CoT over lengths and budgets), k_c = N is Algorithm 1 (Best-of-N over trials and
    budgets). Unlike the paper's, the choice starts anew at each problem (errata 5), and the score comes from trials
    that the choice has not seen (errata 10); the naive estimate stands beside it.

    **Prices.** The paper reads the expected price off a problem's own few trials. A trial that is right stops early,
    so such a price tells who is lucky, and the cheapest of many noisy prices looks affordable sooner than one does:
    six copies of dense attention then gain more than 3 points over one at equal cap (prices over the trials of all
    folds are worse: they leak the score). Prices over a difficulty have little noise: copies are then within 1 point
    at every spending, 0.5 at the largest (tests/scaling/test_null.py, 80 problems, 16 trials). What is left is no
    error of the estimate: more candidates bring more trials to choose by.
    Compare curves at equal `spent`, not at equal cap: `Allocation.accuracy_at`, `widest_gap`.

    **Ties** are common with few trials (8 of 8 right) and the paper leaves them open. Here they go to the candidate
    that the choosing trials of *all* problems favour, then to the cheaper, then to the earlier one. Taking the cheapest
    at once loses points at the largest cap, most where there are many candidates. The naive accuracy does not depend on
    this rule.

    Args:
        tradeoff: Prices and successes by fold, at least 2 folds.
        budgets: Caps on the expected price of a request [in the price of the tradeoff], finite, none below the one
            before it.
        price_over: Whose choosing trials tell that price: all problems of one difficulty, or one problem (as in the
            paper).

    Returns:
        The allocation at each cap.

    Raises:
        ValueError: If there is one fold only, a fold has fewer trials than a candidate spends, or (outside `jit`) the
            budgets are not finite or fall.

    Example:
        >>> import jax.numpy as jnp
        >>> from kinetics_jax.scaling import Candidate
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
    require_folds(tradeoff)
    require_budgets(budgets)
    num_problems, num_candidates = tradeoff.cost.shape[1:]
    num_padded = max(64, 1 << (num_candidates - 1).bit_length())
    arrays = _allocate(
        _pad_last(tradeoff.cost, num_padded, 1.0),
        _pad_last(tradeoff.num_correct, num_padded, 0.0),
        _pad_last(tradeoff.num_trials, num_padded, 1.0),
        _pad_last(tradeoff.k, num_padded, 1.0),
        np.int32(num_candidates),
        _groups(tradeoff.difficulty) if price_over == "difficulty" else np.arange(num_problems, dtype=np.int32),
        budgets,
    )
    return Allocation(budgets=budgets, candidates=tradeoff.candidates, price=tradeoff.price, **arrays)


def require_folds(tradeoff: Tradeoff) -> None:
    """Raise ValueError unless there are folds to choose on and to score on, each with the trials that are spent."""
    num_folds = tradeoff.cost.shape[0]
    if num_folds < 2:
        raise ValueError(f"one part of the trials chooses, another scores; got {num_folds} fold. Use at least 2.")
    if not any(isinstance(leaf, Tracer) for leaf in (tradeoff.num_trials, tradeoff.k)):
        fewest, counts = np.asarray(tradeoff.num_trials).min((0, 1)), np.asarray(tradeoff.k)
        if np.any(fewest < counts):
            raise ValueError(
                f"every fold needs as many trials as a candidate spends; got folds of {fewest.min():.0f} and "
                f"candidates of {counts.max():.0f} trials. Draw more trials, or use fewer folds or smaller counts."
            )


def require_budgets(budgets: Array | np.ndarray) -> None:
    """Raise ValueError unless budgets are finite and never fall: curves are read by rising budget. Not if traced."""
    if isinstance(budgets, Tracer):
        return
    values = np.asarray(budgets, dtype=np.float64)
    if not np.isfinite(values).all() or (np.diff(values) < 0).any():
        raise ValueError(
            f"budgets must be finite and rise; got {np.array2string(values, threshold=8)}. Sort them, or use "
            "Tradeoff.budget_grid."
        )


def _pad_last(array: Array, size: int, value: float) -> Array | np.ndarray:
    """Fill columns up to `size` (a power of two, so that few shapes compile) with what nobody looks at."""
    xp = jnp if isinstance(array, Tracer) else np  # NumPy compiles nothing
    padding = [(0, 0)] * (array.ndim - 1) + [(0, size - array.shape[-1])]
    return xp.pad(xp.asarray(array), padding, constant_values=value)


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
    cost_FQC: Array,
    num_correct_FQC: Array,
    num_trials_FQC: Array,
    k_C: Array,
    num_candidates: Array,
    group_Q: Array,
    budgets_X: Array,
) -> dict[str, Array]:
    num_folds = cost_FQC.shape[0]
    # What each choice may look at: first all folds (naive), then all but fold f.
    looks_at_SF = np.vstack([np.ones(num_folds), 1 - np.eye(num_folds)]).astype(np.float32)
    # In full precision: by default GPUs round what they multiply to 11 bits, TPUs to 8, counts and prices alike.
    seen_cost, seen_correct, seen_trials = jnp.einsum(
        "sf,ifqc->isqc",
        looks_at_SF,
        jnp.stack([cost_FQC * num_trials_FQC, num_correct_FQC, num_trials_FQC]),
        precision="highest",
    )
    # One call for both, and one below: compiling takes longer than running.
    num_trials = jnp.concatenate([seen_trials, num_trials_FQC])
    value = pass_at_k(
        jnp.concatenate([seen_correct, num_correct_FQC]), num_trials, jnp.broadcast_to(k_C, num_trials.shape)
    )
    seen_value, held_out_FQC = value[: num_folds + 1], value[num_folds + 1 :]
    group_cost, group_trials = jnp.split(_sum_over_group(jnp.concatenate([seen_cost, seen_trials]), group_Q), 2)
    choices = _best_affordable(group_cost / group_trials, seen_value, num_candidates, budgets_X)
    fold_choice_FQX = choices[1:]
    solved_QX = _at_choice(held_out_FQC, fold_choice_FQX).mean(0)
    paid_QX = _at_choice(cost_FQC, fold_choice_FQX).mean(0)
    return {
        "accuracy": solved_QX.mean(0),
        "naive_accuracy": _at_choice(seen_value[0], choices[0]).mean(0),
        "spent": paid_QX.mean(0),
        "solved": solved_QX.T,
        "paid": paid_QX.T,
        "choice": choices[0].T,
        "fold_choice": jnp.swapaxes(fold_choice_FQX, 1, 2),
    }


def _groups(kind_Q: Array) -> Array | np.ndarray:
    """Number the kinds of problems from 0, in less than Q."""
    if isinstance(kind_Q, Tracer):
        return jnp.searchsorted(jnp.sort(kind_Q), kind_Q).astype(jnp.int32)
    return np.unique(np.asarray(kind_Q), return_inverse=True)[1].astype(np.int32)


def _sum_over_group(values_SQC: Array, group_Q: Array) -> Array:
    """Give each problem the sum over the problems of its group."""
    sums = jax.ops.segment_sum(jnp.swapaxes(values_SQC, 0, 1), group_Q, num_segments=group_Q.shape[0])
    return jnp.swapaxes(sums[group_Q], 0, 1)


def _best_affordable(cost: Array, value: Array, num_candidates: Array, budgets_X: Array) -> Array:
    """Return the best candidate at most as dear as each budget: [S, Q, C] -> [S, Q, X], -1 for none.

    A candidate at a time meets all budgets at once; padding is never looked at. No sort: XLA's takes longer on a CPU
    than all of this.
    """
    pooled = jnp.broadcast_to(value.mean(1, keepdims=True), value.shape)
    # One integer holds both: what the problem's trials say first, then what all problems say.
    value_step = jnp.floor(_TIE_STEPS * value + (0.5 + _TIE_SHIFT))
    pooled_step = jnp.round((_POOLED_STEPS - 1) * pooled)
    key = _POOLED_STEPS * value_step.astype(jnp.int32) + pooled_step.astype(jnp.int32)
    cost_CSQ1, key_CSQ1 = (jnp.moveaxis(array, -1, 0)[..., None] for array in (cost, key))
    shape = (*cost.shape[:-1], budgets_X.shape[0])

    def meet(candidate: Array, best: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        best_key, best_cost, choice = best
        its_cost, its_key = cost_CSQ1[candidate], key_CSQ1[candidate]
        is_better = (its_key > best_key) | ((its_key == best_key) & (its_cost < best_cost))  # the first of equals stays
        is_taken = is_better & (its_cost <= budgets_X.reshape((1, 1, -1)))
        return (
            jnp.where(is_taken, its_key, best_key),
            jnp.where(is_taken, its_cost, best_cost),
            jnp.where(is_taken, candidate, choice),
        )

    nothing = (jnp.full(shape, -1, jnp.int32), jnp.full(shape, jnp.inf, cost.dtype), jnp.full(shape, -1, jnp.int32))
    return jax.lax.fori_loop(jnp.int32(0), num_candidates, meet, nothing)[2]


def _at_choice(values: Array, choice: Array) -> Array:
    """Return values [..., C] at choice [..., X], 0 where nothing was chosen."""
    return jnp.where(choice >= 0, jnp.take_along_axis(values, jnp.maximum(choice, 0), axis=-1), 0)
