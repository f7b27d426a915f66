"""The public operations on a paged KV cache: validate, pick an implementation, run it.

Called by `kinetics_jax.attention`. This version has the XLA implementation only; quantised pages, log-sum-exp
outputs and the Pallas kernels are left out.
"""

import math
from typing import Literal, overload

from jaxtyping import Array, Bool, Float, Int

from . import _validate, _xla
from ._validate import Implementation


@overload
def block_topk_decode(
    q: Float[Array, "B N H"],
    key_pages: Float[Array, "R K P H"],
    value_pages: Float[Array, "R K P H"],
    key_means: Float[Array, "R K H"],
    page_table: Int[Array, "B M"],
    lengths: Int[Array, " B"],
    *,
    num_blocks: int,
    num_sink_blocks: int = 0,
    num_local_blocks: int = 1,
    scale: float | None = None,
    implementation: Implementation | None = None,
    return_selection: Literal[False] = False,
) -> Float[Array, "B N H"]: ...


@overload
def block_topk_decode(
    q: Float[Array, "B N H"],
    key_pages: Float[Array, "R K P H"],
    value_pages: Float[Array, "R K P H"],
    key_means: Float[Array, "R K H"],
    page_table: Int[Array, "B M"],
    lengths: Int[Array, " B"],
    *,
    num_blocks: int,
    num_sink_blocks: int = 0,
    num_local_blocks: int = 1,
    scale: float | None = None,
    implementation: Implementation | None = None,
    return_selection: Literal[True],
) -> tuple[Float[Array, "B N H"], Int[Array, "B K J"]]: ...


