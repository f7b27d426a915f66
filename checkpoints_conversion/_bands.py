"""Fill chunks of a leaf from the rows of a stored tensor, so that the first are on their way while the next are read.

    stored [outputs, inputs]                     part of the leaf [inputs, outputs]
    band 0  | rows that fill the chunks with     | chunk | chunk |
            | the first outputs                  |   0   |   1   |
    band 1  | the next ones                      |       |       |

Where chunks are cut along the outputs, a band is a chunk; where they are cut along the inputs, it is the whole tensor.
Each chunk is an array of its own: TensorStore writes it to the disk without another copy. Called by `_convert`.
"""

import math
from dataclasses import dataclass
from typing import final

import numpy as np

from ._orbax import Region, regions
from ._rules import TensorRule

_BLOCK_ROWS = 256  # rows turned at a time: a cache line of each stays in the cache until all of it is used


@dataclass(frozen=True, kw_only=True)
class Banding:
    """Say how a stored tensor is cut.

    Its rows are what the first output axis counts: heads, not their elements.

    Attributes:
        rule: How the axes turn.
        chunk: Axes of a chunk of the part that the tensor fills.

    Example:
        >>> rule = TensorRule(hf_name="k", path=("k",), inputs=(4,), outputs=(6, 2))
        >>> banding = Banding(rule=rule, chunk=(4, 3, 2))
        >>> banding.stored_shape, banding.num_rows, banding.num_bytes(0, np.dtype("int8"))
        ((6, 2, 4), 3, 24)
    """

    rule: TensorRule
    chunk: tuple[int, ...]

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Axes as stored: outputs, then inputs, none flattened."""
        return self.rule.outputs + (self.rule.inputs or ())

    @property
    def num_inputs(self) -> int:
        """How many axes of the part are inputs; they come first."""
        return len(self.rule.inputs or ())

    @property
    def num_rows(self) -> int:
        """Rows of a band; the last may have fewer."""
        return self.chunk[self.num_inputs]

    def last(self, first: int) -> int:
        """Return the row after the band that starts with this one."""
        return min(first + self.num_rows, self.stored_shape[0])

    def num_bytes(self, first: int, dtype: np.dtype) -> int:
        """Return the size of the band that starts with this row; the first is the largest."""
        return (self.last(first) - first) * math.prod(self.stored_shape[1:]) * dtype.itemsize

    @property
    def block_rows(self) -> int:
        """Rows to turn at a time; what is stored as the leaf has it need not be turned."""
        return max(1, _BLOCK_ROWS // math.prod(self.rule.outputs[1:])) if self.rule.inputs else self.num_rows


@final
class Band:
    """Hold the chunks of one band.

    Args:
        banding: How the tensor is cut.
        first: The first row of the band.
        dtype: Of the chunks.

    Attributes:
        first: The first row.
        last: The row after the last.
        chunks: By their regions of the part.

    Example:
        >>> rule = TensorRule(hf_name="q", path=("q",), inputs=(2,), outputs=(3,))
        >>> band = Band(Banding(rule=rule, chunk=(1, 3)), 0, np.dtype("int8"))
        >>> band.fill(0, np.array([[0, 1], [2, 3], [4, 5]], np.int8))
        >>> [chunk.tolist() for _, chunk in band.chunks]
        [[[0, 2, 4]], [[1, 3, 5]]]
    """

    def __init__(self, banding: Banding, first: int, dtype: np.dtype):
        self.first = first
        self.last = banding.last(first)
        self._block_rows = banding.block_rows
        num_inputs = banding.num_inputs
        part_shape = banding.rule.part_shape
        rows_of_band = slice(first, self.last)
        shape = (*part_shape[:num_inputs], self.last - first, *part_shape[num_inputs + 1 :])
        block = np.empty(math.prod(shape), dtype)  # one for all: large blocks cost the system less than small ones
        self.chunks: list[tuple[Region, np.ndarray]] = []
        self._targets: list[tuple[Region, np.ndarray]] = []  # the same, seen as stored
        start = 0
        for region in regions(shape, banding.chunk):
            sizes = tuple(axis.stop - axis.start for axis in region)
            chunk = block[start : start + math.prod(sizes)].reshape(sizes)
            start += chunk.size
            self.chunks.append(((*region[:num_inputs], rows_of_band, *region[num_inputs + 1 :]), chunk))
            as_stored = (*range(num_inputs, chunk.ndim), *range(num_inputs))
            columns = (*region[num_inputs + 1 :], *region[:num_inputs])
            self._targets.append((columns, chunk.transpose(as_stored)))

    def fill(self, first: int, rows: np.ndarray) -> None:
        """Take rows, as stored, that belong to this band; floats are rounded to nearest even.

        Args:
            first: Which row of the tensor is the first of them.
            rows: The rows [n, *stored_shape[1:]].
        """
        dtype = self.chunks[0][1].dtype
        if rows.dtype != dtype:
            rows = rows.astype(dtype)
        bits = np.dtype(f"u{dtype.itemsize}")  # NumPy moves integers faster than bfloat16
        rows = rows.view(bits)
        for start in range(0, len(rows), self._block_rows):
            block = rows[start : start + self._block_rows]
            place = first - self.first + start
            for columns, target in self._targets:
                target.view(bits)[place : place + len(block)] = block[:, *columns]
