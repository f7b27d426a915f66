"""The one validator of every operation of this room: oracle and implementations raise the same errors.

It looks at shapes, dtypes and static counts only, so it costs nothing under `jit`. Page ids and lengths are data:
entries of the page table past a sequence's last page may hold anything.
"""

from typing import Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, DTypeLike

from ._quantise import LARGEST, is_quantised

Implementation = Literal["xla", "mosaic_gpu", "triton", "mosaic_tpu"]

_QUANTISED = " or ".join(LARGEST)


def check_implementation(implementation: str | None) -> None:
    """Check that the name is one of the house; None stands for the fastest that works here.

    Raises:
        ValueError: If the name is unknown.
    """
    if implementation is not None and implementation not in get_args(Implementation):
        known = ", ".join(map(repr, get_args(Implementation)))
        raise ValueError(f"unknown implementation {implementation!r}. Known: {known}, or None to choose")


def check_decode(
    q: Array,
    key_pages: Array,
    value_pages: Array,
    page_table: Array,
    lengths: Array,
    key_scales: Array | None,
    value_scales: Array | None,
    scale: float | None,
    implementation: str | None,
) -> tuple[Array, ...]:
    """Check what the decodes share, and return the scales of the pages: two, or none.

    Raises:
        ValueError: If anything does not fit; the message says what was wanted.
    """
    check_implementation(implementation)
    check_pages(key_pages, value_pages, page_table, lengths, key_scales, value_scales)
    check_query(q, key_pages, page_table, scale)
    return tuple(scales for scales in (key_scales, value_scales) if scales is not None)


def check_pages(
    key_pages: Array,
    value_pages: Array,
    page_table: Array,
    lengths: Array,
    key_scales: Array | None = None,
    value_scales: Array | None = None,
) -> None:
    """Check the paged cache: key_pages, value_pages [R, K, P, H], page_table [B, M], lengths [B], scales [R, K, P].

    Raises:
        ValueError: If a shape or dtype does not fit; the message says what was wanted.
    """
    if key_pages.ndim != 4:
        raise ValueError(f"key_pages must be [R, K, P, H]; got shape {key_pages.shape}")
    _check_array("value_pages", value_pages, "[R, K, P, H] of key_pages", key_pages.shape)
    if value_pages.dtype != key_pages.dtype:
        raise ValueError(f"value_pages must share the dtype of key_pages; got {value_pages.dtype}, {key_pages.dtype}")
    dtype = key_pages.dtype
    if not is_quantised(key_pages) and not (jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize > 1):
        raise ValueError(
            f"pages must be floating point (bfloat16 or float32), or {_QUANTISED} with scales; got {dtype}"
        )
    if (key_scales is None) != (value_scales is None):
        raise ValueError(f"key_scales and value_scales come together; got {_of(key_scales)} and {_of(value_scales)}")
    if is_quantised(key_pages) and key_scales is None:
        raise ValueError(f"pages of {dtype} need key_scales and value_scales; got none. quantise_pages makes them")
    for name, scales in (("key_scales", key_scales), ("value_scales", value_scales)):
        if scales is None:
            continue
        if not is_quantised(key_pages):
            raise ValueError(f"scales belong to pages of {_QUANTISED}; got pages of {dtype}. Drop {name}")
        _check_array(name, scales, "[R, K, P] of key_pages", key_pages.shape[:3])
        check_scale_dtype(name, scales.dtype)
    check_table(page_table, lengths)


def check_quantised_dtype(dtype: DTypeLike) -> None:
    """Check that pages of this dtype can be made.

    Raises:
        ValueError: If it is no dtype of quantised pages.
    """
    if jnp.dtype(dtype).name not in LARGEST:
        raise ValueError(f"quantised pages are {_QUANTISED}; got dtype={jnp.dtype(dtype).name}")


def check_scale_dtype(name: str, dtype: DTypeLike) -> None:
    """Check that scales of this dtype have the range of float32.

    Raises:
        ValueError: If they have not.
    """
    if jnp.dtype(dtype).name not in ("bfloat16", "float32"):
        raise ValueError(f"{name} must be bfloat16 or float32; got {jnp.dtype(dtype).name}")


