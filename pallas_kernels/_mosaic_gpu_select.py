"""Select pages on the GPU: the exact top-k of rows of scores, as bit masks in shared memory.

One warpgroup holds up to four rows as [G, W, 32] in registers, a warp each: page = 32 w + lane. The threshold of each
row is found by counting, four ways at a time, over the order-preserving integer image of float32; a sort would cost
more than reading the pages. Pages that tie at the threshold are then taken from the lowest on.

Rows together cost what one costs: a warpgroup alone is slow, and mostly waits.
"""

from typing import Any

import jax.experimental.pallas as pl
import jax.numpy as jnp
from jax import lax

from ._plgpu import plgpu

MAX_WORDS = 32
"""Words that one warp holds for a row of its own; longer rows are shared among the four, one row at a time."""
_LOWEST, _HIGHEST = -(2**31), 2**31 - 1
_INFINITY = 0x7F800000


def select_pages(
    scores: Any,
    words: Any,
    tied: Any,
    num_tied: Any,
    *,
    held: list[Any],
    num_blocks: int,
    num_sinks: int,
    num_local: int,
) -> None:
    """Set the bits of the chosen pages: first and newest ones, then the best, ties to the lowest page.

    Args:
        scores: Reference to the scores of G rows [G, W, 32] float32; those of pages not held may be anything.
        words: Reference to the masks [G, W] int32 in shared memory, which are written.
        tied: Scratch [G, W] int32 in shared memory.
        num_tied: Scratch [G, W] int32 in shared memory.
        held: Pages that the sequence of each row holds.
        num_blocks: Pages chosen, at most those held.
        num_sinks: First pages always chosen.
        num_local: Newest pages always chosen.
    """
    num_rows = scores.shape[0]
    if num_rows == 1:  # its counts are scalars: no vector of one has a layout
        scores, words, tied, num_tied = (ref.at[0] for ref in (scores, words, tied, num_tied))
    shape = scores.shape
    layout = _layout(shape)
    held_G = held[0] if num_rows == 1 else _stack(held, layout.reduce((1, 2)))
    wanted_G = jnp.minimum(held_G, num_blocks)
    word, lane = (plgpu.broadcasted_iota(jnp.int32, shape, len(shape) + axis, layout=layout) for axis in (-2, -1))
    page, bit = word * 32 + lane, jnp.left_shift(1, lane)

    score = plgpu.load(scores, layout=layout, optimized=False)
    image = lax.bitcast_convert_type(jnp.where(score == 0.0, 0.0, score), jnp.int32)  # -0.0 and 0.0 tie
    key = image ^ (jnp.right_shift(image, 31) & _HIGHEST)
    always = page >= _to_pages(held_G - num_local, shape)
    if num_sinks:
        always |= page < num_sinks
    key = jnp.where(always, _HIGHEST, key)
    key = jnp.where(page < _to_pages(held_G, shape), key, _LOWEST)

    threshold_G, count_G = _threshold(key, wanted_G, held_G)
    num_ties_G = count_G - wanted_G
    first_taken_G = threshold_G + jnp.minimum(num_ties_G, 1)
    words[...] = _add(jnp.where(key >= _to_pages(first_taken_G, shape), bit, 0), axis=-1)

    @pl.when(_highest(num_ties_G) > 0)
    def _():
        equal = (key >= _to_pages(threshold_G, shape)) & (key < _to_pages(first_taken_G, shape))
        tied[...] = _add(jnp.where(equal, bit, 0), axis=-1)
        num_tied[...] = _add(jnp.where(equal, 1, 0), axis=-1)
        num_needed_G = wanted_G - _count(key >= _to_pages(first_taken_G, shape))
        if num_rows == 1:
            _take_lowest(words, tied, num_tied, num_needed_G)
        for g in range(num_rows if num_rows > 1 else 0):
            num_needed = _highest(jnp.where(_row_is(g, num_rows, layout.reduce((1, 2))), num_needed_G, 0))
            _take_lowest(words.at[g], tied.at[g], num_tied.at[g], num_needed)


def _threshold(key: Any, wanted_G: Any, held_G: Any) -> tuple[Any, Any]:
    """Return the largest key that at least `wanted_G` keys of a row reach, and how many do; it stops at the count."""
    low = jnp.minimum(held_G, 0) + (_LOWEST + 1)  # a constant with the layout of the others
    high = jnp.where(held_G > wanted_G, _INFINITY, low)  # nothing to search where all are wanted

    def quarter(state):
        low, high, count = state
        middle = _middle(low, high)
        for candidate in (_middle(low, middle), middle, _middle(middle, high)):
            reached = _count(key >= _to_pages(candidate, key.shape))
            enough = reached >= wanted_G
            low = jnp.where(enough, candidate, low)
            count = jnp.where(enough, reached, count)
            high = jnp.where(enough, high, jnp.minimum(high, candidate - 1))
        return low, jnp.where(count == wanted_G, low, high), count

    def is_open(state):
        return _highest(jnp.where(state[0] < state[1], 1, 0)) > 0

    low, _, count = lax.while_loop(is_open, quarter, (low, high, held_G))
    return low, count


def _middle(low: Any, high: Any) -> Any:
    """Return the middle of two int32, rounded up, without overflow."""
    return (low | high) - jnp.right_shift(low ^ high, 1)


def _take_lowest(words: Any, tied: Any, num_tied: Any, num_needed: Any) -> None:
    """Add the lowest tied pages of a row to its mask."""

    def take(w, need):
        num_taken = jnp.minimum(need, num_tied[w])

        def drop_highest(state):
            bits, num_left = state
            return bits ^ jnp.left_shift(1, 31 - lax.clz(bits)), num_left - 1

        bits, _ = lax.while_loop(lambda state: state[1] > num_taken, drop_highest, (tied[w], num_tied[w]))
        bits |= words[w]
        plgpu.commit_smem()  # every thread has read the word before any writes it
        words[w] = bits
        return need - num_taken

    lax.fori_loop(0, words.shape[0], take, num_needed)


def _stack(scalars: list[Any], layout: Any) -> Any:
    """Return scalars as a vector [G]."""
    stacked = plgpu.layout_cast(jnp.full((len(scalars),), 0, jnp.int32), layout)
    for g, scalar in enumerate(scalars):
        stacked = jnp.where(_row_is(g, len(scalars), layout), scalar, stacked)
    return stacked


def _row_is(g: int, num_rows: int, layout: Any) -> Any:
    return plgpu.broadcasted_iota(jnp.int32, (num_rows,), 0, layout=layout) == g


def _to_pages(values_G: Any, shape: tuple[int, ...]) -> Any:
    return lax.broadcast_in_dim(values_G, shape, [0]) if len(shape) == 3 else values_G


def _highest(values_G: Any) -> Any:
    return jnp.max(values_G, axis=0) if values_G.ndim else values_G


def _count(mask: Any) -> Any:
    """Return how many pages of each row are set, [G], or of the only one."""
    return _add(_add(jnp.where(mask, 1, 0), axis=-2), axis=-1)


def _add(values: Any, axis: int) -> Any:
    return jnp.sum(values.astype(jnp.int32), axis=axis)


def _layout(shape: tuple[int, ...]) -> Any:
    """Return a layout with a page for each lane; each warp holds a row, or a quarter of the only one."""
    if len(shape) == 3:
        return plgpu.Layout.TILED(plgpu.Tiling(((4, 1, 32), (1,))), (-4,), (-2,), -1)
    return plgpu.Layout.TILED(plgpu.Tiling(((4, 32), (1,))), (-3,), (-2,), -1)
