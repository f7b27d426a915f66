"""The public operations around a decode: summaries of whole pages, choose among pages, copy them, quantise them.

Called by `kinetics_jax.attention`. What a step appends is in `_append`.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float, Int, Real

from . import _quantise, _validate, _xla


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
