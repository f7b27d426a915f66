r"""Accuracy of the most frequent answer among k trials: the exact average over all k-subsets of n trials.

There are too many subsets to list, but they need not be listed. Draw each trial on its own with chance p = k/n: given
that k trials were drawn, they are a uniform subset, and before that is given the votes a_j of different answers are
independent Binomial(m_j, p), m_j trials having given answer j. So with x counting votes and y counting the *other*
answers that share the most votes t,

$$ E[x^k] \; \sum_t \sum_j v_j \, P(a_j{=}t) x^t \prod_{i \ne j} \Big( P(a_i{<}t; x) + y \, P(a_i{=}t) x^t \Big) $$

is the chance that answer j (right if v_j = 1) has the most votes. s other answers tied with it leave it the winner with
chance 1/(s+1) = \int_0^1 y^s dy, a polynomial integrated exactly by Gauss-Legendre nodes. The coefficient of x^k comes
from the values at the (n+1)-th roots of unity; divided by P(k trials drawn) it is the answer.
"""

from functools import partial
from math import ceil

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.scipy.special import xlog1py, xlogy
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Num

from ._groups import runs, sum_by_run
from ._require import existing, require, require_drawn

Nodes = tuple[np.ndarray, np.ndarray, np.ndarray]
_VALUES_AT_ONCE = 2**22


def majority_at_k(
    answer: Int[ArrayLike, "*#batch R"],
    is_right: Bool[ArrayLike, "*#batch R"],
    k: Num[ArrayLike, "*#batch"],
    mask: Bool[ArrayLike, "*#batch R"] | None = None,
) -> Float[Array, "*#batch"]:
    r"""Estimate the accuracy of majority voting among k trials, without bias.

    $$ \binom{n}{k}^{-1} \sum_{|S| = k} \frac{\text{right answers among those with most votes in } S}
       {\text{answers with most votes in } S} $$

    The average over all subsets of k of the n trials, computed exactly (see the module), so that its expectation is the
    accuracy of voting among k fresh trials. The most frequent answer wins, by plurality; answers that tie win with
    equal chance. A trial without an answer is drawn and paid for, but never votes; where nobody votes the vote is
    wrong.

    In float32 the error is about 1e-6 for tens of trials, 1e-4 for a thousand. The work grows as
    n^2 k log k: it is meant for up to a few hundred trials.

    Args:
        answer: Which of its problem's answers the trial gave, from 0; -1 where it gave none. Only equality matters.
        is_right: Whether that answer is right; several answers may be. False where there is none.
        k: Trials that are paid for, 1 <= k <= n; broadcast with the batch.
        mask: Whether the trial exists; None for all. n counts the existing ones.

    Returns:
        The estimate for each entry of the batch. Under `jit`, where values are unknown, what would be refused is NaN.

    Raises:
        ValueError: If k is out of range or not whole, an answer is below -1 or no int32, a trial is right without an
            answer, or trials with one answer are not all right or all wrong (outside `jit`). For a limit on length,
            set the answer of trials that have not finished to -1.

    Example:
        >>> answer, is_right = np.array([7, 7, 2, -1]), np.array([True, True, False, False])
        >>> majority_at_k(answer, is_right, 2).item()  # of 6 pairs: 77 72 72 7- 7- 2-, half a win for each 72
        0.666...

    References:
        Wang et al. 2022 (arXiv 2203.11171), self-consistency; Hoeffding 1948 on averages over subsets. The paper
        (PAPER.md section 3) scores Best-of-N by an oracle only.
    """
    exists = existing(mask, jnp.shape(answer))
    require(
        lambda a, e: ((a >= -1) & (a < 2**31)) | ~e,  # JAX would wrap what no int32 holds, and join answers that differ
        (answer, exists),
        "answer must be -1 (none) or an index below 2**31; got {}. Number the answers of a problem from 0.",
    )
    require(
        lambda a, right, e: (a >= 0) | ~right | ~e,
        (answer, is_right, exists),
        "a trial that is right must have an answer; got answer={}, is_right={}. Give the answer an index.",
    )
    require_drawn(k, exists)
    # The integrals need a static limit on k; powers of two, so that few sizes compile.
    width = jnp.shape(answer)[-1]
    most = width if isinstance(k, Tracer) else min(1 << int(np.max(k, initial=1) - 1).bit_length(), width)
    estimate = _majority(*map(jnp.asarray, (answer, is_right, exists, k)), most=most)
    require(
        lambda estimate: ~np.isnan(estimate),
        (estimate,),
        "trials with one answer must all be right or all wrong; some are both. "
        "Set answer to -1 for a trial that was cut off before its answer.",
    )
    return estimate


