"""A safetensors file written front to back, a tensor at a time; `safetensors` itself wants them all in memory.

    length of the header, 8 bytes | header: JSON, padded with spaces | tensors in the order of the header

References:
    https://github.com/huggingface/safetensors#format
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ._stored import StoredTensor

_ALIGNMENT = 8


def write_safetensors(file: Path, tensors: Sequence[StoredTensor], numbers: Iterator[np.ndarray]) -> None:
    """Write the tensors, whose numbers come one by one in C order, to a new file.

    Example:
        >>> import tempfile
        >>> from safetensors.numpy import load_file
        >>> file = Path(tempfile.mkdtemp()) / "model.safetensors"
        >>> tensor = StoredTensor(name="a", file=file, dtype="F32", shape=(2,))
        >>> write_safetensors(file, [tensor], iter([np.array([1.0, 2.0], np.float32)]))
        >>> load_file(file)
        {'a': array([1., 2.], dtype=float32)}
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}  # transformers asks for it
    offset = 0
    for tensor in tensors:
        end = offset + tensor.num_bytes
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with file.open("wb") as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:  # `zip` would hold each one until the next is there
            array = next(numbers)
            assert array.shape == tensor.shape, tensor.name
            assert array.flags.c_contiguous, tensor.name
            opened.write(array.reshape(-1).view(np.uint8).data)
            del array
        assert next(numbers, None) is None
