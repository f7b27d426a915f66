"""Choose the pages of highest score, ties to the lowest page, listed in ascending order: TPU kernel.

Called by `_mosaic_tpu`. A TPU has no sort, no scatter and no gather over lanes. Many rows (sequence, KV head) of scores
[X, M] are worked on at once, so that the waits of the vector unit are shared; only the tiles of held pages are visited.

1. Scores become int32 numbers of the same order. Bit by bit from the top, find the largest threshold that at least n
   numbers reach: 32 passes that compare and count. It is the n-th largest number.
2. Choose what lies above the threshold, and of what equals it the lowest pages, as many as are missing. How many lie
   to the left is a product with a triangular matrix of ones, 128 pages at a time, plus what the tiles before hold:

       chosen    0 1 0 0 1 1 0 0 | 0 0 0 0 0 1 0 0      2 tiles of a row
       count     0 1 1 1 2 3 3 3 | 0 0 0 0 0 1 1 1      within the tile, itself included
       before    0               | 3                    in earlier tiles

3. The j-th chosen page is in the tile with before <= j < before + count[last], and there it has as many pages to its
   left as have count <= j - before. The tile of each j is one column of a 0/1 matrix, so that one product fetches the
   counts of the right tile for all j: 128 * J comparisons a row, in place of M * J.

All products are of 0, 1 and counts up to 128: exact in bfloat16 with float32 sums.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from ._interpret import tpu_params
from ._mosaic_tpu_stream import LANES, rounded, unrolled, vmem_limit

_UNROLLED = 4
# Numbers that no score has: those of pages never and always chosen.
_LOWEST, _HIGHEST = np.iinfo(np.int32).min, np.iinfo(np.int32).max


@dataclass(frozen=True, kw_only=True)
class SelectSpec:
    """What the kernel is compiled for.

    Attributes:
        num_blocks: Pages chosen, J.
        num_sink_blocks: First pages always chosen.
        num_local_blocks: Newest pages always chosen.
        num_rows: Rows worked on at once; a multiple of 8.
        fill: What is listed where no page is left to choose.
    """

    num_blocks: int
    num_sink_blocks: int
    num_local_blocks: int
    num_rows: int
    fill: int


def vmem_bytes(max_pages: int, spec: SelectSpec) -> int:
    """Return the VMEM of the kernel's buffers [bytes]."""
    # Pallas keeps two of the scores, the lengths and the chosen pages; three scratch arrays like the scores.
    return 4 * spec.num_rows * ((2 + 3) * max_pages + 2 * LANES + 2 * rounded(spec.num_blocks, LANES))


def select_pages(scores: Float[Array, "X M"], num_held: Int[Array, " X"], spec: SelectSpec) -> Int[Array, "X J"]:
    """Return the chosen pages of each row, ascending, filled up; M is a multiple of 1024, X of `spec.num_rows`."""
    num_rows, max_pages = scores.shape
    rows, num_tiles, width = spec.num_rows, max_pages // LANES, rounded(spec.num_blocks, LANES)
    # Tiles of 128 pages that the longest row of each grid step holds.
    tiles_held = (jnp.max(num_held.reshape(-1, rows), axis=1) + (LANES - 1)) // LANES
    held = jnp.broadcast_to(num_held[:, None], (num_rows, LANES))
    grid_spec = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1,
        grid=(num_rows // rows,),
        in_specs=[
            pl.BlockSpec((rows, max_pages), lambda step, _: (step, 0)),
            pl.BlockSpec((rows, LANES), lambda step, _: (step, 0)),
        ],
        out_specs=pl.BlockSpec((rows, width), lambda step, _: (step, 0)),
        scratch_shapes=[
            pltpu.VMEM((rows, max_pages), jnp.int32),
            pltpu.VMEM((rows, num_tiles, LANES), jnp.float32),
            pltpu.VMEM((rows, num_tiles, LANES), jnp.float32),
        ],
    )

    def kernel(*refs: Any) -> None:
        _select_kernel(*refs, spec=spec)

    selected = pl.pallas_call(
        kernel,
        grid_spec=grid_spec,
        out_shape=jax.ShapeDtypeStruct((num_rows, width), jnp.int32),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",), vmem_limit_bytes=vmem_limit(vmem_bytes(max_pages, spec))
        ),
        interpret=tpu_params(),
        name="select_pages",
    )(tiles_held, scores, held)
    return selected[:, : spec.num_blocks]


