"""What a GGUF file holds: metadata and the place of every tensor, each length checked against the file's size.

Called by `_gguf` and `_gguf_tokenizer`. The package `gguf` knows the types, their block sizes and how to dequantise
them. Its reader stays unused: it takes ten times as long over a vocabulary and believes every count it reads, so that
a damaged one hangs it.

    magic, version, counts | metadata: key, type, value ... | tensors: name, shape, type, offset ... | pad | payload ...
"""

import importlib
import math
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, final

import numpy as np

from ._stored import NUMPY_DTYPES

_MAGIC, _VERSIONS = b"GGUF", (2, 3)
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_FLOAT32, _STRING, _ARRAY = 6, 8, 9
_MAX_AXES = 4
_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True, kw_only=True)
class GgufTensor:
    """Name one tensor of a file, without its numbers.

    Attributes:
        name: Name in the file.
        type_name: How it is stored, "F32" or "Q4_K" say.
        shape: Its axes, outermost first.
        start: Where its bytes start [bytes from the start of the file].
        num_bytes: How many they are.
    """

    name: str
    type_name: str
    shape: tuple[int, ...]
    start: int
    num_bytes: int

    @property
    def dtype(self) -> str:
        """Dtype of the numbers that `GgufFile.read` returns, as safetensors spells it."""
        return self.type_name if self.type_name in NUMPY_DTYPES else "F32"


