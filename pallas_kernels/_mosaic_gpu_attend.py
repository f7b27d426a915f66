"""Attend to selected pages, or to all, on Hopper: thread blocks that stay, each with three warpgroups.

    selector   words <- which pages of the next items;  table <- their page ids                 2 to 4 items ahead
    producer   words, table -> one bulk copy a page into the ring of K and V tiles              `num_stages` tiles ahead
    consumer   logits = q K^T, online softmax, out = p V on the tensor cores                    one tile

An item is one part of the pages of one sequence and KV head; block c takes the items c, c + num_ctas, ... The copies
never wait for a selection but the first: the ring stays full from one item to the next. A tile is 64 tokens: one page
of 64 or several smaller ones, which keep their order, so that only the last tile of an item has slots to mask.

Rows of q are padded to the 64 that the tensor cores want; the products cost nothing beside the copies. Rows past the
group hold whatever lies beside it, and their results are dropped.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.experimental.pallas as pl
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from . import _interpret
from ._mosaic_gpu_select import select_pages
from ._mosaic_gpu_work import GROUP_ROWS, ROWS, Item, Queue, Work, query_tiles, rows_of_groups
from ._plgpu import plgpu

_LOG2_E = math.log2(math.e)
_SWIZZLED = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))


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


def attend(
    work: Work,
    q: Float[Array, "B N H"],
    key_pages: Float[Array, "R K P H"],
    value_pages: Float[Array, "R K P H"],
    page_table: Int[Array, "B M"],
    lengths: Int[Array, " B"],
    *,
    scores: Float[Array, "B K S"] | None,
    scale: float,
) -> tuple[Float[Array, "X B N H"], Float[Array, "X B N"], Int[Array, "B K W"]]:
    """Return output and log-sum-exp of every part X, and the bit mask of pages; without scores all pages are read."""
    num_words, num_kv_heads, num_pages = work.num_words, work.num_kv_heads, key_pages.shape[0]
    batch_size, _, head_dim = q.shape
    out_dtype = q.dtype if work.num_splits == 1 else jnp.float32
    padding = 32 * num_words - page_table.shape[1]
    table = jnp.pad(page_table, ((0, 0), (0, padding))) if padding else page_table
    inputs = [query_tiles(work, q), key_pages, value_pages, table.reshape(batch_size, num_words, 32), lengths]
    if scores is not None:
        inputs.append(scores.reshape(batch_size, num_kv_heads, num_words, 32))

    def kernel(*refs):
        (q_ref, k_ref, v_ref, table_ref, lengths_ref, *scores_ref), refs = refs[: len(inputs)], refs[len(inputs) :]
        outs, shared = refs[:3], _Shared(*refs[3:])
        queue, warpgroup = Queue(work, lengths_ref, lax.axis_index("block")), lax.axis_index("warpgroup")

        @pl.when(warpgroup == 0)
        def _():
            _consume(work, shared, queue, q_ref, outs, scale * _LOG2_E, bool(scores_ref))

        @pl.when(warpgroup == 1)
        def _():
            _produce(work, shared, queue, k_ref, v_ref, num_pages, bool(scores_ref))

        @pl.when(warpgroup == 2)
        def _():
            _select(work, shared, queue, table_ref, scores_ref[0] if scores_ref else None, outs[2])

    shape = (work.num_splits, batch_size, num_kv_heads)
    out, lse, words = plgpu.kernel(
        kernel,
        out_type=(
            jax.ShapeDtypeStruct((*shape, work.group, head_dim), out_dtype),
            jax.ShapeDtypeStruct((*shape, ROWS), jnp.float32),
            jax.ShapeDtypeStruct((batch_size, num_kv_heads, num_words), jnp.int32),
        ),
        scratch_types=tuple(_scratch(work, key_pages.dtype, out_dtype)),
        compiler_params=plgpu.CompilerParams(approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
        grid=(work.num_ctas,),
        grid_names=("block",),
        num_threads=3,
        thread_name="warpgroup",
        kernel_name="attend_pages",
        interpret=_interpret.gpu_params(),
    )(*inputs)
    return out.reshape(-1, *q.shape), rows_of_groups(work, lse), words


def _scratch(work: Work, dtype: Any, out_dtype: Any) -> _Shared:
    tiles, masks = (work.num_stages, work.tile_len, work.head_dim), (work.num_together, work.num_words)
    return _Shared(
        q=plgpu.SMEM((ROWS, work.head_dim), dtype, transforms=_SWIZZLED),
        keys=plgpu.SMEM(tiles, dtype, transforms=_SWIZZLED),
        values=plgpu.SMEM(tiles, dtype, transforms=_SWIZZLED),
        weights=plgpu.SMEM((ROWS, work.tile_len), dtype, transforms=_SWIZZLED),
        out=plgpu.SMEM((ROWS, work.head_dim), out_dtype),
        lse=plgpu.SMEM((ROWS,), jnp.float32),
        scores=plgpu.SMEM((*masks, 32), jnp.float32),
        words=plgpu.SMEM((work.num_masks, *masks), jnp.int32),
        tied=plgpu.SMEM(masks, jnp.int32),
        num_tied=plgpu.SMEM(masks, jnp.int32),
        table=plgpu.SMEM((work.num_tables, work.num_words, 32), jnp.int32),
        q_here=plgpu.Barrier(),
        scores_here=plgpu.Barrier(num_arrivals=work.num_together),
        keys_here=plgpu.Barrier(num_arrivals=work.pages_per_tile, num_barriers=work.num_stages),
        values_here=plgpu.Barrier(num_arrivals=work.pages_per_tile, num_barriers=work.num_stages),
        tile_free=plgpu.Barrier(num_barriers=work.num_stages),
        table_here=plgpu.Barrier(num_barriers=work.num_tables),
        selected=plgpu.Barrier(num_barriers=work.num_tables),
        item_done=plgpu.Barrier(num_arrivals=2, num_barriers=work.num_tables),  # producer and consumer
    )


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


def _produce(work: Work, shared: _Shared, queue: Queue, k_ref: Any, v_ref: Any, num_pages: int, masked: bool):
    def body(i, start):
        slot, now = i % work.num_tables, queue.item(i)
        plgpu.barrier_wait(shared.selected.at[slot])

        def copy(n, page_id):
            tile, part = start + n // work.pages_per_tile, n % work.pages_per_tile
            stage = tile % work.num_stages

            @pl.when((part == 0) & (tile >= work.num_stages))
            def _():
                plgpu.barrier_wait(shared.tile_free.at[stage])

            for pool, ring, here in (
                (k_ref, shared.keys, shared.keys_here),
                (v_ref, shared.values, shared.values_here),
            ):
                target = ring.at[stage, pl.ds(part * work.page_len, work.page_len)]
                plgpu.copy_gmem_to_smem(pool.at[page_id, now.k], target, here.at[stage])

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


def _consume(work: Work, shared: _Shared, queue: Queue, q_ref: Any, outs: Any, factor: float, masked: bool):
    out_ref, lse_ref, _ = outs

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

        empty = plgpu.layout_cast(jnp.full((ROWS,), 0, jnp.float32), plgpu.Layout.WGMMA.reduce(1))
        acc = plgpu.layout_cast(jnp.full((ROWS, work.head_dim), 0, jnp.float32), plgpu.Layout.WGMMA)
        acc, peak, total = lax.fori_loop(
            0,
            now.num_tiles,
            lambda t, carry: _add_tile(
                work, shared, (start + t) % work.num_stages, num_valid - t * work.tile_len, factor, carry
            ),
            (acc, empty - jnp.inf, empty),
        )
        some = total > 0
        inverse = jnp.where(some, 1.0 / jnp.where(some, total, 1.0), 0.0)
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        shared.out[...] = (acc * _to_rows(inverse, acc)).astype(shared.out.dtype)
        shared.lse[...] = jnp.where(some, peak / _LOG2_E + jnp.log(jnp.where(some, total, 1.0)), -jnp.inf)
        plgpu.commit_smem()
        rows = pl.ds(now.k % work.heads_per_tile * work.group, work.group)
        plgpu.copy_smem_to_gmem(shared.out.at[rows], out_ref.at[now.split, now.b, now.k])
        plgpu.copy_smem_to_gmem(shared.lse, lse_ref.at[now.split, now.b, now.k])
        return start + now.num_tiles

    lax.fori_loop(0, queue.num_items, body, jnp.int32(0))
    plgpu.wait_smem_to_gmem(0)


def _add_tile(work: Work, shared: _Shared, slot: Any, num_left: Any, factor: float, carry: tuple) -> tuple:
    """Add one tile to the running softmax; logits are in base 2, and slots from `num_left` on hold nothing."""
    acc, peak, total = carry
    plgpu.barrier_wait(shared.keys_here.at[slot])
    shape = (ROWS, work.tile_len)

    def logits_of(acc_ref):
        plgpu.wgmma(acc_ref, shared.q, shared.keys.at[slot].transpose((1, 0)))
        return acc_ref[...]

    logits = pl.run_scoped(logits_of, plgpu.ACC(shape, jnp.float32)) * factor
    position = plgpu.broadcasted_iota(jnp.int32, shape, 1, layout=plgpu.Layout.WGMMA)
    logits = jnp.where(position < num_left, logits, -jnp.inf)
    new_peak = jnp.maximum(peak, logits.max(axis=1))
    keep = jnp.exp2(peak - new_peak)
    weights = jnp.exp2(logits - _to_rows(new_peak, logits))
    total = total * keep + weights.sum(axis=1)
    shared.weights[...] = weights.astype(shared.weights.dtype)
    plgpu.commit_smem()
    plgpu.barrier_wait(shared.values_here.at[slot])

    @pl.when(num_left < work.tile_len)
    def _():  # 0 * NaN = NaN: slots that hold nothing must be blanked in the values too
        values = plgpu.load(shared.values.at[slot], layout=plgpu.Layout.WGMMA)
        key = plgpu.broadcasted_iota(jnp.int32, values.shape, 0, layout=plgpu.Layout.WGMMA)
        shared.values[slot] = jnp.where(key < num_left, values, jnp.zeros((), values.dtype))
        plgpu.commit_smem()

    def product(acc_ref):
        plgpu.wgmma(acc_ref, shared.weights, shared.values.at[slot])
        return acc_ref[...]

    added = pl.run_scoped(product, plgpu.ACC(acc.shape, jnp.float32))
    plgpu.barrier_arrive(shared.tile_free.at[slot])
    return acc * _to_rows(keep, acc) + added, new_peak, total


def _to_rows(values: Any, like: Any) -> Any:
    return lax.broadcast_in_dim(values, like.shape, [0])