def _select_kernel(
    tiles_ref,  # [steps] int32, SMEM
    scores_ref,  # [X, M] f32, VMEM
    held_ref,  # [X, 128] int32, VMEM: the same number in every lane
    selected_ref,  # [X, J] int32, VMEM
    numbers_ref,  # [X, M] int32, VMEM: the scores in order of int32
    counts_ref,  # [X, tiles, 128] f32, VMEM: pages chosen up to this one in its tile
    before_ref,  # [X, tiles, 128] f32, VMEM: pages chosen in earlier tiles, the same number in every lane
    *,
    spec: SelectSpec,
) -> None:
    num_tiles, held = tiles_ref[pl.program_id(0)], held_ref[:, :1]
    wanted = jnp.minimum(held, spec.num_blocks)  # [X, 1]
    _write_numbers(scores_ref, numbers_ref, held, num_tiles, spec)

    def raise_bit(index: Any, threshold: Array) -> Array:
        candidate = threshold + jax.lax.shift_left(jnp.int32(1), 31 - index)  # bit 31 wraps from the lowest to 0
        reached = _count(numbers_ref, num_tiles, lambda numbers: numbers >= candidate)
        return jnp.where(reached >= wanted.astype(jnp.float32), candidate, threshold)

    lowest = jnp.full(held.shape, _LOWEST, jnp.int32)
    threshold = jax.lax.fori_loop(0, 32, raise_bit, lowest)
    above = _count(numbers_ref, num_tiles, lambda numbers: numbers > threshold)
    num_equal = wanted.astype(jnp.float32) - above  # chosen among those that equal the threshold
    _count_chosen(numbers_ref, counts_ref, before_ref, threshold, num_equal, held, num_tiles)
    _list_chosen(counts_ref, before_ref, selected_ref, spec.fill)


def _tile(index: Any) -> Any:
    return pl.ds(pl.multiple_of(index * LANES, LANES), LANES)


def _pages(index: Any, num_rows: int) -> Array:
    return index * LANES + jax.lax.broadcasted_iota(jnp.int32, (num_rows, LANES), 1)


def _write_numbers(scores_ref: Any, numbers_ref: Any, held: Array, num_tiles: Any, spec: SelectSpec) -> None:
    """Write the scores as int32 numbers of the same order; pages always chosen are the highest."""

    def write(index: Any, _: None) -> None:
        scores, page = scores_ref[:, _tile(index)], _pages(index, scores_ref.shape[0])
        scores = jnp.where(scores == 0.0, 0.0, scores)  # -0.0 and 0.0 tie
        bits = jax.lax.bitcast_convert_type(scores, jnp.int32)
        numbers = jnp.where(bits < 0, bits ^ _HIGHEST, bits)
        always = (page < spec.num_sink_blocks) | (page >= held - spec.num_local_blocks)
        numbers = jnp.where(always, _HIGHEST, numbers)
        numbers_ref[:, _tile(index)] = jnp.where(page < held, numbers, _LOWEST)

    jax.lax.fori_loop(0, num_tiles, write, None)


def _count(numbers_ref: Any, num_tiles: Any, is_counted: Any) -> Array:
    """Count the pages of each row that fulfil something, [X, 1] f32: integers are not summed over lanes."""

    def add(index: Any, count: Array) -> Array:
        return count + jnp.where(is_counted(numbers_ref[:, _tile(index)]), 1.0, 0.0)

    zeros = jnp.zeros((numbers_ref.shape[0], LANES), jnp.float32)
    return jnp.sum(jax.lax.fori_loop(0, num_tiles, add, zeros), axis=1, keepdims=True)


