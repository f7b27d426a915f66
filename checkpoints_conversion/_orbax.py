"""The weights of a converted checkpoint: an Orbax checkpoint whose arrays are written and read a few chunks at a time.

Orbax's own `save` would hold a whole leaf twice, or the whole model, and would wake the accelerator and take most of
its memory. So TensorStore, which keeps the arrays for Orbax, writes them, and `_METADATA` names them; no device is
looked for. Orbax reads the result like any other checkpoint. A chunk carries its CRC-32C, so that damage is an error
when read.

    weights/_METADATA               names of the leaves, by which Orbax finds them
            _CHECKPOINT_METADATA    says which of Orbax's handlers reads it
            manifest.ocdbt          where the root is of a tree of keys, one for each chunk
            d/                      chunks, the nodes of that tree, and nodes that newer ones replaced

Called by `_convert` and `_export`; `kinetics_jax.models` restores through Orbax.
"""

import itertools
import json
import math
import os
import re
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

MAX_CHUNK_BYTES = 1 << 24
_MIN_SPLIT_BYTES, _MIN_SPLITS = 1 << 20, 8  # a model axis of 8 finds chunks of its own in all but small leaves
_MAX_DIVISION = 8  # a chunk whose next divisor is further below its half stays: thousands of chunks cost more
_MAX_READ_BYTES = 1 << 26  # chunks that `read_part` may have under way
_DATA_FILE_BYTES = 1 << 25  # of a file of chunks, when more wait to be written; else a file holds less
_MAX_FILE_THREADS = 16
_DICT_KEY = 2  # Orbax's number for the key of a dict

Slot = tuple[int, ...]
Region = tuple[slice, ...]


@dataclass(frozen=True, kw_only=True)
class Leaf:
    """Describe a leaf as the weights store it.

    Attributes:
        shape: Its axes.
        dtype: Its dtype.
        chunk: Axes of a chunk; chunks tile the leaf, the last along an axis may be smaller.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    chunk: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Size of all its numbers."""
        return math.prod(self.shape) * self.dtype.itemsize


