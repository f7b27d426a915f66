"""Accuracy and coverage at every length limit, from one set of trials at the longest limit.

A trial that is right after `solved_len` tokens is right under every limit that lets it say them.
"""

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Num

from ._pass_at_k import pass_at_k
from ._require import existing, require


def num_solved_at_len(
    solved_len: Num[ArrayLike, "*batch R"],
    limits: Num[ArrayLike, " C"],
    mask: Bool[ArrayLike, "*batch R"] | None = None,
) -> Int[Array, "*batch C"]:
    """Count the trials that are right within each limit, sum_r [solved_len_r <= limit].

    Args:
        solved_len: Tokens after which a trial's final, right answer stands; inf where it is not right [tokens].
        limits: Limits on generated tokens [tokens].
        mask: Whether the trial exists; None for all.

    Returns:
        Right trials for each entry of the batch and each limit.

    Raises:
        ValueError: If a `solved_len` is NaN or negative, or a limit is NaN (outside `jit`).

    Example:
        >>> num_solved_at_len(np.array([[3.0, 8.0, np.inf]]), np.array([4, 8])).tolist()
        [[1, 2]]

    References:
        PAPER.md section 3.
    """
    exists = existing(mask, jnp.shape(solved_len))
    require(
        lambda lengths, exists: (lengths >= 0) | ~exists,
        (solved_len, exists),
        "solved_len must be a length or inf; got {}. Leave out what was not graded by the mask.",
    )
    require(lambda limits: ~np.isnan(limits), (limits,), "limits must be numbers of tokens; got {}.")
    solved_len, limits = jnp.asarray(solved_len, float), jnp.asarray(limits, float)
    is_solved = solved_len[..., None, :] <= limits.reshape((1,) * (solved_len.ndim - 1) + (-1, 1))
    if mask is not None:
        is_solved &= jnp.asarray(mask)[..., None, :]
    return is_solved.sum(-1, dtype=jnp.int32)


def accuracy_at_len(
    solved_len: Num[ArrayLike, "*batch R"],
    limits: Num[ArrayLike, " C"],
    mask: Bool[ArrayLike, "*batch R"] | None = None,
) -> Float[Array, "*batch C"]:
    """Return the share of trials that are right within each limit: Pass@1 of Long-CoT.

    Args:
        solved_len: Tokens after which a trial's final, right answer stands; inf where it is not right [tokens].
        limits: Limits on generated tokens [tokens].
        mask: Whether the trial exists; None for all.

    Returns:
        The accuracy for each entry of the batch and each limit. Under `jit`, NaN where there is no trial.

    Raises:
        ValueError: If an entry has no trial, a `solved_len` is NaN or negative, or a limit is NaN (outside `jit`).

    Example:
        >>> accuracy_at_len(np.array([3.0, 8.0, np.inf, 1.0]), np.array([0, 4, 8])).tolist()
        [0.0, 0.5, 0.75]

    References:
        PAPER.md section 3. The released grader credits any stray number in a cut-off thought (errata 8); here a
        thought is right only where its final answer already stood.
    """
    return coverage_at_len(solved_len, limits, 1, mask)


def coverage_at_len(
    solved_len: Num[ArrayLike, "*batch R"],
    limits: Num[ArrayLike, " C"],
    k: Num[ArrayLike, "*#limits"],
    mask: Bool[ArrayLike, "*batch R"] | None = None,
) -> Float[Array, "*batch C"]:
    """Estimate Pass@k within each limit, without bias.

    Args:
        solved_len: Tokens after which a trial's final, right answer stands; inf where it is not right [tokens].
        limits: Limits on generated tokens [tokens].
        k: Trials that are paid for: one number, or one a limit.
        mask: Whether the trial exists; None for all.

    Returns:
        Pass@k for each entry of the batch and each limit. Under `jit`, NaN where there are fewer than k trials.

    Raises:
        ValueError: If an entry has fewer than k trials, a `solved_len` is NaN or negative, or a limit is NaN (outside
            `jit`).

    Example:
        >>> coverage_at_len(np.array([3.0, 8.0, np.inf, 9.0]), np.array([4, 8]), 2).tolist()
        [0.5, 0.833...]

    References:
        PAPER.md section 3.
    """
    num_solved = num_solved_at_len(solved_len, limits, mask)
    if mask is None:
        num_trials = jnp.full(num_solved.shape, jnp.shape(solved_len)[-1], jnp.int32)
    else:
        num_trials = jnp.asarray(mask).sum(-1, keepdims=True, dtype=jnp.int32)
    return pass_at_k(num_solved, jnp.broadcast_to(num_trials, num_solved.shape), jnp.broadcast_to(k, num_solved.shape))