def _count_chosen(
    numbers_ref: Any,
    counts_ref: Any,
    before_ref: Any,
    threshold: Array,
    num_equal: Array,
    held: Array,
    num_tiles: Any,
) -> None:
    """Write how many pages are chosen up to each page in its tile, and in the tiles before."""
    num_rows = numbers_ref.shape[0]
    left = jax.lax.broadcasted_iota(jnp.int32, (LANES, LANES), 0)
    up_to = (left <= jax.lax.broadcasted_iota(jnp.int32, (LANES, LANES), 1)).astype(jnp.float32)

    def running(flags: Array) -> Array:
        return _dot(flags.astype(jnp.float32), up_to, ((1,), (0,)))  # [X, 128]

    # Tiles that are not visited hold none: NaN would spread in the products.
    counts_ref[...] = jnp.zeros(counts_ref.shape, jnp.float32)
    before_ref[...] = jnp.zeros(before_ref.shape, jnp.float32)

    def write(index: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        equal_before, chosen_before = carry  # [X, 1]
        numbers = numbers_ref[:, _tile(index)]
        equal = (numbers == threshold) & (_pages(index, num_rows) < held)
        num_up_to = running(equal)
        chosen = (numbers > threshold) | (equal & (equal_before + num_up_to <= num_equal))
        counts = running(chosen)
        counts_ref[:, pl.ds(index, 1), :] = counts[:, None, :]
        before_ref[:, pl.ds(index, 1), :] = jnp.broadcast_to(chosen_before, counts.shape)[:, None, :]
        return equal_before + num_up_to[:, LANES - 1 :], chosen_before + counts[:, LANES - 1 :]

    zeros = jnp.zeros((num_rows, 1), jnp.float32)
    jax.lax.fori_loop(0, num_tiles, write, (zeros, zeros))


def _list_chosen(counts_ref: Any, before_ref: Any, selected_ref: Any, fill: int) -> None:
    """Write the chosen pages of each row in ascending order."""
    (num_rows, num_tiles, _), width = counts_ref.shape, selected_ref.shape[1]
    place = jax.lax.broadcasted_iota(jnp.int32, (1, width), 1).astype(jnp.float32)  # j
    tile = jax.lax.broadcasted_iota(jnp.int32, (num_tiles, width), 0).astype(jnp.float32)

    def list_row(row: Any) -> None:
        counts, before = counts_ref[row], before_ref[row][:, :1]  # [tiles, 128], [tiles, 1]
        is_in = (before <= place) & (place < before + counts[:, LANES - 1 :])  # [tiles, J]
        counts = _dot(counts, is_in.astype(jnp.float32), ((0,), (0,)))  # [128, J]: of the tile of each j
        rank = place - jnp.sum(jnp.where(is_in, before, 0.0), axis=0, keepdims=True)  # [1, J]
        lane = jnp.sum(jnp.where(counts <= rank, 1.0, 0.0), axis=0, keepdims=True)
        page = jnp.sum(jnp.where(is_in, tile, 0.0), axis=0, keepdims=True) * LANES + lane
        # No tile holds a j past the last chosen page.
        num_in = jnp.sum(jnp.where(is_in, 1.0, 0.0), axis=0, keepdims=True)
        selected_ref[pl.ds(row, 1), :] = jnp.where(num_in > 0.0, page.astype(jnp.int32), fill)

    per_turn = unrolled(num_rows, _UNROLLED)

    def list_rows(turn: Any, _: None) -> None:
        for i in range(per_turn):  # independent rows hide the waits for one another's products
            list_row(turn * per_turn + i)

    jax.lax.fori_loop(0, num_rows // per_turn, list_rows, None)


def _dot(left: Array, right: Array, axes: tuple[tuple[int], tuple[int]]) -> Array:
    return jax.lax.dot_general(left, right, (axes, ((), ())), preferred_element_type=jnp.float32)
