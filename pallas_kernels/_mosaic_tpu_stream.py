"""A ring of VMEM buffers that page copies run through, across the grid steps of a TPU kernel.

Called by the kernels that read pools (`_mosaic_tpu_score`, `_mosaic_tpu_attend`). A row is what one grid step works on;
it lists pages, read some pages at a time (a chunk). The copies of the next chunks are under way while one is worked on,
also those of later rows, so that the memory does not wait at the end of a row:

    row 0            row 1    row 2 (no page)   row 3
    [c0][c1][c2]     [c0]                       [c0][c1] ...      chunks, in the order they are copied and used
          ^used            ^next to copy: at most num_buffers - 1 chunks ahead

Where that is (row, chunk, buffers) is kept in SMEM between grid steps. A chunk's copies signal one semaphore, which
counts bytes: a full chunk is waited for at once, whatever number of copies it came by.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ._interpret import is_interpreted

LANES, SUBLANES = 128, 8
# Of 64 MiB (v5p, 7x) or 128 MiB (v5e, v6e) per core; the rest is XLA's, which keeps operands of its neighbours there.
VMEM_LIMIT_BYTES = 48 * 2**20
_UNSET_LIMIT_BYTES = 16 * 2**20
_WORKSPACE_BYTES = 2 * 2**20
_UNROLLED = 8
NUM_STATES = 4
_ROW, _CHUNK, _FILLED, _USED = range(NUM_STATES)


@dataclass(frozen=True, kw_only=True)
class PageStream:
    """The chunks of pages of all rows of one core.

    Attributes:
        num_pages: Number of pages that a row reads, as a function of the row.
        start: Start the copies of a row's pages [first, first + count): `start(row, first, count, slot)`.
        buffers: Rings of buffers [num_buffers, pages_per_buffer, ...] in VMEM; each is filled by `start`.
        whole: Rings of buffers [num_buffers, ...] of which `start` fills each by one copy, whatever the count.
        semaphores: One DMA semaphore per ring and buffer [rings, num_buffers], those of `buffers` first.
        state: SMEM int32 [NUM_STATES], kept between grid steps.
    """

    num_pages: Callable[[Any], Any]
    start: Callable[[Any, Any, Any, Any], None]
    buffers: tuple[Any, ...]
    semaphores: Any
    state: Any
    whole: tuple[Any, ...] = ()

    @property
    def num_buffers(self) -> int:
        return self.buffers[0].shape[0]

    @property
    def pages_per_buffer(self) -> int:
        return self.buffers[0].shape[1]

    def open(self, first_row: Any, end_row: Any) -> None:
        """Start the first chunks of the rows [first_row, end_row)."""
        self.state[_ROW] = self._next_row(first_row, end_row)
        for index in (_CHUNK, _FILLED, _USED):
            self.state[index] = 0
        jax.lax.fori_loop(0, self.num_buffers - 1, lambda _, __: self._fill(end_row), None)

    def read(self, row: Any, end_row: Any, use: Callable[[Any, Any], None]) -> None:
        """Run `use(chunk, slot)` on each chunk of a row, and start those that come later."""

        def step(chunk: Any, _: None) -> None:
            self._fill(end_row)  # into the buffer that the step before has used
            slot = self.state[_USED]
            self._wait(self._count(row, chunk), slot)
            use(chunk, slot)
            self.state[_USED] = self._after(slot)

        jax.lax.fori_loop(0, self._num_chunks(row), step, None)

    def _fill(self, end_row: Any) -> None:
        row, chunk, slot = self.state[_ROW], self.state[_CHUNK], self.state[_FILLED]

        @pl.when(row < end_row)
        def _() -> None:
            self.start(row, chunk * self.pages_per_buffer, self._count(row, chunk), slot)
            self.state[_FILLED] = self._after(slot)
            is_last = chunk + 1 == self._num_chunks(row)
            self.state[_CHUNK] = jnp.where(is_last, 0, chunk + 1)

            @pl.when(is_last)
            def _() -> None:
                self.state[_ROW] = self._next_row(row + 1, end_row)

    def _wait(self, count: Any, slot: Any) -> None:
        for ring, buffer in enumerate(self.whole, len(self.buffers)):
            pltpu.make_async_copy(buffer.at[slot], buffer.at[slot], self.semaphores.at[ring, slot]).wait()
        for ring, buffer in enumerate(self.buffers):
            semaphore = self.semaphores.at[ring, slot]

            def wait(ref: Any, semaphore: Any = semaphore) -> None:
                pltpu.make_async_copy(ref, ref, semaphore).wait()  # only the bytes and the semaphore matter here

            @pl.when(count == self.pages_per_buffer)
            def _(buffer: Any = buffer, wait: Callable = wait) -> None:
                wait(buffer.at[slot])

            @pl.when(count < self.pages_per_buffer)
            def _(buffer: Any = buffer, wait: Callable = wait) -> None:
                jax.lax.fori_loop(0, count, lambda i, _: wait(buffer.at[slot, i]), None)

    def _next_row(self, row: Any, end_row: Any) -> Any:
        """Return the first row from `row` on that reads a page, or `end_row`."""

        def is_empty(row: Any) -> Any:
            # No short circuit: the row past the end must not be looked up.
            return (row < end_row) & (self.num_pages(jnp.minimum(row, end_row - 1)) == 0)

        return jax.lax.while_loop(is_empty, lambda row: row + 1, row)

    def _num_chunks(self, row: Any) -> Any:
        return jax.lax.div(self.num_pages(row) + (self.pages_per_buffer - 1), self.pages_per_buffer)

    def _count(self, row: Any, chunk: Any) -> Any:
        return jnp.minimum(self.num_pages(row) - chunk * self.pages_per_buffer, self.pages_per_buffer)

    def _after(self, slot: Any) -> Any:
        return jnp.where(slot + 1 == self.num_buffers, 0, slot + 1)


def unrolled(limit: int, most: int) -> int:
    """Return how many bodies a turn of a loop has, a divisor of `limit`; interpreted, they only cost compile time."""
    return 1 if is_interpreted() else max(width for width in range(1, min(limit, most) + 1) if limit % width == 0)


def repeat(count: Any, limit: int, body: Callable[[Any], None]) -> None:
    """Run `body(i)` for i < count; the whole `limit`, known ahead, with several bodies per turn of the loop."""
    per_turn = unrolled(limit, _UNROLLED)
    if per_turn == 1:
        jax.lax.fori_loop(0, count, lambda i, _: body(i), None)
        return

    @pl.when(count == limit)
    def _() -> None:
        def turn(first: Any, _: None) -> None:
            for i in range(per_turn):
                body(first * per_turn + i)

        jax.lax.fori_loop(0, limit // per_turn, turn, None)

    @pl.when(count < limit)
    def _() -> None:
        jax.lax.fori_loop(0, count, lambda i, _: body(i), None)


def rounded(count: int, multiple: int) -> int:
    """Return the next multiple."""
    return -(-count // multiple) * multiple


def tile_bytes(rows: int, columns: int, dtype: Any) -> int:
    """Return the bytes of a matrix in tiles of 128 lanes and 8 sublanes of 32 bits; smaller values lie side by side."""
    itemsize = jnp.dtype(dtype).itemsize
    tile_rows = SUBLANES * 4 // itemsize
    if itemsize == 1 and rows < tile_rows:
        tile_rows = SUBLANES  # a page of 16 fills two such tiles
    return rounded(rows, tile_rows) * rounded(columns, LANES) * itemsize


def vmem_limit(buffer_bytes: int) -> int:
    """Return what the compiler may use: the buffers, and room for the values that do not fit the registers."""
    return max(_UNSET_LIMIT_BYTES, buffer_bytes + _WORKSPACE_BYTES)
