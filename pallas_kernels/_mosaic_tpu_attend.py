"""Attend to the pages that each row lists: TPU kernel.

Called by `_mosaic_tpu`. A row is one sequence with up to 8 of its KV heads (dense decode: one copy brings a page of all
of them), or one sequence and KV head (after a selection: each head reads pages of its own). Both are the same kernel.

Quantised pages are widened once they lie in the ring, exactly, to the dtype of the queries. The scale of a key
multiplies its logits, that of a value its weights; both come by a ring of their own, a row of T tokens for each head.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int, Real

from ._interpret import tpu_params
from ._mosaic_tpu_stream import LANES, NUM_STATES, PageStream, repeat, tile_bytes, vmem_limit
from ._quantise import is_quantised

# What a row of the grid reads, four numbers in SMEM.
_PAGES, _SKIPPED, _START, _STOP = range(4)


@dataclass(frozen=True, kw_only=True)
class AttendSpec:
    """What the kernel is compiled for.

    Attributes:
        num_listed: Pages listed per row in `selected`; 0 where a row reads the pages of its table in order.
        max_pages: Pages per sequence in the table, M.
        num_sink_pages: Pages read ahead of those that are skipped.
        sink_len: First tokens that are read whatever the window [tokens].
        scale: Factor of the logits.
        pages_per_buffer: Pages of one chunk.
        num_buffers: Chunks in VMEM.
    """

    num_listed: int
    max_pages: int
    num_sink_pages: int
    sink_len: int
    scale: float
    pages_per_buffer: int
    num_buffers: int


def vmem_bytes(q_shape: tuple[int, ...], key_pages: Real[Array, "R K P H"], spec: AttendSpec) -> int:
    """Return the VMEM of the kernel's buffers [bytes] for queries [X, Y, G, H]."""
    (_, heads, group, head_dim), page_len = q_shape, key_pages.shape[2]
    pages = 2 * spec.num_buffers * spec.pages_per_buffer * heads
    rings = pages * tile_bytes(page_len, head_dim, key_pages.dtype)
    if is_quantised(key_pages):
        rings += spec.num_buffers * tile_bytes(2 * heads, spec.pages_per_buffer * page_len, jnp.float32)
    # Pallas keeps two of the queries and of the outputs; three running sums.
    rows = (2 + 2 + 3) * heads * tile_bytes(group, LANES, jnp.float32) + 2 * tile_bytes(heads, LANES, jnp.float32)
    return rings + rows


