"""The public operations around a decode: fill pages, keep their summaries, choose among pages, copy them.

Called by `kinetics_jax.attention`.
"""

from typing import overload

import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float, Int, Real

from . import _dispatch, _quantise, _validate, _xla
from ._validate import Implementation


@overload
def append_kv(
    key_pages: Float[Array, "R K P H"],
    value_pages: Float[Array, "R K P H"],
    key_means: Float[Array, "R K H"],
    page_table: Int[Array, "B M"],
    lengths: Int[Array, " B"],
    keys: Float[Array, "B K H"],
    values: Float[Array, "B K H"],
    *,
    key_scales: None = None,
    value_scales: None = None,
    implementation: Implementation | None = None,
) -> tuple[Float[Array, "R K P H"], Float[Array, "R K P H"], Float[Array, "R K H"]]: ...


@overload
def append_kv(
    key_pages: Real[Array, "R K P H"],
    value_pages: Real[Array, "R K P H"],
    key_means: Float[Array, "R K H"],
    page_table: Int[Array, "B M"],
    lengths: Int[Array, " B"],
    keys: Float[Array, "B K H"],
    values: Float[Array, "B K H"],
    *,
    key_scales: Float[Array, "R K P"],
    value_scales: Float[Array, "R K P"],
    implementation: Implementation | None = None,
) -> tuple[
    Real[Array, "R K P H"],
    Real[Array, "R K P H"],
    Float[Array, "R K H"],
    Float[Array, "R K P"],
    Float[Array, "R K P"],
]: ...


def append_kv(
    key_pages: Real[Array, "R K P H"],
    value_pages: Real[Array, "R K P H"],
    key_means: Float[Array, "R K H"],
    page_table: Int[Array, "B M"],
    lengths: Int[Array, " B"],
    keys: Float[Array, "B K H"],
    values: Float[Array, "B K H"],
    *,
    key_scales: Float[Array, "R K P"] | None = None,
    value_scales: Float[Array, "R K P"] | None = None,
    implementation: Implementation | None = None,
) -> tuple[Array, ...]:
    """Write one token per sequence at position lengths - 1 and renew the mean key of its page.

    Under `jit` with donated pools, or with the pools as loop carry, the update is in place. A sequence of length 0,
    beyond its table, or whose table names no page of the pool, is not written. No two sequences may share the page
    that they write.

    Quantised pages take the new token as `quantise_pages` rounds it. The mean is that of the keys as the page then
    holds them, page * scale, since those are what a decode attends to.

    Args:
        key_pages: Pool of key pages.
        value_pages: Pool of value pages.
        key_means: Mean key of the held slots of each page.
        page_table: Page ids of each sequence in order.
        lengths: Tokens held [tokens], the new one included (the same lengths that the decode step then takes).
        keys: The new keys.
        values: The new values.
        key_scales: Factor of each key vector, for pages of int8 or float8_e4m3fn; None for others.
        value_scales: Factor of each value vector; likewise.
        implementation: None picks what works here; a name never falls back silently.

    Returns:
        The new key_pages, value_pages and key_means; of quantised pages also the new key_scales and value_scales.

    Raises:
        ValueError: If a shape does not fit, or scales are missing or too many.
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
    _validate.check_pages(key_pages, value_pages, page_table, lengths, key_scales, value_scales)
    _validate.check_key_means(key_means, key_pages)
    _validate.check_new_kv(keys, values, key_pages, page_table)
    scales = tuple(pool for pool in (key_scales, value_scales) if pool is not None)
    arrays = (key_pages, value_pages, key_means, page_table, lengths, keys, values)
    return _dispatch.append_kv(implementation, arrays, scales)


def append_bounds(
    key_bounds: Float[Array, "R K 2 H"],
    page_table: Int[Array, "B M"],
    lengths: Int[Array, " B"],
    keys: Float[Array, "B K H"],
    *,
    page_len: int,
) -> Float[Array, "R K 2 H"]:
    """Widen the bounds of the page that each new key goes to: the (min, max) over its slots that `quest_decode` reads.

    Called beside `append_kv` with the same table, lengths and keys. The first key of a page starts its bounds anew.
    A sequence that `append_kv` does not write changes no bounds either. Bounds of quantised pages are those of what the
    pages hold: `append_bounds(..., dequantise_pages(*quantise_pages(keys, key_pages.dtype)), ...)`.

    Args:
        key_bounds: Smallest and largest key of each page by dimension, in the dtype of the pages.
        page_table: Page ids of each sequence in order.
        lengths: Tokens held [tokens], the new one included.
        keys: The new keys.
        page_len: Tokens in a page, P.

    Returns:
        The new key_bounds.

    Raises:
        ValueError: If a shape does not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> bounds, table = jnp.full((1, 1, 2, 1), jnp.nan), jnp.array([[0]])
        >>> for length, key in ((1, 5.0), (2, -3.0)):
        ...     bounds = append_bounds(bounds, table, jnp.array([length]), jnp.full((1, 1, 1), key), page_len=2)
        >>> bounds.ravel().tolist()
        [-3.0, 5.0]
    """
    _validate.check_new_bounds(key_bounds, page_table, lengths, keys, page_len)
    return _xla.append_bounds(key_bounds, page_table, lengths, keys, page_len=page_len)


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


def gather_pages(pages: Real[Array, "R K P H"], page_table: Int[Array, "B M"]) -> Real[Array, "B K S H"]:
    """Copy the pages of each sequence into one contiguous array, S = M * P.

    Args:
        pages: Pool of key or value pages; quantised ones come as they are.
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