def block_topk_decode(
    q: Float[Array, "B N H"],
    key_pages: Float[Array, "R K P H"],
    value_pages: Float[Array, "R K P H"],
    key_means: Float[Array, "R K H"],
    page_table: Int[Array, "B M"],
    lengths: Int[Array, " B"],
    *,
    num_blocks: int,
    num_sink_blocks: int = 0,
    num_local_blocks: int = 1,
    scale: float | None = None,
    implementation: Implementation | None = None,
    return_selection: bool = False,
) -> Float[Array, "B N H"] | tuple[Float[Array, "B N H"], Int[Array, "B K J"]]:
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
        scale: Logit scale; None is 1/sqrt(H). It does not enter the selection.
        implementation: None picks what works here; a name never falls back silently.
        return_selection: Also return the pages read.

    Returns:
        Output [B, N, H] in the dtype of q, and on request the logical pages read [B, K, min(num_blocks, M)],
        ascending, filled up with M where a sequence holds fewer pages.

    Raises:
        ValueError: If a shape does not fit or `num_blocks` < sinks + newest.
        NotImplementedError: If the named implementation does not exist here.

    Example:
        >>> import jax.numpy as jnp
        >>> pages = jnp.eye(3).reshape(3, 1, 1, 3)  # R=3 pages, K=1, P=1, H=3
        >>> table, lengths = jnp.array([[0, 1, 2]]), jnp.array([3])
        >>> q = jnp.array([[[0.0, 9.0, 0.0]]])
        >>> _, selected = block_topk_decode(
        ...     q, pages, pages, pages[:, :, 0], table, lengths, num_blocks=2, return_selection=True
        ... )
        >>> selected.tolist()  # the best page and the newest
        [[[1, 2]]]

    References:
        PAPER.md section 4; DESIGN.md "attention / cache".
    """
    _validate.check_implementation(implementation)
    _validate.check_pages(key_pages, value_pages, page_table, lengths)
    _validate.check_query(q, key_pages, page_table, scale)
    _validate.check_key_means(key_means, key_pages)
    _validate.check_blocks(num_blocks, num_sink_blocks, num_local_blocks)
    out, selected = _xla.block_topk_decode(
        q,
        key_pages,
        value_pages,
        key_means,
        page_table,
        lengths,
        num_blocks=num_blocks,
        num_sink_blocks=num_sink_blocks,
        num_local_blocks=num_local_blocks,
        scale=_logit_scale(q, scale),
    )
    return (out, selected) if return_selection else out


def paged_decode(
    q: Float[Array, "B N H"],
    key_pages: Float[Array, "R K P H"],
    value_pages: Float[Array, "R K P H"],
    page_table: Int[Array, "B M"],
    lengths: Int[Array, " B"],
    *,
    window_len: int | None = None,
    sink_len: int = 0,
    token_mask: Bool[Array, "B K S"] | None = None,
    scale: float | None = None,
    implementation: Implementation | None = None,
) -> Float[Array, "B N H"]:
    """Attend to the whole context: out = softmax(q k^T scale) v, optionally within a window or a mask.

    Args:
        q: Queries of the newest token.
        key_pages: Pool of key pages; slots past a sequence's length may hold anything, NaN included.
        value_pages: Pool of value pages.
        page_table: Page ids of each sequence in order; entries past its last page may hold anything.
        lengths: Tokens held [tokens], the newest included. Length 0 gives zeros.
        window_len: Read only the newest tokens [tokens]; only their pages, and those of the sinks, are touched.
        sink_len: First tokens that are read on top of the window [tokens].
        token_mask: Read only these positions, S = M * P.
        scale: Logit scale; None is 1/sqrt(H).
        implementation: None picks what works here; a name never falls back silently.

    Returns:
        Output [B, N, H] in the dtype of q.

    Raises:
        ValueError: If a shape does not fit, both a window and a mask are given, or sinks without a window.
        NotImplementedError: If the named implementation does not exist here.

    Example:
        >>> import jax.numpy as jnp
        >>> pages = jnp.ones((2, 1, 4, 8))
        >>> paged_decode(jnp.ones((1, 2, 8)), pages, pages, jnp.array([[1, 0]]), jnp.array([5])).shape
        (1, 2, 8)
    """
    _validate.check_implementation(implementation)
    _validate.check_pages(key_pages, value_pages, page_table, lengths)
    _validate.check_query(q, key_pages, page_table, scale)
    _validate.check_window(window_len, sink_len, token_mask, key_pages, page_table)
    return _xla.paged_decode(
        q,
        key_pages,
        value_pages,
        page_table,
        lengths,
        scale=_logit_scale(q, scale),
        window_len=window_len,
        sink_len=sink_len,
        token_mask=token_mask,
    )


def append_kv(
    key_pages: Float[Array, "R K P H"],
    value_pages: Float[Array, "R K P H"],
    key_means: Float[Array, "R K H"],
    page_table: Int[Array, "B M"],
    lengths: Int[Array, " B"],
    keys: Float[Array, "B K H"],
    values: Float[Array, "B K H"],
    *,
    implementation: Implementation | None = None,
) -> tuple[Float[Array, "R K P H"], Float[Array, "R K P H"], Float[Array, "R K H"]]:
    """Write one token per sequence at position lengths - 1 and renew the mean key of its page.

    Under `jit` with donated pools, or with the pools as loop carry, the update is in place. A sequence of length 0,
    beyond its table, or whose table names no page of the pool, is not written. No two sequences may share the page
    that they write.

    Args:
        key_pages: Pool of key pages.
        value_pages: Pool of value pages.
        key_means: Mean key of the held slots of each page.
        page_table: Page ids of each sequence in order.
        lengths: Tokens held [tokens], the new one included (the same lengths that the decode step then takes).
        keys: The new keys.
        values: The new values.
        implementation: None picks what works here; a name never falls back silently.

    Returns:
        The new key_pages, value_pages and key_means.

    Raises:
        ValueError: If a shape does not fit.
        NotImplementedError: If the named implementation does not exist here.

    Example:
        >>> import jax.numpy as jnp
        >>> pages, means = jnp.zeros((1, 1, 2, 4)), jnp.zeros((1, 1, 4))
        >>> token = jnp.ones((1, 1, 4))
        >>> keys, _, means = append_kv(pages, pages, means, jnp.array([[0]]), jnp.array([1]), token, token)
        >>> keys[0, 0, :, 0].tolist(), means[0, 0, 0].item()
        ([1.0, 0.0], 1.0)
    """
    _validate.check_implementation(implementation)
    _validate.check_pages(key_pages, value_pages, page_table, lengths)
    _validate.check_key_means(key_means, key_pages)
    _validate.check_new_kv(keys, values, key_pages, page_table)
    return _xla.append_kv(key_pages, value_pages, key_means, page_table, lengths, keys, values)


def choose_pages(
    scores: Float[Array, "B K M"],
    num_held: Int[Array, " B"],
    *,
    num_blocks: int,
    num_sink_blocks: int = 0,
    num_local_blocks: int = 1,
) -> Int[Array, "B K J"]:
    """Choose the pages of highest score as `block_topk_decode` does, for scores of any kind.

    Sink pages and the newest pages are always chosen and count in `num_blocks`. Equal scores go to the lowest page.
    Tokens are chosen in the same way: as pages of one token.

    Args:
        scores: Score of each page; those of pages not held may be anything, NaN included.
        num_held: Pages that each sequence holds: its first ones.
        num_blocks: Pages chosen per sequence and KV head, sinks and newest included.
        num_sink_blocks: First pages always chosen.
        num_local_blocks: Newest pages always chosen.

    Returns:
        The logical pages chosen [B, K, min(num_blocks, M)], ascending, filled up with M where fewer are held.

    Raises:
        ValueError: If a shape does not fit or `num_blocks` < sinks + newest.

    Example:
        >>> import jax.numpy as jnp
        >>> scores = jnp.array([[[5.0, 7.0, 7.0, 0.0, 9.0]]])  # the last page is not held
        >>> choose_pages(scores, jnp.array([4]), num_blocks=2).tolist()
        [[[1, 3]]]
    """
    _validate.check_scores(scores, num_held)
    _validate.check_blocks(num_blocks, num_sink_blocks, num_local_blocks)
    return _xla.choose_pages(
        scores,
        num_held,
        num_blocks=num_blocks,
        num_sink_blocks=num_sink_blocks,
        num_local_blocks=num_local_blocks,
    )


def gather_pages(pages: Float[Array, "R K P H"], page_table: Int[Array, "B M"]) -> Float[Array, "B K S H"]:
    """Copy the pages of each sequence into one contiguous array, S = M * P.

    Args:
        pages: Pool of key or value pages.
        page_table: Page ids of each sequence in order; ids out of range read some page.

    Returns:
        The entries of all M pages in order of position; those past the sequence's length are meaningless.

    Example:
        >>> import jax.numpy as jnp
        >>> pages = jnp.arange(6.0).reshape(3, 1, 2, 1)
        >>> gather_pages(pages, jnp.array([[2, 0]])).ravel().tolist()
        [4.0, 5.0, 0.0, 1.0]
    """
    heads = _xla.gather_heads(pages, page_table[:, None, :])
    return heads.reshape(*heads.shape[:2], -1, heads.shape[-1])


def page_means(pages: Float[Array, "*B P H"], held: Bool[Array, "*#B P"]) -> Float[Array, "*B H"]:
    """Average the keys that each page holds, in float32: what `append_kv` keeps and `block_topk_decode` scores.

    Args:
        pages: Pages of keys.
        held: Which slots hold a token; the others may hold anything, NaN included.

    Returns:
        The means in float32; zeros for a page that holds nothing.

    Example:
        >>> import jax.numpy as jnp
        >>> page_means(jnp.array([[1.0], [5.0], [jnp.nan]]), jnp.array([True, True, False])).tolist()
        [3.0]
    """
    return _xla.page_means(pages, held)


def _logit_scale(q: Array, scale: float | None) -> float:
    return 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