def attend(
    q: Float[Array, "X Y G H"],
    pages: tuple[Real[Array, "R K P H"], Real[Array, "R K P H"], Float[Array, "X C Z T"] | None],
    page_table: Int[Array, "B M"],
    selected: Int[Array, "X J"] | None,
    ranges: Int[Array, "X 4"],
    spec: AttendSpec,
    out_dtype: Any,
) -> tuple[Float[Array, "X Y G H"], Float[Array, "X Y 128"]]:
    """Attend with the queries of X rows of Y heads; return the output and the log-sum-exp of query g in lane g.

    `pages` are those of keys and of values, and of quantised ones the scales of each row's chunks, of keys (Y rows of
    Z) before those of values. Row x is sequence x // (K / Y), and there the heads from x % (K / Y) * Y on. `ranges`
    says of each row: pages read; pages skipped after the sinks; first token of the window; tokens held.
    """
    key_pages, value_pages, scales = pages

    def kernel(*refs: Any) -> None:
        _attend_kernel(*refs, spec=spec)

    return pl.pallas_call(
        kernel,
        grid_spec=_grid_spec(q.shape, key_pages, scales, spec),
        out_shape=[
            jax.ShapeDtypeStruct(q.shape, out_dtype),
            jax.ShapeDtypeStruct((*q.shape[:2], LANES), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"),
            vmem_limit_bytes=vmem_limit(vmem_bytes(q.shape, key_pages, spec)),
            disable_bounds_checks=True,  # page ids are clipped before; checks would cost more than the copies' issue
        ),
        interpret=tpu_params(),
        name="attend_pages",
    )(
        page_table.reshape(-1),
        jnp.zeros(1, jnp.int32) if selected is None else selected.reshape(-1),
        ranges.reshape(-1),
        q,
        key_pages,
        value_pages,
        scales,
    )


def _grid_spec(
    q_shape: tuple[int, ...],
    key_pages: Real[Array, "R K P H"],
    scales: Float[Array, "X C Z T"] | None,
    spec: AttendSpec,
) -> pltpu.PrefetchScalarGridSpec:
    """Return the steps of the kernel and where its arguments and buffers lie."""
    num_rows, heads, group, head_dim = q_shape
    num_cores = 2 if num_rows % 2 == 0 else 1  # as many as one device of v4 or v5p has; on others one after another
    queries = pl.BlockSpec((1, heads, group, head_dim), _of_row(num_rows // num_cores, 4))
    in_hbm = pl.BlockSpec(memory_space=pl.ANY)
    ring = pltpu.VMEM((spec.num_buffers, spec.pages_per_buffer, heads, *key_pages.shape[2:]), key_pages.dtype)
    has_scales = scales is not None
    return pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=3,
        grid=(num_cores, num_rows // num_cores),
        in_specs=[queries, in_hbm, in_hbm, in_hbm if has_scales else None],
        out_specs=[queries, pl.BlockSpec((1, heads, LANES), _of_row(num_rows // num_cores, 3))],
        scratch_shapes=[
            ring,
            ring,
            pltpu.VMEM((spec.num_buffers, *scales.shape[2:]), scales.dtype) if has_scales else None,
            pltpu.VMEM((heads, group, LANES), jnp.float32),
            pltpu.VMEM((heads, group, LANES), jnp.float32),
            pltpu.VMEM((heads, group, head_dim), jnp.float32),
            pltpu.SemaphoreType.DMA((3, spec.num_buffers)),
            pltpu.SMEM((NUM_STATES,), jnp.int32),
        ],
    )


def _of_row(rows_per_core: int, rank: int) -> Any:
    return lambda core, step, *_: (core * rows_per_core + step, *[0] * (rank - 1))


def _attend_kernel(
    table_ref,  # [B * M] int32, SMEM
    selected_ref,  # [X * J] int32, SMEM
    ranges_ref,  # [X * 4] int32, SMEM
    q_ref,  # [1, Y, G, H], VMEM
    key_pages,  # [R, K, P, H], HBM
    value_pages,  # [R, K, P, H], HBM
    scales,  # [X, chunks, 2 Y, T], HBM, or None: of keys, then of values
    out_ref,  # [1, Y, G, H], VMEM
    lse_ref,  # [1, Y, 128] f32, VMEM
    key_ring,  # [buffers, pages, Y, P, H], VMEM
    value_ring,  # [buffers, pages, Y, P, H], VMEM
    scale_ring,  # [buffers, 2 Y, T], VMEM, or None
    peak_ref,  # [Y, G, 128] f32, VMEM: the same number in every lane
    total_ref,  # [Y, G, 128] f32, VMEM
    sum_ref,  # [Y, G, H] f32, VMEM
    semaphores,  # [3, buffers]: the copies into a buffer tell the compute loop
    state_ref,  # [4] int32, SMEM
    *,
    spec: AttendSpec,
) -> None:
    rows_per_core, first_row = pl.num_programs(1), pl.program_id(0) * pl.num_programs(1)
    row, end_row = first_row + pl.program_id(1), first_row + rows_per_core
    heads, page_len = key_ring.shape[2:4]
    rows_per_sequence = key_pages.shape[1] // heads

    def of_row(row: Any, field: int) -> Any:
        return ranges_ref[row * 4 + field]

    def start(row: Any, first: Any, count: Any, slot: Any) -> None:
        def copy(i: Any) -> None:
            if spec.num_listed:
                page = selected_ref[row * spec.num_listed + first + i]
            else:
                page = first + i
                page += jnp.where(page < spec.num_sink_pages, 0, of_row(row, _SKIPPED))
            page_id = table_ref[jax.lax.div(row, rows_per_sequence) * spec.max_pages + page]
            head = jax.lax.rem(row, rows_per_sequence) * heads
            for index, (pool, ring) in enumerate(((key_pages, key_ring), (value_pages, value_ring))):
                source = pool.at[page_id, pl.ds(head, heads)]
                pltpu.make_async_copy(source, ring.at[slot, i], semaphores.at[index, slot]).start()

        if scales is not None:
            source = scales.at[row, jax.lax.div(first, spec.pages_per_buffer)]
            pltpu.make_async_copy(source, scale_ring.at[slot], semaphores.at[2, slot]).start()
        repeat(count, spec.pages_per_buffer, copy)

    pages = PageStream(
        num_pages=lambda row: of_row(row, _PAGES),
        start=start,
        buffers=(key_ring, value_ring),
        whole=() if scales is None else (scale_ring,),
        semaphores=semaphores,
        state=state_ref,
    )

    @pl.when(row == first_row)
    def _() -> None:
        pages.open(first_row, end_row)

    peak_ref[...] = jnp.full(peak_ref.shape, -jnp.inf, jnp.float32)
    total_ref[...] = jnp.zeros(total_ref.shape, jnp.float32)
    sum_ref[...] = jnp.zeros(sum_ref.shape, jnp.float32)
    begin, stop = of_row(row, _START), of_row(row, _STOP)

    def use(chunk: Any, slot: Any) -> None:
        first = chunk * (spec.pages_per_buffer * page_len)

        def is_read(token: Array) -> Array:
            """Whether the tokens at these places of the list of pages are read."""
            skipped = jnp.where(token < spec.num_sink_pages * page_len, 0, of_row(row, _SKIPPED) * page_len)
            position = token + skipped
            return (position < stop) & ((position >= begin) | (position < spec.sink_len))

        tokens_in_chunk = spec.pages_per_buffer * page_len
        last = first + tokens_in_chunk - 1 + of_row(row, _SKIPPED) * page_len
        # Window or sinks end inside, or pages are missing: blank the values, as 0 * NaN is NaN.
        blank = (last >= stop) | (first < begin)
        factors = None if scales is None else scale_ring[slot].astype(jnp.float32)  # [2 Y, T]
        for head in range(heads):
            of_head = None if factors is None else (factors[head : head + 1], factors[heads + head : heads + head + 1])
            _attend_head(
                q_ref.at[0, head],
                key_ring.at[slot, :, head],
                value_ring.at[slot, :, head],
                (peak_ref.at[head], total_ref.at[head], sum_ref.at[head]),
                of_head,
                lambda token: is_read(first + token),
                blank,
                spec.scale,
            )

    pages.read(row, end_row, use)
    _finish(out_ref, lse_ref, peak_ref, total_ref, sum_ref)


def _attend_head(
    q_ref: Any,
    key_ref: Any,
    value_ref: Any,
    sums: tuple[Any, Any, Any],
    factors: tuple[Array, Array] | None,
    is_read: Any,
    blank: Any,
    scale: float,
) -> None:
    """Add the tokens of one chunk [pages, P, H] to the running softmax of one head's queries [G, H].

    `factors` are the scales [1, S] of quantised keys and values.
    """
    peak_ref, total_ref, sum_ref = sums

    if value_ref.dtype != jnp.int8:  # integers know no NaN

        @pl.when(blank)
        def _() -> None:
            _blank(value_ref, is_read)

    queries = q_ref[...]
    keys, values = (_rows(ref[...], queries.dtype) for ref in (key_ref, value_ref))
    logits = _dot(queries, keys, ((1,), (1,))) * scale  # [G, S]
    in_use = is_read(jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1))
    if factors is not None:
        logits *= factors[0]
    logits = jnp.where(in_use, logits, -jnp.inf)
    # Every chunk has a token that is read, so that the peak is finite.
    peak = peak_ref[:, :1]
    new_peak = jnp.maximum(peak, jnp.max(logits, axis=1, keepdims=True))
    weights, shrink = jnp.exp(logits - new_peak), jnp.exp(peak - new_peak)
    total = total_ref[:, :1] * shrink + jnp.sum(weights, axis=1, keepdims=True)
    if factors is not None:
        weights = jnp.where(in_use, weights * factors[1], 0.0)  # scales of what is not read may be NaN
    sum_ref[...] = sum_ref[...] * shrink + _dot(weights.astype(values.dtype), values, ((1,), (0,)))
    peak_ref[...] = jnp.broadcast_to(new_peak, peak_ref.shape)
    total_ref[...] = jnp.broadcast_to(total, total_ref.shape)


def _blank(value_ref: Any, is_read: Any) -> None:
    """Write zeros for the values [pages, P, H] of tokens that are not read."""
    token = jax.lax.broadcasted_iota(jnp.int32, value_ref.shape, 0) * value_ref.shape[1]
    token += jax.lax.broadcasted_iota(jnp.int32, value_ref.shape, 1)
    # In float32: TPUs before v6e select no 16-bit values.
    values = jnp.where(is_read(token), value_ref[...].astype(jnp.float32), 0.0)
    value_ref[...] = values.astype(value_ref.dtype)


def _rows(pages: Array, dtype: Any) -> Array:
    """Return the entries [pages, P, H] as rows [S, H] of this dtype."""
    if pages.dtype.itemsize == 1:
        pages = pages.astype(jnp.float32)  # tiles of 8 bits have 32 rows, and rows are not taken out of them
    return pages.reshape(-1, pages.shape[-1]).astype(dtype)


def _finish(out_ref: Any, lse_ref: Any, peak_ref: Any, total_ref: Any, sum_ref: Any) -> None:
    for head in range(peak_ref.shape[0]):
        total, peak = total_ref[head], peak_ref[head]
        is_empty = total == 0.0
        out = sum_ref[head] / jnp.where(is_empty, 1.0, total)[:, :1]
        out_ref[0, head] = out.astype(out_ref.dtype)
        lse = jnp.where(is_empty, -jnp.inf, peak + jnp.log(jnp.where(is_empty, 1.0, total)))  # [G, 128]
        # Query g's number into lane g: [G, 128] -> [1, 128].
        lane = jax.lax.broadcasted_iota(jnp.int32, lse.shape, 1)
        query = jax.lax.broadcasted_iota(jnp.int32, lse.shape, 0)
        lse_ref[0, pl.ds(head, 1)] = jnp.sum(jnp.where(lane == query, lse, 0.0), axis=0, keepdims=True)


def _dot(left: Array, right: Array, axes: tuple[tuple[int], tuple[int]]) -> Array:
    """Multiply with float32 accumulation; float32 operands are not cut to bfloat16."""
    precision = jax.lax.Precision.HIGHEST if left.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    return jax.lax.dot_general(left, right, (axes, ((), ())), precision=precision, preferred_element_type=jnp.float32)
