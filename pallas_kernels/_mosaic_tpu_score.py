"""Score the pages of each sequence: TPU kernel.

Called by `_mosaic_tpu`. A row is a sequence: one copy brings the summaries [K, C] of a page for all heads, or of
`run_len` pages where their ids follow one another, as they do where one sequence got its pages together.

The product is one multiplication and one sum over lanes per page, on the vector unit: one query per head and page is no
work for the matrix unit. Page s of a chunk of 128 puts its K sums into lane s.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from ._interpret import tpu_params
from ._mosaic_tpu_stream import NUM_STATES, PageStream, repeat, tile_bytes, vmem_limit

CHUNK = 128  # pages: one per lane of the scores
_PER_TURN = 16


@dataclass(frozen=True, kw_only=True)
class ScoreSpec:
    """What the kernel is compiled for.

    Attributes:
        run_len: Pages that one copy brings where their ids are consecutive; divides 128.
        num_buffers: Chunks of 128 pages in VMEM.
    """

    run_len: int
    num_buffers: int


def vmem_bytes(summaries: Float[Array, "R K C"], max_pages: int, spec: ScoreSpec) -> int:
    """Return the VMEM of the kernel's buffers [bytes]."""
    _, num_kv_heads, width = summaries.shape
    ring = spec.num_buffers * CHUNK * tile_bytes(num_kv_heads, width, summaries.dtype)
    # Pallas keeps two of the probes and of the scores.
    return (
        ring + 2 * tile_bytes(num_kv_heads, max_pages, jnp.float32) + 2 * tile_bytes(num_kv_heads, width, jnp.float32)
    )


def score_pages(
    probe: Float[Array, "B K C"],
    summaries: Float[Array, "R K C"],
    page_table: Int[Array, "B M"],
    num_held: Int[Array, " B"],
    spec: ScoreSpec,
) -> Float[Array, "B K M"]:
    """Return probe . summary of each held page; what lies past the last held page is arbitrary, NaN included.

    M is a multiple of 128.
    """
    batch_size, num_kv_heads, width = probe.shape
    max_pages = page_table.shape[1]
    grid_spec = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=3,
        grid=(2, batch_size // 2) if batch_size % 2 == 0 else (1, batch_size),
        in_specs=[
            pl.BlockSpec((1, num_kv_heads, width), _of_row(batch_size)),
            pl.BlockSpec(memory_space=pl.ANY),
        ],
        out_specs=pl.BlockSpec((1, num_kv_heads, max_pages), _of_row(batch_size)),
        scratch_shapes=[
            pltpu.VMEM((spec.num_buffers, CHUNK, num_kv_heads, width), summaries.dtype),
            pltpu.SemaphoreType.DMA((1, spec.num_buffers)),
            pltpu.SMEM((NUM_STATES,), jnp.int32),
        ],
    )

    def kernel(*refs: Any) -> None:
        _score_kernel(*refs, spec=spec, max_pages=max_pages)

    return pl.pallas_call(
        kernel,
        grid_spec=grid_spec,
        out_shape=jax.ShapeDtypeStruct((batch_size, num_kv_heads, max_pages), jnp.float32),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"),
            vmem_limit_bytes=vmem_limit(vmem_bytes(summaries, max_pages, spec)),
            disable_bounds_checks=True,  # page ids are clipped before; checks would cost more than the copies' issue
        ),
        interpret=tpu_params(),
        name="score_pages",
    )(
        page_table.reshape(-1),
        _runs(page_table, num_held, spec.run_len).reshape(-1),
        num_held,
        probe,
        summaries,
    )


def _runs(page_table: Int[Array, "B M"], num_held: Int[Array, " B"], run_len: int) -> Int[Array, "B X"]:
    """Return 1 for the groups of `run_len` pages that are all held and whose ids follow one another, else 0."""
    groups = page_table.reshape(page_table.shape[0], -1, run_len)
    follow = jnp.all(groups[..., 1:] == groups[..., :-1] + 1, axis=-1)
    ends = jnp.arange(1, groups.shape[1] + 1, dtype=jnp.int32)[None] * run_len
    return (follow & (ends <= num_held[:, None])).astype(jnp.int32)


def _of_row(batch_size: int) -> Any:
    rows_per_core = batch_size // 2 if batch_size % 2 == 0 else batch_size
    return lambda core, step, *_: (core * rows_per_core + step, 0, 0)


def _score_kernel(
    table_ref,  # [B * M] int32, SMEM
    runs_ref,  # [B * M / run_len] int32, SMEM
    held_ref,  # [B] int32, SMEM
    probe_ref,  # [1, K, C] f32, VMEM
    summaries,  # [R, K, C], HBM
    scores_ref,  # [1, K, M] f32, VMEM
    ring,  # [buffers, 128, K, C], VMEM
    semaphores,  # [1, buffers]: the copies into a buffer tell the compute loop
    state_ref,  # [4] int32, SMEM
    *,
    spec: ScoreSpec,
    max_pages: int,
) -> None:
    rows_per_core, first_row = pl.num_programs(1), pl.program_id(0) * pl.num_programs(1)
    row, end_row = first_row + pl.program_id(1), first_row + rows_per_core
    run_len, num_kv_heads = spec.run_len, probe_ref.shape[1]

    def start(row: Any, first: Any, count: Any, slot: Any) -> None:
        def start_run(run: Any, _: None) -> None:
            place = run * run_len  # in the buffer
            at = row * max_pages + first + place  # in the table
            is_run = runs_ref[jax.lax.div(at, run_len)] == 1

            @pl.when(is_run)
            def _() -> None:
                source, buffer = summaries.at[pl.ds(table_ref[at], run_len)], ring.at[slot, pl.ds(place, run_len)]
                pltpu.make_async_copy(source, buffer, semaphores.at[0, slot]).start()

            def copy(i: Any) -> None:
                source, buffer = summaries.at[table_ref[at + i]], ring.at[slot, place + i]
                pltpu.make_async_copy(source, buffer, semaphores.at[0, slot]).start()

            @pl.when(jnp.logical_not(is_run))
            def _() -> None:
                repeat(jnp.minimum(count - place, run_len), run_len, copy)

        jax.lax.fori_loop(0, jax.lax.div(count + (run_len - 1), run_len), start_run, None)

    pages = PageStream(
        num_pages=lambda row: held_ref[row],
        start=start,
        buffers=(ring,),
        semaphores=semaphores,
        state=state_ref,
    )

    @pl.when(row == first_row)
    def _() -> None:
        pages.open(first_row, end_row)

    probe = probe_ref[0]  # [K, C]

    def use(chunk: Any, slot: Any) -> None:
        lane = jax.lax.broadcasted_iota(jnp.int32, (num_kv_heads, CHUNK), 1)

        def add(turn: Any, scores: Array) -> Array:
            first = turn * _PER_TURN
            products = ring[slot, pl.ds(first, _PER_TURN)].astype(jnp.float32) * probe[None]
            sums = jnp.sum(products, axis=2, keepdims=True)  # [pages, K, 1]
            for i in range(_PER_TURN):
                scores = jnp.where(lane == first + i, sums[i], scores)
            return scores

        count = jnp.minimum(held_ref[row] - chunk * CHUNK, CHUNK)
        num_turns = jax.lax.div(count + (_PER_TURN - 1), _PER_TURN)
        scores = jax.lax.fori_loop(0, num_turns, add, jnp.zeros((num_kv_heads, CHUNK), jnp.float32))
        scores_ref[0, :, pl.ds(pl.multiple_of(chunk * CHUNK, CHUNK), CHUNK)] = scores

    pages.read(row, end_row, use)
