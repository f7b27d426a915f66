"""The sizes of a decode on the GPU, and how its work is cut into items."""

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from ._mosaic_gpu_select import MAX_WORDS

ROWS = 64
"""Rows of the left operand of a product on the tensor cores."""
GROUP_ROWS = 8
"""Rows of q that are copied: a tile of shared memory."""
MAX_SELECTED_TOGETHER = 4
"""Items whose pages are selected at once: a warp each."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """Hold the static sizes of a launch.

    Attributes:
        batch_size: Sequences.
        num_kv_heads: KV heads.
        group: Query heads of a KV head.
        head_dim: Width of a head.
        page_len: Tokens of a page [tokens].
        max_pages: Pages in the table.
        num_blocks: Pages read, sinks and newest included.
        num_sinks: First pages always read.
        num_local: Newest pages always read.
        num_splits: Parts into which the pages of a sequence and KV head are cut.
        num_stages: Tiles in the ring.
        num_ctas: Thread blocks.
        entry_bytes: Size of a number in the pages [bytes].
        scale_bytes: Size of the scale of a vector [bytes]; 0 for pages without.
    """

    batch_size: int
    num_kv_heads: int
    group: int
    head_dim: int
    page_len: int
    max_pages: int
    num_blocks: int
    num_sinks: int
    num_local: int
    num_splits: int
    num_stages: int
    num_ctas: int
    entry_bytes: int = 2
    scale_bytes: int = 0

    def replace(self, **changes: int) -> "Work":
        """Return a copy with other sizes."""
        return dataclasses.replace(self, **changes)

    @property
    def tile_len(self) -> int:
        """Tokens of a tile: as many bytes of either kind of pages."""
        return max(128 // self.entry_bytes, self.page_len)

    @property
    def pages_per_tile(self) -> int:
        """Pages of a tile."""
        return self.tile_len // self.page_len

    @property
    def copies_per_tile(self) -> int:
        """Copies that bring the keys of a tile, or its values."""
        return self.pages_per_tile * (2 if self.scale_bytes else 1)

    @property
    def num_words(self) -> int:
        """Words of 32 pages, padded to whole warps."""
        return 4 * -(-self.max_pages // 128)

    @property
    def num_together(self) -> int:
        """Items whose pages are selected at once."""
        return MAX_SELECTED_TOGETHER if self.num_words <= MAX_WORDS else 1

    @property
    def num_tables(self) -> int:
        """Items whose page ids lie in shared memory: those that are read, and as many ahead as is cheap."""
        return max(2, self.num_together)

    @property
    def num_masks(self) -> int:
        """Selections whose masks lie in shared memory: those in use, and the one that is being made."""
        return self.num_tables // self.num_together + 1

    @property
    def num_items(self) -> int:
        """Parts of all sequences and KV heads."""
        return self.num_splits * self.batch_size * self.num_kv_heads

    @property
    def heads_per_tile(self) -> int:
        """KV heads whose groups share 8 rows of q; 1 if each gets 8 padded rows of its own."""
        whole = GROUP_ROWS % self.group == 0 and (self.num_kv_heads * self.group) % GROUP_ROWS == 0
        return GROUP_ROWS // self.group if whole else 1

    @property
    def stage_bytes(self) -> int:
        """Shared memory of one stage [bytes]."""
        return 2 * self.tile_len * (self.entry_bytes * self.head_dim + self.scale_bytes)

    @property
    def fixed_bytes(self) -> int:
        """Shared memory of everything else, rounded up generously [bytes]."""
        num_rows = GROUP_ROWS if self.scale_bytes else ROWS
        out_bytes = (2 if self.num_splits == 1 else 4) * self.head_dim
        rows = num_rows * (2 * self.head_dim + 2 * self.tile_len + out_bytes + 4)
        if self.scale_bytes:
            rows += 2 * self.tile_len * self.head_dim  # widened values
        per_word = self.num_together * (32 + 2 + self.num_masks) + 32 * self.num_tables
        return rows + 4 * self.num_words * per_word + 12 * 1024  # barriers, alignment, and scratch of reductions

    def place(self, index: Any) -> tuple[Any, Any, Any]:
        """Return part, sequence and KV head of the item of this number."""
        num_rows = self.batch_size * self.num_kv_heads
        row = index % num_rows
        return index // num_rows, row // self.num_kv_heads, row % self.num_kv_heads

    def item(self, lengths: Any, index: Any) -> "Item":
        """Return the item of this number; `lengths` is a reference in device memory."""
        split, b, k = self.place(index)
        length = lengths[b]
        held = _ceil_div(length, self.page_len)
        num_chosen = jnp.minimum(held, self.num_blocks)
        per_split = _ceil_div(_ceil_div(num_chosen, self.pages_per_tile), self.num_splits) * self.pages_per_tile
        first = jnp.minimum(split * per_split, num_chosen)
        last = jnp.minimum(first + per_split, num_chosen)
        num_tiles = _ceil_div(last - first, self.pages_per_tile)
        return Item(split, b, k, length, held, num_chosen, first, last, num_tiles)


class Item(NamedTuple):
    """Hold which pages a block reads next: the chosen ones from `first` to `last`, counted in order."""

    split: Any
    b: Any
    k: Any
    length: Any
    held: Any
    num_chosen: Any
    first: Any
    last: Any
    num_tiles: Any


class Queue(NamedTuple):
    """Hold what one thread block does: the items block, block + num_ctas, ..., counted from 0.

    `lengths` is a reference in device memory.
    """

    work: Work
    lengths: Any
    block: Any

    @property
    def num_items(self) -> Any:
        """Items of this block."""
        return (self.work.num_items - self.block + self.work.num_ctas - 1) // self.work.num_ctas

    def place(self, i: Any) -> tuple[Any, Any, Any]:
        """Return part, sequence and KV head of item i: known before any length is."""
        return self.work.place(self.block + i * self.work.num_ctas)

    def item(self, i: Any) -> Item:
        """Return item i."""
        return self.work.item(self.lengths, self.block + i * self.work.num_ctas)


def query_tiles(work: Work, q: Float[Array, "B N H"]) -> Float[Array, "B X 8 H"]:
    """Lay the groups into tiles of 8 rows: as they are where they fill such tiles, padded one by one where not."""
    batch_size, _, head_dim = q.shape
    if work.heads_per_tile > 1 or work.group == GROUP_ROWS:
        return q.reshape(batch_size, -1, GROUP_ROWS, head_dim)
    groups = q.reshape(batch_size, work.num_kv_heads, work.group, head_dim)
    return jnp.pad(groups, ((0, 0), (0, 0), (0, GROUP_ROWS - work.group), (0, 0)))


def rows_of_groups(work: Work, lse: Float[Array, "X B K _"]) -> Float[Array, "X B N"]:
    """Take the rows of each KV head's group out of the padded log-sum-exps."""
    per_tile, shape = work.heads_per_tile, lse.shape[:2]
    if per_tile == 1:
        return lse[..., : work.group].reshape(*shape, -1)
    tiles = lse[..., :GROUP_ROWS].reshape(*shape, -1, per_tile, per_tile, work.group)
    return jnp.diagonal(tiles, axis1=3, axis2=4).swapaxes(-1, -2).reshape(*shape, -1)


def _ceil_div(numerator: Any, denominator: int) -> Any:
    return (numerator + denominator - 1) // denominator
