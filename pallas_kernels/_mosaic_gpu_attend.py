"""Attend to selected pages, or to all, on Hopper: thread blocks that stay, each with three warpgroups.

    selector   words <- which pages of the next items;  table <- their page ids                 2 to 4 items ahead
    producer   words, table -> one bulk copy a page into the ring of K and V tiles              `num_stages` tiles ahead
    consumer   logits = q K^T, online softmax, out = p V on the tensor cores                    one tile

An item is one part of the pages of one sequence and KV head; block c takes the items c, c + num_ctas, ... The copies
never wait for a selection but the first: the ring stays full from one item to the next. A tile is 64 tokens, 128 of
quantised pages: one page or several smaller ones, which keep their order, so that only the last tile of an item has
slots to mask. What the consumer does with a tile is in `_mosaic_gpu_tile`, for quantised pages in `_mosaic_gpu_tile8`.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.experimental.pallas as pl
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from . import _interpret, _mosaic_gpu_tile, _mosaic_gpu_tile8
from ._mosaic_gpu_select import select_pages
from ._mosaic_gpu_work import GROUP_ROWS, Item, Queue, Work, query_tiles, rows_of_groups
from ._plgpu import plgpu

_REDUCTION_BYTES = 2048
# Of each thread. A warpgroup starts with 168, a third of the registers: too few to widen a tile in, and more than
# copying needs. With the selector's 168 they must stay within three times that.
_CONSUMER_REGISTERS, _PRODUCER_REGISTERS = 240, 72


class _Shared(NamedTuple):
    """Hold the references to shared memory and its barriers."""

    q: Any
    keys: Any
    values: Any
    weights: Any
    out: Any
    lse: Any
    scores: Any
    words: Any
    tied: Any
    num_tied: Any
    table: Any
    q_here: Any
    scores_here: Any
    keys_here: Any
    values_here: Any
    tile_free: Any
    table_here: Any
    selected: Any
    item_done: Any
    key_scales: Any = None
    value_scales: Any = None
    widened_keys: Any = None
    widened_values: Any = None


def attend(
    work: Work,
    q: Float[Array, "B N H"],
    pools: tuple[Array, ...],
    page_table: Int[Array, "B M"],
    lengths: Int[Array, " B"],
    *,
    scores: Float[Array, "B K S"] | None,
    scale: float,
) -> tuple[Float[Array, "X B N H"], Float[Array, "X B N"], Int[Array, "B K W"]]:
    """Return output and log-sum-exp of every part X, and the bit mask of pages; without scores all pages are read.

    `pools` are key_pages and value_pages [R, K, P, H], and for quantised pages key_scales and value_scales [R, K, P].
    """
    num_words, num_kv_heads = work.num_words, work.num_kv_heads
    batch_size, _, head_dim = q.shape
    out_dtype = q.dtype if work.num_splits == 1 else jnp.float32
    padding = 32 * num_words - page_table.shape[1]
    table = jnp.pad(page_table, ((0, 0), (0, padding))) if padding else page_table
    inputs = [query_tiles(work, q), *pools, table.reshape(batch_size, num_words, 32), lengths]
    if scores is not None:
        inputs.append(scores.reshape(batch_size, num_kv_heads, num_words, 32))
    scratch = _scratch(work, [pool.dtype for pool in pools], out_dtype)

    def kernel(*refs):
        (q_ref, *others), refs = refs[: len(inputs)], refs[len(inputs) :]
        pool_refs, (table_ref, lengths_ref, *scores_ref) = others[: len(pools)], others[len(pools) :]
        outs, shared = refs[:3], _Shared(**dict(zip(scratch, refs[3:], strict=True)))
        queue, warpgroup = Queue(work, lengths_ref, lax.axis_index("block")), lax.axis_index("warpgroup")

        # Mosaic lays the scratch of a reduction across warps behind what is allocated there, whichever warpgroup
        # reduces: behind this, the consumer's is not the selector's.
        @partial(pl.run_scoped, _=plgpu.SMEM((_REDUCTION_BYTES,), jnp.int8), collective_axes="warpgroup")
        def _(_):
            @pl.when(warpgroup == 0)
            def _():
                plgpu.set_max_registers(_CONSUMER_REGISTERS, action="increase")
                _consume(work, shared, queue, q_ref, outs, scale, bool(scores_ref))

            @pl.when(warpgroup == 1)
            def _():
                plgpu.set_max_registers(_PRODUCER_REGISTERS, action="decrease")
                _produce(work, shared, queue, tuple(pool_refs), bool(scores_ref))

        @pl.when(warpgroup == 2)
        def _():
            _select(work, shared, queue, table_ref, scores_ref[0] if scores_ref else None, outs[2])

    shape = (work.num_splits, batch_size, num_kv_heads)
    out, lse, words = plgpu.kernel(
        kernel,
        out_type=(
            jax.ShapeDtypeStruct((*shape, work.group, head_dim), out_dtype),
            jax.ShapeDtypeStruct((*shape, *scratch["lse"].shape), jnp.float32),
            jax.ShapeDtypeStruct((batch_size, num_kv_heads, num_words), jnp.int32),
        ),
        scratch_types=tuple(scratch.values()),
        compiler_params=plgpu.CompilerParams(
            approx_math=True,
            lowering_semantics=plgpu.LoweringSemantics.Warpgroup,
            reduction_scratch_bytes=_REDUCTION_BYTES,
        ),
        grid=(work.num_ctas,),
        grid_names=("block",),
        num_threads=3,
        thread_name="warpgroup",
        kernel_name="attend_pages",
        interpret=_interpret.gpu_params(),
    )(*inputs)
    return out.reshape(-1, *q.shape), rows_of_groups(work, lse), words


def _scratch(work: Work, dtypes: list[Any], out_dtype: Any) -> dict[str, Any]:
    """Return the shared memory and the barriers by their names in `_Shared`."""
    masks = (work.num_together, work.num_words)
    page_dtype, _, *scale_dtypes = dtypes
    return _of_tile(work).scratch(work, page_dtype, out_dtype, *scale_dtypes) | {
        "scores": plgpu.SMEM((*masks, 32), jnp.float32),
        "words": plgpu.SMEM((work.num_masks, *masks), jnp.int32),
        "tied": plgpu.SMEM(masks, jnp.int32),
        "num_tied": plgpu.SMEM(masks, jnp.int32),
        "table": plgpu.SMEM((work.num_tables, work.num_words, 32), jnp.int32),
        "q_here": plgpu.Barrier(),
        "scores_here": plgpu.Barrier(num_arrivals=work.num_together),
        "keys_here": plgpu.Barrier(num_arrivals=work.copies_per_tile, num_barriers=work.num_stages),
        "values_here": plgpu.Barrier(num_arrivals=work.copies_per_tile, num_barriers=work.num_stages),
        "tile_free": plgpu.Barrier(num_barriers=work.num_stages),
        "table_here": plgpu.Barrier(num_barriers=work.num_tables),
        "selected": plgpu.Barrier(num_barriers=work.num_tables),
        "item_done": plgpu.Barrier(num_arrivals=2, num_barriers=work.num_tables),  # producer and consumer
    }


def _mask(work: Work, shared: _Shared, i: Any) -> Any:
    """Return the reference to the mask of item i."""
    return shared.words.at[i // work.num_together % work.num_masks, i % work.num_together]


def _select(work: Work, shared: _Shared, queue: Queue, table_ref: Any, scores_ref: Any, words_ref: Any):
    @pl.loop(0, jnp.minimum(work.num_tables, queue.num_items))
    def _(i):
        _load_table(shared, queue, i, i, table_ref)

    @pl.loop(0, (queue.num_items + work.num_together - 1) // work.num_together)
    def _(group):
        first = group * work.num_together
        if scores_ref is not None:
            _select_together(work, shared, queue, scores_ref, group)

        @pl.loop(first, jnp.minimum(first + work.num_together, queue.num_items))
        def _(i):
            _publish(work, shared, queue, i, table_ref, None if scores_ref is None else words_ref)

    # Every completion of a barrier is awaited before the block ends.
    @pl.loop(jnp.maximum(queue.num_items - work.num_tables, 0), queue.num_items)
    def _(i):
        plgpu.barrier_wait(shared.item_done.at[i % work.num_tables])

    plgpu.wait_smem_to_gmem(0)


def _select_together(work: Work, shared: _Shared, queue: Queue, scores_ref: Any, group: Any) -> None:
    """Select the pages of the next items, as many as are selected at once; the last ones may repeat."""
    first = group * work.num_together
    items = [jnp.minimum(first + g, queue.num_items - 1) for g in range(work.num_together)]
    for g, i in enumerate(items):
        _, b, k = queue.place(i)
        plgpu.copy_gmem_to_smem(scores_ref.at[b, k], shared.scores.at[g], shared.scores_here)
    held = [queue.item(i).held for i in items]
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)  # masks that were written out from here
    plgpu.barrier_wait(shared.scores_here)
    select_pages(
        shared.scores,
        shared.words.at[group % work.num_masks],
        shared.tied,
        shared.num_tied,
        held=held,
        num_blocks=work.num_blocks,
        num_sinks=work.num_sinks,
        num_local=work.num_local,
    )
    plgpu.commit_smem()


def _publish(work: Work, shared: _Shared, queue: Queue, i: Any, table_ref: Any, words_ref: Any) -> None:
    """Say that item i may be read once its page ids are here, and write its mask out."""
    slot = i % work.num_tables

    @pl.when(i >= work.num_tables)
    def _():
        plgpu.barrier_wait(shared.item_done.at[slot])
        plgpu.commit_smem()  # what others read here comes before what the copy writes
        _load_table(shared, queue, i, slot, table_ref)

    plgpu.barrier_wait(shared.table_here.at[slot])
    plgpu.barrier_arrive(shared.selected.at[slot])
    if words_ref is not None:
        split, b, k = queue.place(i)

        @pl.when(split == 0)
        def _():
            plgpu.copy_smem_to_gmem(_mask(work, shared, i), words_ref.at[b, k])


def _load_table(shared: _Shared, queue: Queue, i: Any, slot: Any, table_ref: Any) -> None:
    _, b, _ = queue.place(i)
    plgpu.copy_gmem_to_smem(table_ref.at[b], shared.table.at[slot], shared.table_here.at[slot])


def _produce(work: Work, shared: _Shared, queue: Queue, pools: tuple[Any, ...], masked: bool):
    num_pages = pools[0].shape[0]
    rings, scale_rings = (shared.keys, shared.values), (shared.key_scales, shared.value_scales)
    arrivals = shared.keys_here, shared.values_here

    def body(i, start):
        slot, now = i % work.num_tables, queue.item(i)
        plgpu.barrier_wait(shared.selected.at[slot])

        def copy(n, page_id):
            tile, part = start + n // work.pages_per_tile, n % work.pages_per_tile
            stage = tile % work.num_stages

            @pl.when((part == 0) & (tile >= work.num_stages))
            def _():
                plgpu.barrier_wait(shared.tile_free.at[stage])

            slots = pl.ds(part * work.page_len, work.page_len)
            for pool, ring, here in zip(pools, rings, arrivals, strict=False):
                plgpu.copy_gmem_to_smem(pool.at[page_id, now.k], ring.at[stage, slots], here.at[stage])
            for scales, ring, here in zip(pools[2:], scale_rings, arrivals, strict=False):
                # Copies that fill with zeros start at multiples of 128 bytes only: here any page does instead.
                source = scales.at[jnp.minimum(page_id, num_pages - 1), now.k]
                promise = plgpu.OOBFillMode.PROMISE_IN_BOUNDS
                plgpu.copy_gmem_to_smem(source, ring.at[stage, slots], here.at[stage], oob_mode=promise)

        if masked:
            _for_each_page(_mask(work, shared, i), shared.table.at[slot], now, copy)
        else:
            pl.loop(now.first, now.last)(lambda m: copy(m - now.first, shared.table[slot, m // 32, m % 32]))
        # The last tile is filled up from beyond the pool: zeros that cost no traffic.
        whole = now.num_tiles * work.pages_per_tile
        pl.loop(now.last - now.first, whole)(lambda n: copy(n, jnp.int32(num_pages)))
        plgpu.barrier_arrive(shared.item_done.at[slot])
        return start + now.num_tiles

    num_tiles = lax.fori_loop(0, queue.num_items, body, jnp.int32(0))

    @pl.loop(jnp.maximum(num_tiles - work.num_stages, 0), num_tiles)
    def _(tile):
        plgpu.barrier_wait(shared.tile_free.at[tile % work.num_stages])


def _for_each_page(words: Any, table: Any, now: Item, copy: Any) -> None:
    """Call copy(n, page id) for the chosen pages of this part, in order."""

    def word(w, n):
        def page(state):
            bits, n = state

            @pl.when((n >= now.first) & (n < now.last))
            def _():
                copy(n - now.first, table[w, 31 - lax.clz(bits & -bits)])

            return bits & (bits - 1), n + 1

        return lax.while_loop(lambda state: state[0] != 0, page, (words[w], n))[1]

    lax.fori_loop(0, words.shape[0], word, jnp.int32(0))


def _consume(work: Work, shared: _Shared, queue: Queue, q_ref: Any, outs: Any, scale: float, masked: bool):
    out_ref, lse_ref, _ = outs
    of_tile = _of_tile(work)

    def body(i, start):
        slot, now = i % work.num_tables, queue.item(i)
        tile = now.k // work.heads_per_tile
        plgpu.copy_gmem_to_smem(q_ref.at[now.b, tile], shared.q.at[pl.ds(0, GROUP_ROWS)], shared.q_here)
        plgpu.barrier_wait(shared.selected.at[slot])
        num_missing = now.held * work.page_len - now.length  # slots of the newest page that hold nothing
        if masked:
            newest = jnp.maximum(now.held - 1, 0)
            is_read = jnp.right_shift(_mask(work, shared, i)[newest // 32], newest % 32) & 1
            num_missing = jnp.where(is_read == 1, num_missing, 0)
        plgpu.barrier_arrive(shared.item_done.at[slot])
        end = jnp.minimum(now.num_chosen * work.page_len - num_missing, now.last * work.page_len)
        num_valid = end - now.first * work.page_len
        plgpu.barrier_wait(shared.q_here)

        def add(t, carry):
            stage = (start + t) % work.num_stages
            return of_tile.add(work, shared, stage, num_valid - t * work.tile_len, scale, carry)

        found = lax.fori_loop(0, now.num_tiles, add, of_tile.start(work))
        of_tile.store(shared, found)
        plgpu.commit_smem()
        rows = pl.ds(now.k % work.heads_per_tile * work.group, work.group)
        plgpu.copy_smem_to_gmem(shared.out.at[rows], out_ref.at[now.split, now.b, now.k])
        plgpu.copy_smem_to_gmem(shared.lse, lse_ref.at[now.split, now.b, now.k])
        return start + now.num_tiles

    lax.fori_loop(0, queue.num_items, body, jnp.int32(0))
    plgpu.wait_smem_to_gmem(0)


def _of_tile(work: Work) -> Any:
    """Return what a tile of these pages needs, and what is done with it."""
    return _mosaic_gpu_tile8 if work.scale_bytes else _mosaic_gpu_tile