def chunk_shape(
    shape: tuple[int, ...],
    itemsize: int,
    *,
    d_model: int,
    is_stack: bool = False,
    shard: tuple[int, ...] | None = None,
) -> tuple[int, ...]:
    """Return chunks of at most 16 MiB, cut along the axis that a mesh splits: heads, MLP width, vocabulary, experts.

    That is the first axis that is not the residual width; large leaves have at least 8 chunks along it. A stack keeps
    its parts in chunks of their own, because they are written one by one. Chunks tile `shard` too, which is what a
    device of a known mesh holds, so that none reaches into that of another device.

    Example:
        >>> chunk_shape((5120, 25600), 2, d_model=5120)
        (5120, 1600)
        >>> chunk_shape((151936, 5120), 2, d_model=5120, shard=(18992, 5120))
        (1187, 5120)
    """
    shard = shape if shard is None else shard
    chunk = [1, *shard[1:]] if is_stack else list(shard)
    cut = [axis for axis, size in enumerate(shard) if size != shape[axis] and chunk[axis] > 1]
    preferred = [axis for axis, size in enumerate(shape) if size != d_model and chunk[axis] > 1]
    preferred = next(iter(cut + preferred), 0)

    def smaller(axis: int) -> int:
        """Return at most half; of an axis that the mesh cuts a divisor, unless it has only small ones."""
        half = -(-chunk[axis] // 2)
        if axis not in cut:
            return half
        divisor = next(size for size in range(half, 0, -1) if shard[axis] % size == 0)
        return divisor if divisor > half // _MAX_DIVISION else chunk[axis]

    def num_bytes() -> int:
        return math.prod(chunk) * itemsize

    def has_few_chunks() -> bool:
        return not is_stack and num_bytes() > _MIN_SPLIT_BYTES and chunk[preferred] * _MIN_SPLITS > shape[preferred]

    while smaller(preferred) < chunk[preferred] and (num_bytes() > MAX_CHUNK_BYTES or has_few_chunks()):
        chunk[preferred] = smaller(preferred)
    while num_bytes() > MAX_CHUNK_BYTES and (axes := [axis for axis, size in enumerate(chunk) if smaller(axis) < size]):
        largest = max(axes, key=lambda axis: chunk[axis])
        chunk[largest] = smaller(largest)
    return tuple(chunk)


def create_weights(folder: Path, leaves: Mapping[str, Leaf]) -> "Stores":
    """Write an Orbax checkpoint of these leaves without their numbers, into a folder that does not exist.

    Until every chunk is written, reading raises: missing chunks are no zeros.

    Raises:
        OSError: If the disk refuses.
    """
    folder.mkdir()
    for name, content in (("_METADATA", _tree_metadata(leaves)), ("_CHECKPOINT_METADATA", _step_metadata())):
        with (folder / name).open("w", encoding="utf-8") as opened:
            json.dump(content, opened)
            opened.flush()
            os.fsync(opened.fileno())
    stores = Stores(folder)
    stores.create(leaves)
    return stores


def reopen_weights(folder: Path) -> "Stores":
    """Make weights that a killed run left ready to go on: files that it had half written go."""
    for half in folder.rglob("*.__lock"):
        half.unlink()
    return Stores(folder)


def _tree_metadata(leaves: Mapping[str, Leaf]) -> dict[str, Any]:
    """Return what Orbax writes of a dict of NumPy arrays with these keys."""
    value = {"value_type": "np.ndarray", "skip_deserialize": False}
    tree = {
        str((name,)): {"key_metadata": [{"key": name, "key_type": _DICT_KEY}], "value_metadata": value}
        for name in sorted(leaves)
    }
    return {
        "tree_metadata": tree,
        "use_ocdbt": True,
        "use_zarr3": True,
        "store_array_data_equal_to_fill_value": True,
        "custom_metadata": None,
    }


def _step_metadata() -> dict[str, Any]:
    """Return what Orbax writes of a whole checkpoint; without times, so that converting twice writes the same."""
    return {
        "item_handlers": "orbax.checkpoint._src.handlers.pytree_checkpoint_handler.PyTreeCheckpointHandler",
        "metrics": {},
        "performance_metrics": {},
        "init_timestamp_nsecs": None,
        "commit_timestamp_nsecs": None,
        "custom_metadata": {},
    }


@final
class Stores:
    """Open the arrays of a folder of weights by leaf name, each once.

    Args:
        folder: An Orbax checkpoint.
    """

    def __init__(self, folder: Path):
        import tensorstore  # comes with Orbax

        self.folder = folder
        self._open = tensorstore.open
        self._context = tensorstore.Context({"file_io_concurrency": {"limit": _MAX_FILE_THREADS}})
        self._stores: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._stores:
            self._stores[name] = self._start_opening(name).result()
        return self._stores[name]

    def get(self, name: str, problems: list[str]) -> Any | None:
        """Return the array of a leaf; on failure add one problem and return None."""
        try:
            return self[name]
        except ValueError as error:
            problems.append(f"leaf {name} cannot be read: {brief(error)}")
            return None

    def finish(self, future: Any) -> None:
        """Wait for what was started.

        Raises:
            OSError: If the disk refuses.
        """
        with _disk_errors(self.folder):
            future.result()

    def create(self, leaves: Mapping[str, Leaf]) -> None:
        """Make the arrays of these leaves, all at a time."""
        with _disk_errors(self.folder):
            opening = {name: self._start_opening(name, create=leaf) for name, leaf in leaves.items()}
            self._stores |= {name: future.result() for name, future in opening.items()}

    def _start_opening(self, name: str, *, create: Leaf | None = None) -> Any:
        """Return the future of the array of a leaf, made anew if it is to be."""
        base = {"driver": "file", "path": f"{self.folder.absolute()}/"}
        spec: dict[str, Any] = {"driver": "zarr3", "kvstore": {"driver": "ocdbt", "base": base, "path": f"{name}/"}}
        spec |= {"store_data_equal_to_fill_value": True, "fill_missing_data_reads": False}
        # Several files are written at a time, instead of one that all wait for.
        spec["kvstore"]["target_data_file_size"] = _DATA_FILE_BYTES
        if create is not None:
            spec |= {"create": True, "delete_existing": True}
            spec["metadata"] = {
                "shape": create.shape,
                "data_type": create.dtype.name,
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": create.chunk}},
                "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
            }
        return self._open(spec, context=self._context)


def start_writing(stores: Stores, name: str, slot: Slot, region: Region, chunk: np.ndarray) -> Any:
    """Start to write a chunk, a region of `leaf[slot]`, and return the future of its being on the disk.

    The chunk must not change any more: TensorStore keeps no copy.

    Example:
        >>> import tempfile
        >>> weights = Path(tempfile.mkdtemp()) / "weights"
        >>> stores = create_weights(weights, {"a": Leaf(shape=(2, 3), dtype=np.dtype("float32"), chunk=(1, 3))})
        >>> stores.finish(start_writing(stores, "a", (1,), (slice(0, 3),), np.arange(3, dtype=np.float32)))
        >>> read_part(Stores(weights), "a", (1,), np.empty(3, np.float32)).tolist()
        [0.0, 1.0, 2.0]
    """
    return stores[name][*slot, *region].write(chunk, can_reference_source_data_indefinitely=True)


def read_part(stores: Stores, name: str, slot: Slot, out: np.ndarray) -> np.ndarray:
    """Fill `out`, any view of the part's shape, with `leaf[slot]` and return it; a few chunks under way at a time.

    Raises:
        ValueError: If a chunk is missing or damaged.
    """
    store = stores[name]
    under_way: deque[tuple[Region, Any]] = deque()
    max_under_way = max(1, _MAX_READ_BYTES // MAX_CHUNK_BYTES)
    for region in regions(out.shape, store.chunk_layout.read_chunk.shape[len(slot) :]):
        if len(under_way) == max_under_way:
            done, future = under_way.popleft()
            out[done] = future.result()
        under_way.append((region, store[*slot, *region].read()))
    for done, future in under_way:
        out[done] = future.result()
    return out


def brief(error: ValueError) -> str:
    """Return what TensorStore says without the specification that it repeats each time."""
    return str(error).partition(" [")[0]


def regions(shape: tuple[int, ...], chunk: tuple[int, ...]) -> Iterator[Region]:
    """Yield the chunks that tile an array."""
    starts = (range(0, size, step) for size, step in zip(shape, chunk, strict=True))
    for corner in itertools.product(*starts):
        yield tuple(
            slice(start, min(start + step, size)) for start, step, size in zip(corner, chunk, shape, strict=True)
        )


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """Turn what TensorStore says of a full or refusing disk, a ValueError, into the OSError it is."""
    try:
        yield
    except ValueError as error:
        number = re.search(r"os_error_code='(\d+)'", str(error))
        if number is None:
            raise
        message = (
            f"the weights cannot be written; make room and run again, which goes on where this stopped ({brief(error)})"
        )
        raise OSError(int(number[1]), message, str(folder)) from error
