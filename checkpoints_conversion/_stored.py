"""What a checkpoint folder holds: headers first, all problems collected, then tensors one at a time, or in pieces.

Reads one model.safetensors or an index with shards; pickles are never opened. Payload bytes are not checked here:
compare `weights_hash`.
"""

import io
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

SINGLE_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
NUMPY_DTYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(ml_dtypes.bfloat16), "F16": np.dtype(np.float16)}
FLOAT_DTYPES = tuple(NUMPY_DTYPES)
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_PIECE_BYTES = 1 << 21  # hashed and turned while it is in the processor's caches


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """Name one tensor of a file, without its numbers.

    Attributes:
        name: Name in the file.
        file: The file.
        dtype: Of its numbers, as safetensors spells it.
        shape: Of its numbers.
        offset: Where its numbers start in a safetensors file [bytes]; other files have ways of their own.
    """

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int = 0

    @property
    def num_bytes(self) -> int:
        """Size of its numbers in this dtype, one of `FLOAT_DTYPES`."""
        return math.prod(self.shape) * NUMPY_DTYPES[self.dtype].itemsize


def read_json_object(file: Path, problems: list[str]) -> dict[str, Any]:
    """Return the JSON object in `file`; on failure add one problem and return an empty one."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        problems.append(f"{file.name} is missing")
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"{file.name} cannot be read as JSON: {error}")
    else:
        if isinstance(content, dict):
            return content
        problems.append(f"{file.name} must hold a JSON object; got {type(content).__name__}")
    return {}


def read_inventory(folder: Path, problems: list[str]) -> dict[str, StoredTensor]:
    """Return every tensor of the folder by name, from headers alone; add what is wrong to `problems`."""
    if (folder / SINGLE_FILE).exists() or not (folder / INDEX_FILE).exists():
        tensors = {tensor.name: tensor for tensor in _read_header(folder / SINGLE_FILE, problems)}
        if pickles := [] if tensors else sorted({file.name for kind in _PICKLES for file in folder.glob(kind)}):
            problems.append(
                f"{', '.join(pickles)} may be pickles, which run code when opened, and are never read; get the "
                "safetensors files of the model, or let transformers write them (save_pretrained)"
            )
        return tensors

    weight_map = read_json_object(folder / INDEX_FILE, problems).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        problems.append(f"{INDEX_FILE} has no weight_map")
        return {}
    inventory: dict[str, StoredTensor] = {}
    for shard in sorted({str(shard) for shard in weight_map.values()}):
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            problems.append(f"{INDEX_FILE} names {shard!r}, which is no safetensors file of this folder")
            continue
        for tensor in _read_header(folder / shard, problems):
            if weight_map.get(tensor.name) == shard:
                inventory[tensor.name] = tensor
            else:
                problems.append(f"{shard} holds tensor {tensor.name}, which {INDEX_FILE} does not place there")
    if not problems:
        problems.extend(
            f"{INDEX_FILE} places tensor {name} in {weight_map[name]}, which does not hold it"
            for name in sorted(set(weight_map) - set(inventory))
        )
    return inventory


def stream_tensors(tensors: list[StoredTensor]) -> Iterator[tuple[StoredTensor, np.ndarray]]:
    """Yield each tensor with its numbers, file by file, one in memory at a time."""
    for file in sorted({tensor.file for tensor in tensors}):
        with safe_open(file, framework="numpy") as opened:
            for tensor in tensors:
                if tensor.file == file:
                    yield tensor, opened.get_tensor(tensor.name)


def stream_rows(tensor: StoredTensor) -> Iterator[np.ndarray]:
    """Yield the numbers of one tensor of a safetensors file, some rows at a time, in order.

    All are read into the same memory: rows hold until the next ones are asked for. The file is read, not mapped: mapped
    pages count as memory, and a file that shrinks meanwhile would end the process.
    """
    row_shape, dtype = tensor.shape[1:], NUMPY_DTYPES[tensor.dtype]
    row_bytes = math.prod(row_shape) * dtype.itemsize
    num_rows = min(tensor.shape[0], max(1, _PIECE_BYTES // row_bytes))
    memory = np.empty(num_rows * row_bytes, np.uint8)
    with tensor.file.open("rb", buffering=0) as opened:
        opened.seek(tensor.offset)
        for first in range(0, tensor.shape[0], num_rows):
            piece = memory[: min(num_rows, tensor.shape[0] - first) * row_bytes]
            if not _read_into(opened, piece):
                raise ValueError(f"{tensor.file} ended within tensor {tensor.name}: it became shorter meanwhile")
            yield piece.view(dtype).reshape(-1, *row_shape)


def _read_into(opened: io.RawIOBase, piece: np.ndarray) -> bool:
    """Fill the bytes of `piece`, and say whether the file had enough; a system may return fewer at a time."""
    num_read = 0
    while num_read < piece.size:
        count = opened.readinto(piece[num_read:].data)
        if not count:
            return False
        num_read += count
    return True


def is_same_tensor(one: StoredTensor, other: StoredTensor) -> bool:
    """Say whether two tensors of safetensors files hold the same numbers, piece by piece."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    pairs = zip(stream_rows(one), stream_rows(other), strict=True)
    return all(np.array_equal(mine.view(np.uint8), its.view(np.uint8)) for mine, its in pairs)


def _read_header(file: Path, problems: list[str]) -> list[StoredTensor]:
    try:
        with safe_open(file, framework="numpy") as opened:
            metadata = opened.metadata()
            offsets = _read_offsets(file)
            tensors = [_describe(name, file, opened.get_slice, offsets[name]) for name in sorted(opened.keys())]
    except FileNotFoundError:
        problems.append(f"{file.name} is missing")
        return []
    except (SafetensorError, OSError, ValueError) as error:
        problems.append(f"{file.name} is no whole safetensors file ({error}); copy or download it again")
        return []
    if metadata and metadata.get("format") != "pt":
        problems.append(f"{file.name} must have metadata format 'pt', as transformers asks; got {metadata}")
    return tensors


def _read_offsets(file: Path) -> dict[str, int]:
    """Return where each tensor starts, of a file whose header `safetensors` has found whole: length, JSON, payload."""
    with file.open("rb") as opened:
        header_len = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(header_len))
    start = 8 + header_len
    return {name: start + entry["data_offsets"][0] for name, entry in header.items() if name != "__metadata__"}


def _describe(name: str, file: Path, get_slice: Callable[[str], Any], offset: int) -> StoredTensor:
    header = get_slice(name)
    shape = tuple(header.get_shape())
    return StoredTensor(name=name, file=file, dtype=header.get_dtype(), shape=shape, offset=offset)
