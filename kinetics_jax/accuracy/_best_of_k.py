"""Accuracy of a verifier's pick among k trials, and what any rule of choice loses to an oracle."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Num

from ._groups import runs, sum_by_run
from ._pass_at_k import pass_at_k
from ._require import existing, require, require_drawn


def best_of_k(
    scores: Num[ArrayLike, "*#batch R"],
    is_right: Bool[ArrayLike, "*#batch R"],
    k: Num[ArrayLike, "*#batch"],
    mask: Bool[ArrayLike, "*#batch R"] | None = None,
) -> Float[Array, "*#batch"]:
    r"""Estimate the accuracy of the highest-scored of k trials, without bias.

    $$ \sum_{j=1}^{n} \frac{\binom{j-1}{k-1}}{\binom{n}{k}} \, \bar v_j $$

    over the trials in rising order of score: the j-th is the best of a subset if the other k - 1 come from the j - 1
    below. \bar v_j is whether it is right, averaged over the trials of equal score, which are picked with equal chance.
    This is the exact average over all subsets of k of the n trials.

    Args:
        scores: What the verifier gives each trial; higher is better, infinite is allowed. Compared as JAX holds them:
            float64 scores closer than float32 can tell apart are ties, unless x64 is on.
        is_right: Whether the trial is right.
        k: Trials that are paid for, 1 <= k <= n; broadcast with the batch.
        mask: Whether the trial exists; None for all. n counts the existing ones.

    Returns:
        The estimate for each entry of the batch. Under `jit`, where values are unknown, what would be refused is NaN.

    Raises:
        ValueError: If k is out of range or not whole, or the score of an existing trial is NaN (outside `jit`).

    Example:
        >>> best_of_k(np.array([0.9, 0.5, 0.1]), np.array([False, True, True]), 2).item()  # the wrong one wins 2 of 3
        0.333...

    References:
        Cobbe et al. 2021 (arXiv 2110.14168), verifiers. The paper (PAPER.md section 3) has an oracle in their place.
    """
    exists = existing(mask, jnp.shape(scores))
    require(
        lambda scores, exists: ~np.isnan(scores) | ~exists,
        (scores, exists),
        "scores must be numbers; got {}. Leave out what was not scored by the mask.",
    )
    require_drawn(k, exists)
    return _best_of_k(*map(jnp.asarray, (scores, is_right, exists, k)))


def oracle_gap(
    achieved: Float[ArrayLike, "*#batch"],
    is_right: Bool[ArrayLike, "*#batch R"],
    k: Num[ArrayLike, "*#batch"],
    mask: Bool[ArrayLike, "*#batch R"] | None = None,
) -> Float[Array, "*#batch"]:
    """Return what a rule of choice loses to an oracle: Pass@k - accuracy of the rule, on the same trials.

    Args:
        achieved: Accuracy of the rule with k trials, of `best_of_k` or `majority_at_k`.
        is_right: Whether the trial is right.
        k: Trials that are paid for, 1 <= k <= n; broadcast with the batch.
        mask: Whether the trial exists; None for all.

    Returns:
        The gap for each entry of the batch; at least 0 but for rounding.

    Raises:
        ValueError: If k is out of range (outside `jit`).

    Example:
        >>> is_right = np.array([False, True, True])
        >>> oracle_gap(best_of_k(np.array([0.9, 0.5, 0.1]), is_right, 2), is_right, 2).item()
        0.666...

    References:
        PAPER.md section 8: verifiers and voting instead of an oracle.
    """
    exists = jnp.asarray(existing(mask, jnp.shape(is_right)))
    num_right = (jnp.asarray(is_right) & exists).sum(-1, dtype=jnp.int32)
    return pass_at_k(num_right, exists.sum(-1, dtype=jnp.int32), k) - jnp.asarray(achieved)


@jax.jit
def _best_of_k(scores: Array, is_right: Array, exists: Array, k: Array) -> Array:
    dtype = jnp.result_type(float)
    scores, is_right, exists, k = jnp.broadcast_arrays(scores, is_right, exists, k[..., None])
    k = k[..., 0]
    order, run = runs(scores, exists, is_descending=True)
    is_right, is_there = (jnp.take_along_axis(a, order, -1).astype(dtype) for a in (is_right, exists))
    n, drawn = is_there.sum(-1, keepdims=True), k[..., None].astype(dtype)
    # A trial with d better ones is the best drawn with chance k/n (n-k)/(n-1) ... (n-k-d+1)/(n-d): all factors are
    # positive until one is 0, so nothing cancels.
    better = jnp.arange(scores.shape[-1], dtype=dtype).reshape((1,) * (scores.ndim - 1) + (-1,))
    falls = jnp.maximum(n - drawn - better, 0) / jnp.maximum(n - 1 - better, 1)
    falls = jnp.concatenate([jnp.ones_like(n), falls], -1)[..., : scores.shape[-1]]
    chance = drawn / jnp.maximum(n, 1) * jnp.cumprod(falls, -1) * is_there
    size = jnp.maximum(sum_by_run(is_there, run), 1)
    total = (sum_by_run(chance, run) * sum_by_run(is_right * is_there, run) / size).sum(-1)
    is_drawn = ((drawn >= 1) & (drawn <= n) & (drawn == jnp.floor(drawn)))[..., 0]
    is_valid = is_drawn & ~jnp.any(jnp.isnan(scores) & exists, -1)
    return jnp.where(is_valid, total, jnp.nan)