@final
class GgufFile:
    """Map a GGUF file into memory.

    Args:
        path: The file.

    Attributes:
        path: The file.
        metadata: Values by key; a float32 is the shortest decimal that rounds to it.
        tensors: Tensors by name.

    Raises:
        ValueError: If the file is missing, truncated or malformed, or a tensor's type has no way to dequantise it.
        ImportError: If the package `gguf` is missing.
    """

    def __init__(self, path: Path):
        self.path = path
        self._gguf = _import_gguf()
        try:
            with path.open("rb") as opened:
                if opened.seek(0, 2) == 0:
                    raise ValueError("the file is empty")
                self._data = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
            self.metadata, self.tensors = self._read_header()
        except FileNotFoundError:
            raise ValueError(f"cannot read {path}: no such file") from None
        except (OSError, ValueError) as error:
            raise ValueError(f"cannot read {path}: {error}") from error

    def stored_bytes(self, name: str) -> np.ndarray:
        """Return the bytes of a tensor as the file has them, without a copy [num_bytes]."""
        tensor = self.tensors[name]
        return np.frombuffer(self._data, np.uint8, tensor.num_bytes, tensor.start)

    def read(self, name: str) -> np.ndarray:
        """Return the numbers of a tensor; quantised ones become float32, chunk by chunk to keep memory low."""
        tensor = self.tensors[name]
        if tensor.type_name in NUMPY_DTYPES:
            return self.stored_bytes(name).view(NUMPY_DTYPES[tensor.type_name]).reshape(tensor.shape)
        numbers = np.empty((math.prod(tensor.shape[:-1]), tensor.shape[-1]), np.float32)
        first = 0
        for _, rows in self.rows(name):
            numbers[first : first + len(rows)] = rows
            first += len(rows)
        return numbers.reshape(tensor.shape)

    def rows(self, name: str, *, num_groups: int | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield bytes [n, row_bytes] and numbers [n, row_len] of some rows of a tensor at a time, in order.

        Rows run along the innermost axis. Of so many groups of equally many rows none is torn.
        """
        tensor = self.tensors[name]
        stored = self.stored_bytes(name).reshape(math.prod(tensor.shape[:-1]), -1)
        group_len = max(1, len(stored) // (num_groups or len(stored)))
        num_rows = group_len * max(1, _CHUNK_BYTES // (4 * tensor.shape[-1] * group_len))
        for first in range(0, len(stored), num_rows):
            chunk = stored[first : first + num_rows]
            if tensor.type_name in NUMPY_DTYPES:
                yield chunk, chunk.view(NUMPY_DTYPES[tensor.type_name])
            else:
                yield chunk, self._dequantize(chunk, tensor.type_name)

    def _dequantize(self, rows: np.ndarray, type_name: str) -> np.ndarray:
        return self._gguf.dequantize(rows, self._gguf.GGMLQuantizationType[type_name])

    def _read_header(self) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
        cursor = _Cursor(self._data)
        if cursor.take(4) != _MAGIC:
            raise ValueError("it does not start with 'GGUF'")
        (version,) = cursor.numbers("I")
        if version not in _VERSIONS:
            raise ValueError(f"its version must be 2 or 3, little-endian; got {version}. Convert it with llama.cpp.")
        num_tensors, num_keys = cursor.numbers("QQ")
        metadata: dict[str, Any] = {}
        for _ in range(num_keys):
            key = cursor.text()
            if key in metadata:
                raise ValueError(f"metadata {key!r} occurs twice")
            metadata[key] = _read_value(cursor, key)
        if metadata.get("split.count", 1) not in (0, 1):
            raise ValueError("it is one part of several. Join them with llama.cpp: gguf-split --merge")
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError(f"general.alignment must be a positive number of bytes; got {alignment!r}")
        entries = [self._read_entry(cursor) for _ in range(num_tensors)]
        tensors = {tensor.name: tensor for tensor in self._place(entries, cursor.position, alignment)}
        if len(tensors) != len(entries):
            raise ValueError("two tensors share a name")
        return metadata, tensors

    def _read_entry(self, cursor: "_Cursor") -> tuple[str, tuple[int, ...], str, int]:
        """Return name, shape, type and offset of the next tensor."""
        name = cursor.text()
        (num_axes,) = cursor.numbers("I")
        if not 1 <= num_axes <= _MAX_AXES:
            raise ValueError(f"tensor {name} must have 1 to {_MAX_AXES} axes; got {num_axes}")
        shape = cursor.numbers(f"{num_axes}Q")[::-1]  # innermost first in the file
        type_number, offset = cursor.numbers("IQ")
        if 0 in shape:
            raise ValueError(f"tensor {name} {list(shape)} holds no numbers")
        if type_number not in iter(self._gguf.GGMLQuantizationType):
            raise ValueError(f"tensor {name} is of type {type_number}, which this version of `gguf` does not know")
        return name, shape, self._gguf.GGMLQuantizationType(type_number).name, offset

    def _place(
        self, entries: list[tuple[str, tuple[int, ...], str, int]], header_len: int, alignment: int
    ) -> Iterator[GgufTensor]:
        """Yield the tensors after checking that they follow each other without a gap and end before the file does."""
        for type_name in sorted({type_name for _, _, type_name, _ in entries} - set(NUMPY_DTYPES)):
            _, block_bytes = self._block(type_name)
            try:
                self._dequantize(np.zeros((1, block_bytes), np.uint8), type_name)
            except NotImplementedError:
                raise ValueError(f"it has {type_name} tensors, which `gguf` cannot dequantise") from None
        payload, expected = -(-header_len // alignment) * alignment, 0
        for name, shape, type_name, offset in entries:
            block_len, block_bytes = self._block(type_name)
            if shape[-1] % block_len:
                raise ValueError(
                    f"tensor {name} {list(shape)} must have rows of whole {type_name} blocks of {block_len}"
                )
            if offset != expected:
                raise ValueError(f"tensor {name} must start at byte {expected} of the payload; got {offset}")
            num_bytes = math.prod(shape) // block_len * block_bytes
            if payload + offset + num_bytes > len(self._data):
                raise ValueError(
                    f"tensor {name} ends at byte {payload + offset + num_bytes}, but the file has {len(self._data)}; "
                    "copy or download it again"
                )
            yield GgufTensor(name=name, type_name=type_name, shape=shape, start=payload + offset, num_bytes=num_bytes)
            expected = -(-(offset + num_bytes) // alignment) * alignment

    def _block(self, type_name: str) -> tuple[int, int]:
        """Return how many elements and bytes a block of this type has."""
        return self._gguf.GGML_QUANT_SIZES[self._gguf.GGMLQuantizationType[type_name]]


class _Cursor:
    """Read numbers and texts one after the other, never past the end."""

    def __init__(self, data: mmap.mmap):
        self._data = data
        self.position = 0

    def take(self, num_bytes: int) -> bytes:
        self.require(num_bytes)
        start, self.position = self.position, self.position + num_bytes
        return self._data[start : self.position]

    def require(self, num_bytes: int) -> None:
        if num_bytes > len(self._data) - self.position:
            raise ValueError(
                f"its header asks for {num_bytes} bytes at byte {self.position}, but the file has {len(self._data)}; "
                "copy or download it again"
            )

    def numbers(self, codes: str) -> tuple[Any, ...]:
        return struct.unpack(f"<{codes}", self.take(struct.calcsize(f"<{codes}")))

    def text(self) -> str:
        return self.texts(1)[0]

    def texts(self, count: int) -> list[str]:
        """Read a vocabulary in one go: there may be half a million texts."""
        texts, data, start = list[str](), self._data, self.position
        for _ in range(count):
            end = start + 8 + int.from_bytes(data[start : start + 8], "little")
            if end > len(data):
                self.require(end - self.position)
            texts.append(data[start + 8 : end].decode("utf-8"))
            start = end
        self.position = start
        return texts


def _read_value(cursor: _Cursor, key: str) -> Any:
    (kind,) = cursor.numbers("I")
    if kind == _STRING:
        return cursor.text()
    if kind in _SCALARS:
        (value,) = cursor.numbers(_SCALARS[kind])
        return float(str(np.float32(value))) if kind == _FLOAT32 else value
    if kind != _ARRAY:
        raise ValueError(f"metadata {key!r} is of type {kind}, which GGUF does not have")
    item, count = cursor.numbers("IQ")
    if item == _STRING:
        return cursor.texts(count)
    if item not in _SCALARS:
        raise ValueError(f"metadata {key!r} is an array of type {item}, which no model needs")
    cursor.require(count)  # `struct` has an error of its own for too many
    return list(cursor.numbers(f"{count}{_SCALARS[item]}"))


def _import_gguf() -> ModuleType:
    try:
        return importlib.import_module("gguf")
    except ModuleNotFoundError:
        raise ImportError("GGUF files need the package `gguf`: pip install 'kinetics-jax[gguf]'") from None
