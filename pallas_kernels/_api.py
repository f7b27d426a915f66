"""The public decodes that select pages: validate, pick an implementation, run it. Called by `kinetics_jax.attention`.

The dense one is in `_dense`.
"""

from typing import Literal, overload

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Real

from . import _dispatch, _validate
from ._results import BlockTopKResult
from ._validate import Implementation


@overload
def block_topk_decode(
    q: Float[Array, "B N H"],
    key_pages: Real[Array, "R K P H"],
    value_pages: Real[Array, "R K P H"],
    key_means: Float[Array, "R K H"],
    page_table: Int[Array, "B M"],
    lengths: Int[Array, " B"],
    *,
    num_blocks: int,
    num_sink_blocks: int = 0,
    num_local_blocks: int = 1,
    key_scales: Float[Array, "R K P"] | None = None,
    value_scales: Float[Array, "R K P"] | None = None,
    scale: float | None = None,
    implementation: Implementation | None = None,
    tuning: object | None = None,
    return_residuals: Literal[False] = False,
) -> Float[Array, "B N H"]: ...


@overload
def block_topk_decode(
    q: Float[Array, "B N H"],
    key_pages: Real[Array, "R K P H"],
    value_pages: Real[Array, "R K P H"],
    key_means: Float[Array, "R K H"],
    page_table: Int[Array, "B M"],
    lengths: Int[Array, " B"],
    *,
    num_blocks: int,
    num_sink_blocks: int = 0,
    num_local_blocks: int = 1,
    key_scales: Float[Array, "R K P"] | None = None,
    value_scales: Float[Array, "R K P"] | None = None,
    scale: float | None = None,
    implementation: Implementation | None = None,
    tuning: object | None = None,
    return_residuals: Literal[True],
) -> BlockTopKResult: ...


def block_topk_decode(
    q: Float[Array, "B N H"],
    key_pages: Real[Array, "R K P H"],
    value_pages: Real[Array, "R K P H"],
    key_means: Float[Array, "R K H"],
    page_table: Int[Array, "B M"],
    lengths: Int[Array, " B"],
    *,
    num_blocks: int,
    num_sink_blocks: int = 0,
    num_local_blocks: int = 1,
    key_scales: Float[Array, "R K P"] | None = None,
    value_scales: Float[Array, "R K P"] | None = None,
    scale: float | None = None,
    implementation: Implementation | None = None,
    tuning: object | None = None,
    return_residuals: bool = False,
) -> Float[Array, "B N H"] | BlockTopKResult:
    """Attend to the pages whose mean key scores highest: score_m = mean_g(q_g . mean_m) / sqrt(H).

    Selection is per sequence and KV head. Sink pages and the newest pages are always read and count in `num_blocks`.
    Equal scores go to the lowest page. With `num_blocks` >= M the dense decode itself runs.

    Args:
        q: Queries of the newest token.
        key_pages: Pool of key pages; slots past a sequence's length may hold anything, NaN included.
        value_pages: Pool of value pages.
        key_means: Mean key of the held slots of each page.
        page_table: Page ids of each sequence in order; entries past its last page may hold anything.
        lengths: Tokens held [tokens], the newest included. Length 0 gives zeros.
        num_blocks: Pages read per sequence and KV head, sinks and newest included.
        num_sink_blocks: First pages always read.
        num_local_blocks: Newest pages always read.
        key_scales: Factor of each key vector, for pages of int8 or float8_e4m3fn (`quantise_pages`); None for others.
        value_scales: Factor of each value vector; likewise.
        scale: Logit scale; None is 1/sqrt(H). It does not enter the selection.
        implementation: None picks what works here; a name never falls back silently.
        tuning: Settings of the named implementation; None takes its own choice.
        return_residuals: Also return the log-sum-exp of the logits and the pages read.

    Returns:
        Output [B, N, H] in the dtype of q; on request with the log-sum-exp [B, N], and the logical pages read
        [B, K, min(num_blocks, M)], ascending, filled up with M where a sequence holds fewer pages.

    Raises:
        ValueError: If a shape does not fit or `num_blocks` < sinks + newest.
        NotImplementedError: If the named implementation cannot run this here.

    Example:
        >>> import jax.numpy as jnp
        >>> pages = jnp.eye(3).reshape(3, 1, 1, 3)  # R=3 pages, K=1, P=1, H=3
        >>> table, lengths = jnp.array([[0, 1, 2]]), jnp.array([3])
        >>> q = jnp.array([[[0.0, 9.0, 0.0]]])
        >>> result = block_topk_decode(
        ...     q, pages, pages, pages[:, :, 0], table, lengths, num_blocks=2, return_residuals=True
        ... )
        >>> result.selected.tolist()  # the best page and the newest
        [[[1, 2]]]

    References:
        PAPER.md section 4; DESIGN.md "attention / cache".
    """
    scales = _validate.check_decode(
        q, key_pages, value_pages, page_table, lengths, key_scales, value_scales, scale, implementation
    )
    _validate.check_key_means(key_means, key_pages)
    _validate.check_blocks(num_blocks, num_sink_blocks, num_local_blocks)
    # The mean over the group of q.mean is (mean q).mean; 1/sqrt(H) > 0 changes no order.
    probe = jnp.mean(_grouped(q, key_pages), axis=2)
    counts = {"num_blocks": num_blocks, "num_sink_blocks": num_sink_blocks, "num_local_blocks": num_local_blocks}
    arrays = (q, key_pages, value_pages, probe, key_means, page_table, lengths)
    result = _decode_selected(arrays, scales, counts, scale, implementation, tuning)
    return result if return_residuals else result.out


