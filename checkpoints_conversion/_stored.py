"""What a checkpoint folder holds: headers first, all problems collected, then tensors one at a time.

Reads one model.safetensors or an index with shards. Payload bytes are not checked here: compare `weights_hash`.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

SINGLE_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
FLOAT_DTYPES = ("F32", "BF16", "F16")


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """Name one tensor of a file, without its numbers."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]


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
        return {tensor.name: tensor for tensor in _read_header(folder / SINGLE_FILE, problems)}

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
    return inventory


def stream_tensors(tensors: list[StoredTensor]) -> Iterator[tuple[StoredTensor, np.ndarray]]:
    """Yield each tensor with its numbers, file by file, one in memory at a time."""
    for file in sorted({tensor.file for tensor in tensors}):
        with safe_open(file, framework="numpy") as opened:
            for tensor in tensors:
                if tensor.file == file:
                    yield tensor, opened.get_tensor(tensor.name)


def read_tensor(tensor: StoredTensor) -> np.ndarray:
    """Return the numbers of one tensor."""
    return next(stream_tensors([tensor]))[1]


def _read_header(file: Path, problems: list[str]) -> list[StoredTensor]:
    try:
        with safe_open(file, framework="numpy") as opened:
            metadata = opened.metadata()
            tensors = [_describe(name, file, opened.get_slice) for name in sorted(opened.keys())]
    except FileNotFoundError:
        problems.append(f"{file.name} is missing")
        return []
    except (SafetensorError, OSError) as error:
        problems.append(f"{file.name} is no whole safetensors file ({error}); copy or download it again")
        return []
    if metadata and metadata.get("format") != "pt":
        problems.append(f"{file.name} must have metadata format 'pt', as transformers asks; got {metadata}")
    return tensors


def _describe(name: str, file: Path, get_slice: Callable[[str], Any]) -> StoredTensor:
    header = get_slice(name)
    return StoredTensor(name=name, file=file, dtype=header.get_dtype(), shape=tuple(header.get_shape()))