def check_query(q: Array, key_pages: Array, page_table: Array, scale: float | None) -> None:
    """Check q [B, N, H] against the cache, and the logit scale.

    Raises:
        ValueError: If the shape does not fit, N is no multiple of K, or the scale is not positive.
    """
    _, num_kv_heads, _, head_dim = key_pages.shape
    if q.ndim != 3 or q.shape[0] != page_table.shape[0] or q.shape[2] != head_dim:
        raise ValueError(f"q must be [B={page_table.shape[0]}, N, H={head_dim}]; got shape {q.shape}")
    if q.shape[1] == 0 or q.shape[1] % num_kv_heads:
        raise ValueError(
            f"query heads must be a multiple of the KV heads; got N={q.shape[1]}, K={num_kv_heads}. "
            f"Use N = {num_kv_heads}, {2 * num_kv_heads}, ..."
        )
    if scale is not None and not scale > 0:
        raise ValueError(f"scale must be positive; got {scale}. Use None for 1/sqrt(H)")


def check_key_means(key_means: Array, key_pages: Array) -> None:
    """Check key_means [R, K, H] against the pages.

    Raises:
        ValueError: If the shape does not fit.
    """
    num_pages, num_kv_heads, _, head_dim = key_pages.shape
    _check_array("key_means", key_means, "[R, K, H] of key_pages", (num_pages, num_kv_heads, head_dim))


def check_key_bounds(key_bounds: Array, key_pages: Array) -> None:
    """Check key_bounds [R, K, 2, H] against the pages.

    Raises:
        ValueError: If the shape does not fit.
    """
    num_pages, num_kv_heads, _, head_dim = key_pages.shape
    _check_array("key_bounds", key_bounds, "[R, K, 2, H] of key_pages", (num_pages, num_kv_heads, 2, head_dim))


def check_blocks(num_blocks: int, num_sink_blocks: int, num_local_blocks: int) -> None:
    """Check the counts of pages read.

    Raises:
        ValueError: If a count is negative, nothing is read, or the always-read pages exceed the budget.
    """
    if num_sink_blocks < 0 or num_local_blocks < 0:
        raise ValueError(
            f"num_sink_blocks and num_local_blocks must not be negative; got {num_sink_blocks}, {num_local_blocks}"
        )
    if num_blocks < max(1, num_sink_blocks + num_local_blocks):
        raise ValueError(
            f"num_blocks counts every page read, sinks and newest included; got num_blocks={num_blocks}, "
            f"num_sink_blocks={num_sink_blocks}, num_local_blocks={num_local_blocks}. "
            f"Use num_blocks >= {max(1, num_sink_blocks + num_local_blocks)}."
        )


def check_new_kv(keys: Array, values: Array, key_pages: Array, page_table: Array) -> None:
    """Check the token to append: keys, values [B, K, H].

    Raises:
        ValueError: If a shape does not fit.
    """
    wanted = (page_table.shape[0], key_pages.shape[1], key_pages.shape[3])
    _check_array("keys", keys, "[B, K, H]", wanted)
    _check_array("values", values, "[B, K, H]", wanted)


def check_not_quantised(key_pages: Array) -> None:
    """Check that the pages take heads as they are.

    Raises:
        ValueError: If they are quantised.
    """
    if is_quantised(key_pages):
        raise ValueError(
            f"rotate_and_append_kv writes pages that are not quantised; got {key_pages.dtype}. "
            "Use rms_norm and rotate, then append_kv with scales"
        )