@overload
def quest_decode(
    q: Float[Array, "B N H"],
    key_pages: Real[Array, "R K P H"],
    value_pages: Real[Array, "R K P H"],
    key_bounds: Float[Array, "R K 2 H"],
    page_table: Int[Array, "B M"],
    lengths: Int[Array, " B"],
    *,
    num_blocks: int,
    num_sink_blocks: int = 0,
    num_local_blocks: int = 1,
    key_scales: Float[Array, "R K P"] | None = None,
    value_scales: Float[Array, "R K P"] | None = None,
    scale: float | None = None,
    implementation: Implementation | None = None,
    tuning: object | None = None,
    return_residuals: Literal[False] = False,
) -> Float[Array, "B N H"]: ...


@overload
def quest_decode(
    q: Float[Array, "B N H"],
    key_pages: Real[Array, "R K P H"],
    value_pages: Real[Array, "R K P H"],
    key_bounds: Float[Array, "R K 2 H"],
    page_table: Int[Array, "B M"],
    lengths: Int[Array, " B"],
    *,
    num_blocks: int,
    num_sink_blocks: int = 0,
    num_local_blocks: int = 1,
    key_scales: Float[Array, "R K P"] | None = None,
    value_scales: Float[Array, "R K P"] | None = None,
    scale: float | None = None,
    implementation: Implementation | None = None,
    tuning: object | None = None,
    return_residuals: Literal[True],
) -> BlockTopKResult: ...


