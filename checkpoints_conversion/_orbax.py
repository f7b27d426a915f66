"""The weights of a converted checkpoint: an Orbax checkpoint whose arrays are written and read a few chunks at a time.

Orbax lays out the folder and the tree; its own `save` would hold a whole leaf twice, or the whole model. So it saves a
tree of empty leaves, and TensorStore, which keeps the arrays for Orbax, then makes each one in its real size. Orbax
reads the result like any other checkpoint. A chunk carries its CRC-32C, so that damage is an error when read.

Called by `_convert` and `_export`; `kinetics_jax.models` restores through Orbax.
"""

import itertools
import math
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

from ._prefetch import Budget

MAX_CHUNK_BYTES = 1 << 24
_MIN_SPLIT_BYTES, _MIN_SPLITS = 1 << 20, 8  # a model axis of 8 finds chunks of its own in all but small leaves
_MAX_ENCODED_BYTES = 1 << 26  # chunks that TensorStore may have copied at one time

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


def chunk_shape(shape: tuple[int, ...], itemsize: int, *, d_model: int, is_stack: bool = False) -> tuple[int, ...]:
    """Return chunks of at most 16 MiB, cut along the axis that a mesh splits: heads, MLP width, vocabulary, experts.

    That is the first axis that is not the residual width; large leaves have at least 8 chunks along it. A stack keeps
    its parts in chunks of their own, because they are written one by one.

    Example:
        >>> chunk_shape((5120, 25600), 2, d_model=5120)
        (5120, 1600)
    """
    chunk = [1, *shape[1:]] if is_stack else list(shape)
    preferred = next((axis for axis, size in enumerate(shape) if size != d_model and chunk[axis] > 1), 0)

    def num_bytes() -> int:
        return math.prod(chunk) * itemsize

    def has_few_chunks() -> bool:
        return not is_stack and num_bytes() > _MIN_SPLIT_BYTES and chunk[preferred] * _MIN_SPLITS > shape[preferred]

    while chunk[preferred] > 1 and (num_bytes() > MAX_CHUNK_BYTES or has_few_chunks()):
        chunk[preferred] = -(-chunk[preferred] // 2)
    while num_bytes() > MAX_CHUNK_BYTES:
        largest = chunk.index(max(chunk))
        chunk[largest] = -(-chunk[largest] // 2)
    return tuple(chunk)


def create_weights(folder: Path, leaves: Mapping[str, Leaf]) -> None:
    """Write an Orbax checkpoint of these leaves without their numbers, into a folder that does not exist.

    Until every chunk is written, reading raises: missing chunks are no zeros.

    Raises:
        OSError: If the disk refuses.
    """
    import orbax.checkpoint as ocp  # takes seconds to load

    empty = {name: np.zeros((1,) * len(leaf.shape), leaf.dtype) for name, leaf in leaves.items()}
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=True)
    with _disk_errors(folder), ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(folder.absolute(), ocp.args.PyTreeSave(empty))
        stores = Stores(folder)
        futures = [stores.start_opening(name, create=leaf) for name, leaf in leaves.items()]
        for future in futures:
            future.result()


def reopen_weights(folder: Path) -> None:
    """Make weights that a killed run left ready to go on: files that it had half written go."""
    for half in folder.rglob("*.__lock"):
        half.unlink()


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
        self._context = tensorstore.Context({"file_io_concurrency": {"limit": 16}})
        self._stores: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._stores:
            self._stores[name] = self.start_opening(name).result()
        return self._stores[name]

    def get(self, name: str, problems: list[str]) -> Any | None:
        """Return the array of a leaf; on failure add one problem and return None."""
        try:
            return self[name]
        except ValueError as error:
            problems.append(f"leaf {name} cannot be read: {brief(error)}")
            return None

    def start_opening(self, name: str, *, create: Leaf | None = None) -> Any:
        """Return the future of the array of a leaf, made anew if it is to be."""
        base = {"driver": "file", "path": f"{self.folder.absolute()}/"}
        spec: dict[str, Any] = {"driver": "zarr3", "kvstore": {"driver": "ocdbt", "base": base, "path": f"{name}/"}}
        spec |= {"store_data_equal_to_fill_value": True, "fill_missing_data_reads": False}
        if create is not None:
            spec |= {"create": True, "delete_existing": True}
            spec["metadata"] = {
                "shape": create.shape,
                "data_type": create.dtype.name,
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": create.chunk}},
                "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
            }
        return self._open(spec, context=self._context)


@final
class LeafWriter:
    """Write parts of leaves in the background; a budget says how much of them is held.

    Args:
        folder: What `create_weights` made.
        budget: Gets back the bytes of a part once it is on the disk.

    Example:
        >>> import tempfile
        >>> weights = Path(tempfile.mkdtemp()) / "weights"
        >>> create_weights(weights, {"a": Leaf(shape=(2, 3), dtype=np.dtype("float32"), chunk=(1, 3))})
        >>> budget = Budget(24)
        >>> with LeafWriter(weights, budget) as writer:
        ...     budget.take(24)
        ...     writer.put("a", (), np.arange(6, dtype=np.float32).reshape(2, 3))
        >>> read_part(Stores(weights), "a", (1,), np.empty(3, np.float32)).tolist()
        [3.0, 4.0, 5.0]
    """

    def __init__(self, folder: Path, budget: Budget):
        self._stores = Stores(folder)
        self._budget = budget
        self._under_way: deque[_Write] = deque()
        self._encoded_bytes = 0

    def __enter__(self) -> "LeafWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        while kind is None and self._under_way:
            self.finish_oldest()

    def put(self, name: str, slot: Slot, part: np.ndarray, on_written: Callable[[], None] | None = None) -> None:
        """Write a part, `leaf[slot]`, which must not change any more; call `on_written` once it is on the disk."""
        with _disk_errors(self._stores.folder):
            store = self._stores[name]
        regions = list(_regions(part.shape, store.chunk_layout.write_chunk.shape[len(slot) :]))
        for index, region in enumerate(regions):
            piece = part[region]
            while self._under_way and self._encoded_bytes + piece.nbytes > _MAX_ENCODED_BYTES:
                self.finish_oldest()
            future = store[*slot, *region].write(piece, can_reference_source_data_indefinitely=True)
            is_last = index == len(regions) - 1
            self._encoded_bytes += piece.nbytes
            self._under_way.append(
                _Write(
                    future=future,
                    encoded_bytes=piece.nbytes,
                    held_bytes=part.nbytes if is_last else 0,
                    on_written=on_written if is_last else None,
                )
            )

    def finish_oldest(self) -> None:
        """Wait for the chunk that has been under way for longest."""
        write = self._under_way.popleft()
        with _disk_errors(self._stores.folder):
            write.future.result()
        self._encoded_bytes -= write.encoded_bytes
        self._budget.give_back(write.held_bytes)
        if write.on_written is not None:
            write.on_written()


@dataclass(frozen=True, kw_only=True)
class _Write:
    """One chunk under way; the last of a part lets go of the part's memory, since writes finish in order."""

    future: Any
    encoded_bytes: int
    held_bytes: int
    on_written: Callable[[], None] | None


def read_part(stores: Stores, name: str, slot: Slot, out: np.ndarray) -> np.ndarray:
    """Fill `out`, any view of the part's shape, with `leaf[slot]` and return it; a few chunks under way at a time.

    Raises:
        ValueError: If a chunk is missing or damaged.
    """
    store = stores[name]
    under_way: deque[tuple[Region, Any]] = deque()
    max_under_way = max(1, _MAX_ENCODED_BYTES // MAX_CHUNK_BYTES)
    for region in _regions(out.shape, store.chunk_layout.read_chunk.shape[len(slot) :]):
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


def _regions(shape: tuple[int, ...], chunk: tuple[int, ...]) -> Iterator[Region]:
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