def page_bounds(pages: Float[Array, "*B P H"], held: Bool[Array, "*#B P"]) -> Float[Array, "*B 2 H"]:
    """Find the smallest and the largest key of each page by dimension: what `append_bounds` keeps for `quest_decode`.

    Args:
        pages: Pages of keys.
        held: Which slots hold a token; the others may hold anything, NaN included.

    Returns:
        The minima and the maxima in the dtype of the pages; zeros for a page that holds nothing.

    Example:
        >>> import jax.numpy as jnp
        >>> page_bounds(jnp.array([[1.0], [5.0], [jnp.nan]]), jnp.array([True, True, False])).tolist()
        [[1.0], [5.0]]
    """
    return _xla.page_bounds(pages, held)


def quantise_pages(
    entries: Float[Array, "*B H"], dtype: DTypeLike, *, scale_dtype: DTypeLike = jnp.bfloat16
) -> tuple[Real[Array, "*B H"], Float[Array, "*B"]]:
    """Quantise keys or values, each vector by its own scale: page = round(entry / scale), scale = absmax / largest.

    Symmetric, to nearest even; `largest` is 127 of int8 and 448 of float8_e4m3fn. The scale is rounded to its dtype
    first, so that an entry is off by half a step at most: scale / 2 of int8, 1/16 of itself of float8_e4m3fn (scale /
    1024 of the smallest). A vector of zeros stays one, by a scale of 1.

    Args:
        entries: Finite vectors of any number of axes: whole pages [R, K, P, H], or new tokens [B, K, H].
        dtype: Of the pages: int8 or float8_e4m3fn.
        scale_dtype: Of the scales: bfloat16 or float32.

    Returns:
        The pages, and the scale of each vector.

    Raises:
        ValueError: If a dtype is none of these.

    Example:
        >>> import jax.numpy as jnp
        >>> pages, scales = quantise_pages(jnp.array([[254.0, -3.1, 0.0], [0.0, 0.0, 0.0]]), jnp.int8)
        >>> pages.tolist(), scales.tolist()
        ([[127, -2, 0], [0, 0, 0]], [2.0, 1.0])
    """
    _validate.check_quantised_dtype(dtype)
    _validate.check_scale_dtype("scale_dtype", scale_dtype)
    return _quantise.quantise(entries, dtype, scale_dtype)


def dequantise_pages(pages: Real[Array, "*B H"], scales: Float[Array, "*B"]) -> Float[Array, "*B H"]:
    """Return the entries that quantised pages stand for: page * scale, in float32.

    Args:
        pages: Pages of int8 or float8_e4m3fn.
        scales: The scale of each vector.

    Returns:
        The entries: what `page_means` and `page_bounds` summarise.

    Example:
        >>> import jax.numpy as jnp
        >>> dequantise_pages(jnp.array([[127, -2]], "int8"), jnp.array([0.5])).tolist()
        [[63.5, -1.0]]
    """
    return _quantise.dequantise(pages, scales)
