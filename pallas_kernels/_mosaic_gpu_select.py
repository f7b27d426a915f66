"""Select pages on the GPU: the exact top-k of a row of scores, as a bit mask in shared memory.

One warpgroup holds the row as [W, 32] in registers: page = 32 w + lane. The threshold is found by counting, four ways
at a time, over the order-preserving integer image of float32; a sort would cost more than reading the pages. Pages that
tie at the threshold are then taken from the lowest on.
"""

from typing import Any

import jax.experimental.pallas as pl
import jax.numpy as jnp
from jax import lax

from ._plgpu import plgpu

_LOWEST, _HIGHEST = -(2**31), 2**31 - 1
_WIDE = 32  # words that every warp may hold for itself: 1,024 pages


def select_pages(
    scores: Any, words: Any, tied: Any, num_tied: Any, *, held: Any, num_blocks: int, num_sinks: int, num_local: int
) -> None:
    """Set the bits of the chosen pages: first and newest ones, then the best, ties to the lowest page.

    Args:
        scores: Reference to scores [W, 32] float32 in device memory; those of pages not held may be anything.
        words: Reference to the mask [W] int32 in shared memory, which is written.
        tied: Scratch [W] int32 in shared memory.
        num_tied: Scratch [W] int32 in shared memory.
        held: Pages that the sequence holds.
        num_blocks: Pages chosen, at most `held`.
        num_sinks: First pages always chosen.
        num_local: Newest pages always chosen.
    """
    shape = scores.shape
    layout = _layout(shape[0])
    row, lane = (plgpu.broadcasted_iota(jnp.int32, shape, axis, layout=layout) for axis in (0, 1))
    page, bit = row * 32 + lane, jnp.left_shift(1, lane)
    always = (page < held) & ((page < num_sinks) | (page >= held - num_local))
    free = (page >= num_sinks) & (page < held - num_local)
    num_always = jnp.minimum(held, num_sinks + num_local)
    num_free = jnp.minimum(held, num_blocks) - num_always

    score = plgpu.load(scores, layout=layout, optimized=False)
    image = lax.bitcast_convert_type(jnp.where(score == 0.0, 0.0, score), jnp.int32)  # -0.0 and 0.0 tie
    key = jnp.where(free, image ^ (jnp.right_shift(image, 31) & _HIGHEST), _LOWEST)

    threshold, count = _threshold(key, free, num_free, held - num_always)
    ties = count > num_free
    chosen = always | (free & (key >= threshold + jnp.where(ties, 1, 0)))
    words[...] = _add(jnp.where(chosen, bit, 0), axis=1)

    @pl.when(ties)
    def _():
        equal = free & (key == threshold)
        tied[...] = _add(jnp.where(equal, bit, 0), axis=1)
        num_tied[...] = _add(jnp.where(equal, 1, 0), axis=1)
        num_above = _count(free & (key > threshold))
        lax.fori_loop(0, shape[0], lambda w, need: _take_lowest(words, tied, num_tied, w, need), num_free - num_above)


def _threshold(key: Any, free: Any, num_wanted: Any, num_free: Any) -> tuple[Any, Any]:
    """Return the largest key that at least `num_wanted` keys reach, and how many do; it stops at the count."""
    low = jnp.min(jnp.min(jnp.where(free, key, _HIGHEST), axis=0), axis=0)
    high = jnp.max(jnp.max(key, axis=0), axis=0)
    # Nothing to search where all are wanted, or none.
    low = jnp.where(num_wanted <= 0, _HIGHEST, low)
    high = jnp.where(num_wanted >= num_free, low, high)
    count = jnp.where(num_wanted <= 0, 0, num_free)

    def quarter(state):
        low, high, count = state
        middle = _middle(low, high)
        below, above = _middle(low, middle), _middle(middle, high)
        for candidate in (below, middle, above):
            reached = _count(key >= candidate)
            low = jnp.where(reached >= num_wanted, candidate, low)
            count = jnp.where(reached >= num_wanted, reached, count)
            high = jnp.where(reached < num_wanted, jnp.minimum(high, candidate - 1), high)
        return low, jnp.where(count == num_wanted, low, high), count

    threshold, _, count = lax.while_loop(lambda state: state[0] < state[1], quarter, (low, high, count))
    return threshold, count


def _middle(low: Any, high: Any) -> Any:
    """Return the middle of two int32, rounded up, without overflow."""
    return (low | high) - jnp.right_shift(low ^ high, 1)


def _take_lowest(words: Any, tied: Any, num_tied: Any, w: Any, need: Any) -> Any:
    """Add the lowest tied pages of one word to the mask; return how many are still needed."""
    num_taken = jnp.minimum(need, num_tied[w])

    def drop_highest(state):
        bits, num_left = state
        return bits ^ jnp.left_shift(1, 31 - lax.clz(bits)), num_left - 1

    bits, _ = lax.while_loop(lambda state: state[1] > num_taken, drop_highest, (tied[w], num_tied[w]))
    words[w] = words[w] | bits
    return need - num_taken


def _count(mask: Any) -> Any:
    return _add(_add(jnp.where(mask, 1, 0), axis=0), axis=0)


def _add(values: Any, axis: int) -> Any:
    return jnp.sum(values.astype(jnp.int32), axis=axis)


def _layout(num_words: int) -> Any:
    """Return a layout with a page for each lane; each warp holds all words, or a quarter of many."""
    if num_words <= _WIDE:
        return plgpu.Layout.TILED(plgpu.Tiling(((1, 32), (1,))), (plgpu.Replicated(4),), (-2,), -1)
    return plgpu.Layout.TILED(plgpu.Tiling(((4, 32), (1,))), (-3,), (-2,), -1)