@partial(jax.jit, static_argnames="most")
def _majority(answer: Array, is_right: Array, exists: Array, k: Array, *, most: int) -> Array:
    """Return the estimate for each entry of the batch; no k is above `most`."""
    answer, is_right, exists, k = jnp.broadcast_arrays(answer, is_right, exists, k[..., None])
    votes, right = _count_votes(answer, is_right, exists)
    k = jnp.where(k == jnp.floor(k), k, 0)[..., 0].astype(jnp.int32)  # 0 is refused
    entries = votes, right, exists.sum(-1, dtype=jnp.int32), k
    batch, width = answer.shape[:-1], answer.shape[-1]
    entries = tuple(array.reshape((-1, *array.shape[len(batch) :])) for array in entries)
    num_answers = jnp.max(jnp.sum(votes > 0, -1, dtype=jnp.int32), initial=0)
    nodes = _ties(most)
    estimate = partial(_estimate, nodes=nodes, num_answers=num_answers, most=most)
    at_once = max(1, _VALUES_AT_ONCE // (len(nodes[0]) * width))
    if entries[0].shape[0] <= at_once:
        return jax.vmap(estimate)(*entries).reshape(batch)
    return lax.map(lambda entry: estimate(*entry), entries, batch_size=at_once).reshape(batch)


def _count_votes(answer: Array, is_right: Array, exists: Array) -> tuple[Array, Array]:
    """Return the votes for each answer given, padded with 0 to [*batch, R], and the share of them that is right."""
    is_vote = exists & (answer >= 0)
    order, run = runs(answer, is_vote, is_descending=False)
    is_right, is_vote = (jnp.take_along_axis(a, order, -1).astype(float) for a in (is_right & is_vote, is_vote))
    votes = sum_by_run(is_vote, run)
    return votes, sum_by_run(is_right, run) / jnp.maximum(votes, 1)


def _estimate(
    votes_A: Array, right_A: Array, num_trials: Array, k: Array, *, nodes: Nodes, num_answers: Array, most: int
) -> Array:
    """Return the estimate of one problem, from the votes for each answer and whether it is right."""
    dtype, complex_dtype = votes_A.dtype, jnp.result_type(complex)
    threshold, node, weight = nodes
    # 0..most votes at the (R+1)-th roots of unity. The conjugate ones say the same, so half of the roots do.
    num_roots = votes_A.shape[0] + 1
    root = np.arange(num_roots // 2 + 1)
    phase_TJ = jnp.asarray(np.exp(2j * np.pi * np.outer(np.arange(most + 1), root) / num_roots), complex_dtype)
    times_J = jnp.asarray(np.where((root == 0) | (2 * root == num_roots), 1, 2) / num_roots, complex_dtype)
    node_P1, weight_P = jnp.asarray(node[:, None], complex_dtype), jnp.asarray(weight, complex_dtype)
    # What each answer, all answers, and all who give none, send into the subset: rows of 0..most votes.
    n = num_trials.astype(dtype)
    sizes = jnp.concatenate([votes_A, jnp.stack([n, n - votes_A.sum()])])
    chance = _binomial(sizes, k.astype(dtype) / jnp.maximum(n, 1), most)
    chance_AT, chance_T, silent_T = chance[:-2], chance[-2], chance[-1].astype(complex_dtype)

    def vote(i: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        any_PJ, won_PJ = state
        exactly_TJ = chance_AT[i].astype(complex_dtype)[:, None] * phase_TJ
        below_TJ = jnp.cumsum(exactly_TJ, 0) - exactly_TJ
        exactly_PJ = exactly_TJ[threshold]
        other_PJ = below_TJ[threshold] + node_P1 * exactly_PJ
        return any_PJ * other_PJ, won_PJ * other_PJ + any_PJ * (right_A[i].astype(complex_dtype) * exactly_PJ)

    ones = jnp.ones((len(threshold), len(root)), complex_dtype)
    _, won_PJ = lax.fori_loop(0, num_answers, vote, (ones, jnp.zeros_like(ones)))
    drawn = jnp.clip(k, 0, most)
    # In full precision: by default GPUs round what they multiply to 11 bits, TPUs to 8.
    answered_J, silent_J = (
        jnp.matmul(*pair, precision="highest") for pair in ((weight_P, won_PJ), (silent_T, phase_TJ))
    )
    won = (answered_J * silent_J * times_J * jnp.conj(phase_TJ[drawn])).sum().real
    is_valid = (k >= 1) & (k <= num_trials) & jnp.all((right_A == 0) | (right_A == 1))
    return jnp.where(is_valid, jnp.clip(won / chance_T[drawn], 0, 1), jnp.nan)


def _binomial(num: Array, share: Array, most: int) -> Array:
    """Return the chances of 0..most successes in trials of chance `share`, a row for each number of trials."""
    num, count = num[:, None], jnp.arange(most + 1, dtype=share.dtype)[None, :]
    ways = jnp.where(count <= num, (num - count + 1) / jnp.maximum(count, 1), 0)
    log_ways = jnp.cumsum(jnp.log(jnp.where(count == 0, 1, ways)), -1)
    return jnp.exp(log_ways + xlogy(count, share) + xlog1py(jnp.maximum(num - count, 0), -share))


def _ties(most: int) -> Nodes:
    """List the most votes t in 1..most, and for each the nodes and weights on (0, 1) exact for most//t - 1 others."""
    rows = []
    for threshold in range(1, most + 1):
        nodes, weights = np.polynomial.legendre.leggauss(ceil((most // threshold) / 2))
        rows += [(threshold, (1 + y) / 2, w / 2) for y, w in zip(nodes, weights, strict=True)]
    threshold, node, weight = np.array(rows).T
    return threshold.astype(np.int32), node, weight
