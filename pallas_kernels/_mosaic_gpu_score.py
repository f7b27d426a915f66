"""Score every page held: one product of the probe with the summaries of each page, as fast as they can be read.

A page's summaries [K, C] of all KV heads lie together in memory, so a warpgroup loads whole pages, several before it
uses the first. Each row of one head is spread over neighbouring lanes and summed by shuffles:

    page table -> ids of 16 pages -> 16 loads of [K, C] -> times probe, summed over C -> [page, K] in shared memory
               -> one lane a page reads the column of a head -> scores[b, k, 128 pages]

The probe is made here from the queries, which saves a launch: their mean over the group beside means (C = H), the means
of their negative and positive parts beside bounds (C = 2 H), as `_api` makes it for the other implementations.
"""

from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from . import _interpret
from ._plgpu import plgpu

PAGES_PER_BLOCK = 128
"""Pages that one thread block scores; the scores are padded to a multiple."""


def score_pages(
    q: Float[Array, "B N H"],
    summaries: Float[Array, "R K C"],
    page_table: Int[Array, "B M"],
    lengths: Int[Array, " B"],
    *,
    page_len: int,
    num_in_flight: int,
) -> Float[Array, "B K S"]:
    """Return probe . summary of every page held, S = M rounded up; the others stay unwritten.

    Args:
        q: Queries of the newest token.
        summaries: Means (C = H) or bounds (C = 2 H: least, greatest) of the keys of each page and KV head.
        page_table: Page ids of each sequence in order.
        lengths: Tokens held [tokens].
        page_len: Tokens of a page [tokens].
        num_in_flight: Pages loaded before the first is multiplied; divides 128.
    """
    (batch_size, num_heads, head_dim), (num_pages, num_kv_heads, width) = q.shape, summaries.shape
    group = num_heads // num_kv_heads
    num_chunks = -(-page_table.shape[1] // PAGES_PER_BLOCK)
    padding = num_chunks * PAGES_PER_BLOCK - page_table.shape[1]
    table = jnp.pad(page_table, ((0, 0), (0, padding))) if padding else page_table
    layout = _row_layout(num_kv_heads, head_dim)
    parts = [pl.ds(start, head_dim) for start in range(0, width, head_dim)]
    lane_per_page = plgpu.Layout.TCGEN05_TMEM_NATIVE(1)

    def kernel(q_ref, summaries_ref, table_ref, lengths_ref, scores_ref, rows):
        b = lax.axis_index("sequence")
        first = lax.axis_index("chunk") * PAGES_PER_BLOCK
        held = (lengths_ref[b] + page_len - 1) // page_len
        num_left = jnp.minimum(held - first, PAGES_PER_BLOCK)

        @pl.when(num_left > 0)
        def _():
            heads = [plgpu.load(q_ref.at[b, :, g], layout=layout, optimized=False) for g in range(group)]
            probe = _probe([head.astype(jnp.float32) for head in heads], is_bounds=width > head_dim)

            def score(step, _):
                start = step * num_in_flight
                # Entries past the last page may hold anything, and are read with their batch.
                pages = [jnp.clip(table_ref[b, first + start + i], 0, num_pages - 1) for i in range(num_in_flight)]
                loads = [
                    [plgpu.load(summaries_ref.at[page, :, part], layout=layout, optimized=False) for part in parts]
                    for page in pages
                ]
                for i, summary in enumerate(loads):
                    products = sum(
                        part.astype(jnp.float32) * wanted for part, wanted in zip(summary, probe, strict=True)
                    )
                    if num_kv_heads == 1:
                        rows[start + i, 0] = jnp.sum(jnp.sum(products, axis=0), axis=0)
                    else:
                        rows[start + i] = plgpu.layout_cast(jnp.sum(products, axis=1), layout.reduce(1))
                return ()

            lax.fori_loop(0, (num_left + num_in_flight - 1) // num_in_flight, score, ())
            plgpu.commit_smem()
            for k in range(num_kv_heads):
                column = plgpu.load(rows.at[:, pl.ds(k, 1)], layout=lane_per_page, optimized=False)
                scores_ref[b, k, pl.ds(first, PAGES_PER_BLOCK)] = jnp.sum(column, axis=1)

    return plgpu.kernel(
        kernel,
        out_type=jax.ShapeDtypeStruct((batch_size, num_kv_heads, num_chunks * PAGES_PER_BLOCK), jnp.float32),
        scratch_types={"rows": plgpu.SMEM((PAGES_PER_BLOCK, num_kv_heads), jnp.float32)},
        # Shared memory is written in the loop and read once after `commit_smem`: no other barrier is needed.
        compiler_params=plgpu.CompilerParams(
            lowering_semantics=plgpu.LoweringSemantics.Lane, unsafe_no_auto_barriers=True
        ),
        grid=(batch_size, num_chunks),
        grid_names=("sequence", "chunk"),
        kernel_name="score_pages",
        interpret=_interpret.gpu_params(),
    )(q.reshape(batch_size, num_kv_heads, group, head_dim), summaries, table, lengths)


def can_score(summaries: Float[Array, "R K C"], head_dim: int) -> bool:
    """Return whether the rows of these summaries can be shared among the lanes of a warpgroup."""
    num_kv_heads = summaries.shape[1]
    return num_kv_heads in (1, 2, 4, *range(8, 257, 8)) and num_kv_heads * head_dim % 128 == 0


def _probe(heads: list[Any], *, is_bounds: bool) -> list[Any]:
    """Average the queries of a group, or their negative and their positive parts."""
    if not is_bounds:
        return [sum(heads) * (1 / len(heads))]
    return [sum(part(head, 0.0) for head in heads) * (1 / len(heads)) for part in (jnp.minimum, jnp.maximum)]


def _row_layout(num_rows: int, width: int) -> Any:
    """Return how 128 lanes share [num_rows, width]: neighbours share a row, up to 8 elements each."""
    rows = min(num_rows, 8)
    width = min(width, 1024 // rows)
    per_lane = rows * width // 128
    tiling, warps, lanes = {
        8: (((8, width), (2, width), (per_lane,)), (-5,), (-3, -2)),
        4: (((4, width), (per_lane,)), (-3,), (-2,)),
        2: (((2, width), (width // 2,), (per_lane,)), (-4, -3), (-2,)),
        1: (((1, width), (width // 4,), (per_lane,)), (-3,), (-2,)),
    }[rows]
    return plgpu.Layout.TILED(plgpu.Tiling(tiling), warps, lanes, -1)
