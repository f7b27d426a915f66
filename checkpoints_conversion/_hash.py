"""A fingerprint of the weights, so that a trace says which numbers spoke."""

import hashlib
from os import PathLike
from pathlib import Path

import numpy as np

from ._problems import raise_problems
from ._stored import read_inventory, stream_tensors


def weights_hash(folder: str | PathLike[str]) -> str:
    """Return the SHA-256 of the stored weights, in hex.

    Covers each tensor's name, dtype, shape and bytes, in the order of names; so it does not depend on how the tensors
    are spread over files, and not on config.json.

    Args:
        folder: Has model.safetensors, or an index with its shards.

    Raises:
        ValueError: If a weight file is missing, truncated or malformed.

    Example:
        >>> weights_hash("no/such/folder")
        Traceback (most recent call last):
        ...
        ValueError: cannot hash no/such/folder: model.safetensors is missing
    """
    problems: list[str] = []
    inventory = read_inventory(Path(folder), problems)
    raise_problems(f"cannot hash {folder}", problems)
    parts = []
    for stored, tensor in stream_tensors(list(inventory.values())):
        content = hashlib.sha256(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
        parts.append(f"{stored.name} {stored.dtype} {list(stored.shape)} {content.hexdigest()}\n")
    return hashlib.sha256("".join(sorted(parts)).encode()).hexdigest()