def check_rotation(
    cos: Array, sin: Array, norms: tuple[Array, ...] | None, q: Array, keys: Array, values: Array
) -> None:
    """Check the angles cos, sin [B, H/2] of each token, the weights [H] of two norms, and that heads share a dtype.

    Raises:
        ValueError: If a shape, a dtype or a number does not fit, or heads have no halves.
    """
    batch_size, _, head_dim = q.shape
    if not q.dtype == keys.dtype == values.dtype:
        raise ValueError(f"q, keys and values must share a dtype; got {q.dtype}, {keys.dtype} and {values.dtype}")
    if head_dim % 2:
        raise ValueError(f"rotation turns the two halves of a head; got head_dim={head_dim}. Use an even one")
    for name, angle in (("cos", cos), ("sin", sin)):
        _check_array(name, angle, "[B, H / 2]", (batch_size, head_dim // 2))
        if angle.dtype != jnp.float32:
            raise ValueError(f"{name} must be float32; got {angle.dtype}")
    if norms is None:
        return
    if len(norms) != 2:
        raise ValueError(f"norms are two, of queries and of keys, or None; got {len(norms)}")
    for norm in norms:
        _check_array("norms", norm, "[H] each", (head_dim,))


def check_new_bounds(key_bounds: Array, page_table: Array, lengths: Array, keys: Array, page_len: int) -> None:
    """Check the bounds [R, K, 2, H] and the keys [B, K, H] that widen them.

    Raises:
        ValueError: If a shape or dtype does not fit, or a page holds nothing.
    """
    if key_bounds.ndim != 4 or key_bounds.shape[2] != 2:
        raise ValueError(f"key_bounds must be [R, K, 2, H]; got shape {key_bounds.shape}")
    check_table(page_table, lengths)
    wanted = (page_table.shape[0], key_bounds.shape[1], key_bounds.shape[3])
    _check_array("keys", keys, "[B, K, H]", wanted)
    if page_len < 1:
        raise ValueError(f"page_len must be at least 1 token; got {page_len}")


def check_partials(out: Array, lse: Array) -> None:
    """Check partial outputs [X, B, N, H] and their log-sum-exp [X, B, N].

    Raises:
        ValueError: If a shape does not fit, or there is no part.
    """
    if out.ndim != 4 or out.shape[0] < 1:
        raise ValueError(f"out must be [X, B, N, H] with X >= 1 parts; got shape {out.shape}")
    _check_array("lse", lse, "[X, B, N] of out", out.shape[:3])


def check_scores(scores: Array, num_held: Array) -> None:
    """Check page scores [B, K, M] and the page counts [B] of the sequences.

    Raises:
        ValueError: If a shape or dtype does not fit.
    """
    if scores.ndim != 3:
        raise ValueError(f"scores must be [B, K, M]; got shape {scores.shape}")
    _check_array("num_held", num_held, "[B] of scores", scores.shape[:1])
    if not jnp.issubdtype(num_held.dtype, jnp.integer):
        raise ValueError(f"num_held must be int32; got {num_held.dtype}")


def check_window(
    window_len: int | None, sink_len: int, token_mask: Array | None, key_pages: Array, page_table: Array
) -> None:
    """Check the optional restrictions of the dense decode: a window with sinks, or a mask.

    Raises:
        ValueError: If the window is empty, the sinks have no window or a negative length, the mask is not bool
            [B, K, M * P], or there is a window beside it.
    """
    if window_len is not None and window_len < 1:
        raise ValueError(f"window_len must be at least 1 token; got {window_len}. Use None to read everything")
    if sink_len < 0 or (sink_len > 0 and window_len is None):
        raise ValueError(
            f"sink_len counts the first tokens read on top of a window; got sink_len={sink_len}, "
            f"window_len={window_len}. Use sink_len=0, or set window_len."
        )
    if token_mask is not None:
        if window_len is not None:
            raise ValueError("a window and a mask exclude each other; got both. Put the window into token_mask.")
        batch_size, max_pages = page_table.shape
        wanted = (batch_size, key_pages.shape[1], max_pages * key_pages.shape[2])
        _check_array("token_mask", token_mask, "[B, K, M * P]", wanted)
        if token_mask.dtype != jnp.bool_:
            raise ValueError(f"token_mask must be bool; got {token_mask.dtype}")


def check_table(page_table: Array, lengths: Array) -> None:
    """Check page_table [B, M] and lengths [B], without the pages.

    Raises:
        ValueError: If a shape or dtype does not fit.
    """
    if page_table.ndim != 2 or not jnp.issubdtype(page_table.dtype, jnp.integer):
        raise ValueError(f"page_table must be int32 [B, M]; got {page_table.dtype} {page_table.shape}")
    _check_array("lengths", lengths, "[B] of page_table", page_table.shape[:1])
    if not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise ValueError(f"lengths must be int32; got {lengths.dtype}")


def _of(scales: Array | None) -> str:
    return "None" if scales is None else f"shape {scales.shape}"


def _check_array(name: str, array: Array, meaning: str, wanted: tuple[int, ...]) -> None:
    if array.shape != wanted:
        raise ValueError(f"{name} must have shape {meaning} = {wanted}; got {array.shape}")
