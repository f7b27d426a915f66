"""The XLA implementation: plain jnp that runs on every device, under `jit`, `vmap` and `while_loop`.

Called by `_api` with validated arguments. It gathers the pages to read into a contiguous [B, K, J, P, H] copy and
multiplies that; a kernel that reads pages in place is what the Pallas implementations are for.

The KV head is folded into the page id, so that one gather yields the layout the matrix product wants:

    pool [R, K, P, H] -> rows [R * K, P, H],   row of (page r, head k) = r * K + k

Of quantised pages only what is gathered is widened. Their scales multiply logits and weights, not the entries: a key's
scale is one factor of its logit, a value's one factor of its weight.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Real

from ._heads import rms_norm, rotate
from ._quantise import dequantise, operand_dtype, quantise


def gather_heads(pages: Real[Array, "R K *PH"], page_ids: Int[Array, "B #K J"]) -> Real[Array, "B K J *PH"]:
    """Copy pages [R, K, P, H], scales [R, K, P] or means [R, K, H] by id and head; ids out of range read some page."""
    page_ids = jnp.clip(page_ids, 0, pages.shape[0] - 1)
    heads = jnp.arange(pages.shape[1], dtype=page_ids.dtype)[None, :, None]
    return jax.lax.platform_dependent(pages, page_ids, heads, tpu=_gather_windows, default=_gather_rows)


def _gather_windows(pages: Array, page_ids: Array, heads: Array) -> Array:
    # A TPU keeps [P, H] in tiles: flat rows would copy the whole pool into another layout.
    return pages.at[page_ids, heads].get(mode="promise_in_bounds")


def _gather_rows(pages: Array, page_ids: Array, heads: Array) -> Array:
    # One flat row per page: half again as fast on CPU as gathering [P, H] windows.
    num_pages, num_kv_heads = pages.shape[:2]
    rows, row_ids = pages.reshape(num_pages * num_kv_heads, -1), page_ids * num_kv_heads + heads
    return rows.at[row_ids].get(mode="promise_in_bounds").reshape(*row_ids.shape, *pages.shape[2:])


def attend(
    q: Float[Array, "B N H"],
    keys: Float[Array, "B K S H"],
    values: Float[Array, "B K S H"],
    mask: Bool[Array, "B #K S"],
    scale: float,
    scales: tuple[Float[Array, "B K S"], ...] = (),
) -> tuple[Float[Array, "B N H"], Float[Array, "B N"]]:
    """Softmax attention of one query per sequence over the entries in `mask`, and its log-sum-exp; none gives zeros.

    `scales` are those of the keys and of the values where there are any.
    """
    batch_size, num_heads, head_dim = q.shape
    num_kv_heads = keys.shape[1]
    queries = q.reshape(batch_size, num_kv_heads, num_heads // num_kv_heads, head_dim).astype(keys.dtype)
    # Keys on the left: the product over few query heads is then 1.6 times as fast on CPU.
    logits = jnp.swapaxes(_dot("BKSH,BKGH->BKSG", keys, queries), 2, 3) * jnp.float32(scale)
    entry = mask[:, :, None, :]
    if scales:
        logits *= scales[0].astype(jnp.float32)[:, :, None, :]
    logits = jnp.where(entry, logits, -jnp.inf)
    peak = jnp.max(logits, axis=-1, keepdims=True)
    weights = jnp.where(entry, jnp.exp(logits - jnp.where(peak == -jnp.inf, 0.0, peak)), 0.0)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    # 0 * NaN = NaN: unread slots must be blanked in the values too.
    values = jnp.where(mask[..., None], values, jnp.zeros((), values.dtype))
    if scales:
        weights *= jnp.where(mask, scales[1].astype(jnp.float32), 0.0)[:, :, None, :]
    out = _dot("BKGS,BKSH->BKGH", weights.astype(values.dtype), values)
    out = jnp.where(total > 0, out / jnp.where(total > 0, total, 1.0), 0.0)
    lse = jnp.log(total) + peak  # -inf where nothing is read: both terms are
    return out.reshape(q.shape).astype(q.dtype), lse.reshape(q.shape[:2])


def attend_pages(
    q: Float[Array, "B N H"],
    key_pages: Real[Array, "R K P H"],
    value_pages: Real[Array, "R K P H"],
    page_ids: Int[Array, "B #K J"],
    mask: Bool[Array, "B #K S"],
    scale: float,
    scales: tuple[Float[Array, "R K P"] | None, ...],
) -> tuple[Float[Array, "B N H"], Float[Array, "B N"]]:
    """Gather J pages per sequence and KV head and attend to their S = J * P slots within `mask`."""
    batch_size, num_kv_heads = q.shape[0], key_pages.shape[1]
    shape = (batch_size, num_kv_heads, page_ids.shape[2] * key_pages.shape[2])
    dtype = operand_dtype(q, key_pages)
    keys, values = (
        gather_heads(pages, page_ids).reshape(*shape, key_pages.shape[3]).astype(dtype)
        for pages in (key_pages, value_pages)
    )
    gathered = tuple(gather_heads(pool, page_ids).reshape(shape) for pool in scales if pool is not None)
    return attend(q, keys, values, mask, scale, gathered)


def paged_decode(
    q: Float[Array, "B N H"],
    key_pages: Real[Array, "R K P H"],
    value_pages: Real[Array, "R K P H"],
    page_table: Int[Array, "B M"],
    lengths: Int[Array, " B"],
    *,
    scale: float,
    window_len: int | None = None,
    sink_len: int = 0,
    token_mask: Bool[Array, "B K S"] | None = None,
    key_scales: Float[Array, "R K P"] | None = None,
    value_scales: Float[Array, "R K P"] | None = None,
    tuning: None = None,
) -> tuple[Float[Array, "B N H"], Float[Array, "B N"]]:
    """Read the whole context, its newest `window_len` and first `sink_len` tokens, or the tokens in `token_mask`.

    Returns the output and, of the logits read, the log-sum-exp in float32.
    """
    page_len, max_pages = key_pages.shape[2], page_table.shape[1]
    pages = jnp.arange(max_pages, dtype=jnp.int32)[None, :]
    if window_len is not None:
        # A window of W tokens touches at most ceil((W - 1) / P) + 1 pages: read no others but those of the sinks.
        num_window_pages = (window_len + page_len - 2) // page_len + 1
        num_sink_pages = (sink_len + page_len - 1) // page_len
        if num_window_pages + num_sink_pages < max_pages:
            newest = jnp.clip((lengths - 1) // page_len, num_window_pages - 1, max_pages - 1)
            window = newest[:, None] + jnp.arange(1 - num_window_pages, 1, dtype=jnp.int32)[None, :]
            sinks = jnp.arange(num_sink_pages, dtype=jnp.int32)[None, :]
            # A sink page that the window reaches is read there: once, not twice.
            sinks = jnp.where(sinks < window[:, :1], sinks, max_pages)
            pages = jnp.concatenate([sinks, window], axis=1)
            page_table = jnp.take_along_axis(page_table, pages, axis=1, mode="clip")
    positions = _slot_positions(pages, page_len)
    mask = positions < lengths[:, None]
    if window_len is not None:
        mask &= (positions < sink_len) | (positions >= lengths[:, None] - window_len)
    mask = mask[:, None, :] if token_mask is None else mask[:, None, :] & token_mask
    return attend_pages(q, key_pages, value_pages, page_table[:, None, :], mask, scale, (key_scales, value_scales))


def score_pages(
    probe: Float[Array, "B K C"], summaries: Float[Array, "R K C"], page_table: Int[Array, "B M"]
) -> Float[Array, "B K M"]:
    """Score every page of the table by its summary; what lies past the last page gets any number, NaN included."""
    pages = gather_heads(summaries, page_table[:, None, :])
    return _dot("BKC,BKMC->BKM", probe, pages.astype(jnp.float32))


def choose_pages(
    scores: Float[Array, "B K M"],
    num_held: Int[Array, " B"],
    *,
    num_blocks: int,
    num_sink_blocks: int,
    num_local_blocks: int,
) -> Int[Array, "B K J"]:
    """Choose pages among the `num_held` first ones; ascending, and M where no page is left to choose."""
    max_pages = scores.shape[2]
    # top_k orders -0.0 below 0.0; for us they tie.
    scores = jnp.where(scores == 0, 0.0, scores)
    page = jnp.arange(max_pages, dtype=jnp.int32)[None, None, :]
    held = num_held[:, None, None]
    always = (page < num_sink_blocks) | (page >= held - num_local_blocks)
    scores = jnp.where(always, jnp.inf, scores)
    scores = jnp.where(page < held, scores, -jnp.inf)
    _, selected = jax.lax.top_k(scores, min(num_blocks, max_pages))  # equal scores: the lower index comes first
    selected = jnp.where(selected < held, selected, max_pages)
    # Ascending, so that a budget that covers the context adds up in the order of the dense path.
    return jnp.sort(selected, axis=-1)


def block_topk_decode(
    q: Float[Array, "B N H"],
    key_pages: Real[Array, "R K P H"],
    value_pages: Real[Array, "R K P H"],
    probe: Float[Array, "B K C"],
    summaries: Float[Array, "R K C"],
    page_table: Int[Array, "B M"],
    lengths: Int[Array, " B"],
    *,
    num_blocks: int,
    num_sink_blocks: int,
    num_local_blocks: int,
    scale: float,
    key_scales: Float[Array, "R K P"] | None = None,
    value_scales: Float[Array, "R K P"] | None = None,
    tuning: None = None,
) -> tuple[Float[Array, "B N H"], Float[Array, "B N"], Int[Array, "B K J"]]:
    """Select pages by probe . summary and attend to them; output, log-sum-exp in float32 and the selected pages."""
    page_len = key_pages.shape[2]
    selected = choose_pages(
        score_pages(probe, summaries, page_table),
        (lengths + page_len - 1) // page_len,
        num_blocks=num_blocks,
        num_sink_blocks=num_sink_blocks,
        num_local_blocks=num_local_blocks,
    )
    page_ids = jnp.take_along_axis(page_table[:, None, :], selected, axis=2, mode="clip")
    mask = _slot_positions(selected, page_len) < lengths[:, None, None]
    scales = key_scales, value_scales
    return *attend_pages(q, key_pages, value_pages, page_ids, mask, scale, scales), selected


def append_kv(
    key_pages: Real[Array, "R K P H"],
    value_pages: Real[Array, "R K P H"],
    key_means: Float[Array, "R K H"],
    page_table: Int[Array, "B M"],
    lengths: Int[Array, " B"],
    keys: Float[Array, "B K H"],
    values: Float[Array, "B K H"],
    *scales: Float[Array, "R K P"],
) -> tuple[Array, ...]:
    """Put one token per sequence into its page and renew that page's mean; no other page is touched.

    Returns key_pages, value_pages, key_means and, for quantised pages, the scales of both.
    """
    page_len = key_pages.shape[2]
    page_id, slot = _written_page(page_table, lengths, page_len, key_pages.shape[0])

    # The mean comes from the page itself, not from the old mean: exact in bf16 too, whatever the slot held before.
    # The page is read before and written whole: a read after the write that nothing waits for (dense decoding ignores
    # the means) would race the next layer's write, and XLA would copy the pool to be safe.
    # Values too: a TPU would copy the pool into another layout to write one slot of each page.
    slots = jnp.arange(page_len, dtype=slot.dtype)[None, :]
    is_new = (slots == slot[:, None])[:, None, :, None]

    # The barrier keeps the read out of the kernel that writes: a GPU's would then need a copy of the pool to read from.
    def renewed(pool: Array, entries: Array) -> Array:
        here = is_new if pool.ndim == 4 else is_new[..., 0]
        pages = jnp.where(here, entries.astype(pool.dtype)[:, :, None], pool.at[page_id].get(mode="clip"))
        return jax.lax.optimization_barrier(pages)

    def put(pool: Array, pages: Array) -> Array:
        return pool.at[page_id].set(pages.astype(pool.dtype), mode="drop", unique_indices=True)

    pools, entries = (key_pages, value_pages, *scales), (keys, values)
    if scales:
        keys, key_scale = quantise(keys, key_pages.dtype, scales[0].dtype)
        values, value_scale = quantise(values, value_pages.dtype, scales[1].dtype)
        entries = (keys, values, key_scale, value_scale)
    newest = [renewed(pool, entry) for pool, entry in zip(pools, entries, strict=True)]
    newest_keys = dequantise(newest[0], newest[2]) if scales else newest[0]
    means = page_means(newest_keys, (slots <= slot[:, None])[:, None, :])
    key_pages, value_pages, *scales_after = (put(pool, pages) for pool, pages in zip(pools, newest, strict=True))
    return key_pages, value_pages, put(key_means, means), *scales_after


def rotate_and_append_kv(
    key_pages: Float[Array, "R K P H"],
    value_pages: Float[Array, "R K P H"],
    key_means: Float[Array, "R K H"],
    page_table: Int[Array, "B M"],
    lengths: Int[Array, " B"],
    q: Float[Array, "B N H"],
    keys: Float[Array, "B K H"],
    values: Float[Array, "B K H"],
    cos: Float[Array, "B half"],
    sin: Float[Array, "B half"],
    *norms: Float[Array, " H"],
    epsilon: float,
) -> tuple[Array, ...]:
    """Norm and rotate queries and keys, then `append_kv`. Returns the queries and the three pools."""
    if norms:
        q, keys = (
            rms_norm(heads, weight, epsilon=epsilon).astype(heads.dtype)
            for heads, weight in zip((q, keys), norms, strict=True)
        )
    keys = rotate(keys, cos, sin)
    return rotate(q, cos, sin), *append_kv(key_pages, value_pages, key_means, page_table, lengths, keys, values)


def page_means(pages: Float[Array, "*B P H"], held: Bool[Array, "*#B P"]) -> Float[Array, "*B H"]:
    """Average the held slots of each page in float32."""
    total = jnp.sum(jnp.where(held[..., None], pages.astype(jnp.float32), 0.0), axis=-2)
    count = jnp.sum(held, axis=-1, dtype=jnp.float32)[..., None]
    return total / jnp.maximum(count, 1.0)


def append_bounds(
    key_bounds: Float[Array, "R K 2 H"],
    page_table: Int[Array, "B M"],
    lengths: Int[Array, " B"],
    keys: Float[Array, "B K H"],
    *,
    page_len: int,
) -> Float[Array, "R K 2 H"]:
    """Widen the bounds of the page that each new key goes to; the first key of a page starts them anew."""
    page_id, slot = _written_page(page_table, lengths, page_len, key_bounds.shape[0])
    keys = keys.astype(key_bounds.dtype)
    low, high = jnp.moveaxis(key_bounds.at[page_id].get(mode="clip"), 2, 0)
    is_first = (slot == 0)[:, None, None]
    low = jnp.where(is_first, keys, jnp.minimum(low, keys))
    high = jnp.where(is_first, keys, jnp.maximum(high, keys))
    return key_bounds.at[page_id].set(jnp.stack([low, high], axis=2), mode="drop", unique_indices=True)


def page_bounds(pages: Float[Array, "*B P H"], held: Bool[Array, "*#B P"]) -> Float[Array, "*B 2 H"]:
    """Find the smallest and largest of the held slots of each page by dimension; zeros where none is held."""
    slot = held[..., None]
    low = jnp.min(jnp.where(slot, pages, jnp.inf), axis=-2)
    high = jnp.max(jnp.where(slot, pages, -jnp.inf), axis=-2)
    bounds = jnp.stack([low, high], axis=-2)
    return jnp.where(jnp.any(slot, axis=-2, keepdims=True), bounds, 0.0)


def _written_page(
    page_table: Int[Array, "B M"], lengths: Int[Array, " B"], page_len: int, num_pages: int
) -> tuple[Int[Array, " B"], Int[Array, " B"]]:
    """Return page id and slot of the newest token of each sequence; the id is past the pool where it has no place."""
    (batch_size, max_pages), position = page_table.shape, lengths - 1
    page, slot = position // page_len, position % page_len
    page_id = jnp.take_along_axis(page_table, page[:, None], axis=1, mode="clip")[:, 0]
    writable = (position >= 0) & (page < max_pages) & (page_id >= 0) & (page_id < num_pages)
    # Dropped writes get distinct ids past the pool, so that the scatter may assume unique indices.
    return jnp.where(writable, page_id, num_pages + jnp.arange(batch_size, dtype=page_id.dtype)), slot


def _slot_positions(pages: Int[Array, "*B J"], page_len: int) -> Int[Array, "*B S"]:
    """Token positions of the slots of logical pages, in order."""
    first = jnp.repeat(pages * page_len, page_len, axis=-1)
    slot = jnp.tile(jnp.arange(page_len, dtype=pages.dtype), pages.shape[-1])
    return first + slot.reshape((1,) * (pages.ndim - 1) + (-1,))


def _dot(subscripts: str, left: Array, right: Array) -> Array:
    """Multiply with float32 accumulation; float32 inputs are not cut to TF32 (selection must agree with the oracle)."""
    return jnp.einsum(subscripts, left, right, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32)