def quest_decode(
    q: Float[Array, "B N H"],
    key_pages: Real[Array, "R K P H"],
    value_pages: Real[Array, "R K P H"],
    key_bounds: Float[Array, "R K 2 H"],
    page_table: Int[Array, "B M"],
    lengths: Int[Array, " B"],
    *,
    num_blocks: int,
    num_sink_blocks: int = 0,
    num_local_blocks: int = 1,
    key_scales: Float[Array, "R K P"] | None = None,
    value_scales: Float[Array, "R K P"] | None = None,
    scale: float | None = None,
    implementation: Implementation | None = None,
    tuning: object | None = None,
    return_residuals: bool = False,
) -> Float[Array, "B N H"] | BlockTopKResult:
    """Attend to the pages with the largest bound of q . key: score_m = mean_g(sum_h max(q_gh low_mh, q_gh high_mh)).

    All else is as in `block_topk_decode`.

    Args:
        q: Queries of the newest token.
        key_pages: Pool of key pages; slots past a sequence's length may hold anything, NaN included.
        value_pages: Pool of value pages.
        key_bounds: Smallest and largest key of the held slots of each page by dimension (`page_bounds`).
        page_table: Page ids of each sequence in order; entries past its last page may hold anything.
        lengths: Tokens held [tokens], the newest included. Length 0 gives zeros.
        num_blocks: Pages read per sequence and KV head, sinks and newest included.
        num_sink_blocks: First pages always read.
        num_local_blocks: Newest pages always read.
        key_scales: Factor of each key vector, for pages of int8 or float8_e4m3fn (`quantise_pages`); None for others.
        value_scales: Factor of each value vector; likewise.
        scale: Logit scale; None is 1/sqrt(H). It does not enter the selection.
        implementation: None picks what works here; a name never falls back silently.
        tuning: Settings of the named implementation; None takes its own choice.
        return_residuals: Also return the log-sum-exp of the logits and the pages read.

    Returns:
        As `block_topk_decode`.

    Raises:
        ValueError: If a shape does not fit or `num_blocks` < sinks + newest.
        NotImplementedError: If the named implementation cannot run this here.

    Example:
        >>> import jax.numpy as jnp
        >>> from pallas_kernels import page_bounds
        >>> pages = jnp.array([1.0, -9.0, 4.0, 4.0, 0.0, 0.0]).reshape(3, 1, 2, 1)  # R=3 pages, K=1, P=2, H=1
        >>> bounds = page_bounds(pages, jnp.ones((3, 1, 2), bool))
        >>> table, lengths = jnp.array([[0, 1, 2]]), jnp.array([6])
        >>> q = jnp.array([[[-1.0]]])
        >>> quest_decode(
        ...     q, pages, pages, bounds, table, lengths, num_blocks=2, return_residuals=True
        ... ).selected.tolist()  # q . key <= 9, -4, 0
        [[[0, 2]]]

    References:
        Quest: Query-Aware Sparsity for Efficient Long-Context LLM Inference (arXiv 2406.10774). There each query head
        selects for itself; here the heads of a group share one selection, by their mean bound.
    """
    scales = _validate.check_decode(
        q, key_pages, value_pages, page_table, lengths, key_scales, value_scales, scale, implementation
    )
    _validate.check_key_bounds(key_bounds, key_pages)
    _validate.check_blocks(num_blocks, num_sink_blocks, num_local_blocks)
    # max(q low, q high) = min(q, 0) low + max(q, 0) high, so the mean over the group folds into the query.
    queries = _grouped(q, key_pages)
    probe = jnp.concatenate([jnp.mean(part, axis=2) for part in (jnp.minimum(queries, 0), jnp.maximum(queries, 0))], -1)
    counts = {"num_blocks": num_blocks, "num_sink_blocks": num_sink_blocks, "num_local_blocks": num_local_blocks}
    summaries = key_bounds.reshape(*key_bounds.shape[:2], -1)
    arrays = (q, key_pages, value_pages, probe, summaries, page_table, lengths)
    result = _decode_selected(arrays, scales, counts, scale, implementation, tuning)
    return result if return_residuals else result.out


def _decode_selected(
    arrays: tuple[Array, ...],
    scales: tuple[Array, ...],
    counts: dict[str, int],
    scale: float | None,
    implementation: Implementation | None,
    tuning: object | None,
) -> BlockTopKResult:
    """Select pages by probe . summary and read them; a budget that covers the table reads it without selecting."""
    q, key_pages, value_pages, _, _, page_table, lengths = arrays
    max_pages, page_len = page_table.shape[1], key_pages.shape[2]
    if counts["num_blocks"] < max_pages:
        found = _dispatch.block_topk_decode(implementation, arrays, scales, tuning, scale=scale, **counts)
        return BlockTopKResult(*found)
    out, lse = _dispatch.paged_decode(
        implementation, (q, key_pages, value_pages, page_table, lengths), scales, None, scale=scale
    )
    pages = jnp.arange(max_pages, dtype=jnp.int32)[None, :]
    held = (lengths + page_len - 1) // page_len
    selected = jnp.where(pages < held[:, None], pages, max_pages)[:, None, :]
    return BlockTopKResult(out, lse, jnp.broadcast_to(selected, (q.shape[0], key_pages.shape[1], max_pages)))


def _grouped(q: Float[Array, "B N H"], key_pages: Real[Array, "R K P H"]) -> Float[Array, "B K G H"]:
    """Return the queries of each KV head in float32."""
    return q.astype(jnp.float32).reshape(q.shape[0], key_pages.shape[1], -1, q.shape[2])
