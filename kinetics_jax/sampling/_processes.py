"""One engine on many devices, of one process or of many (`jax.distributed`).

A mesh may lie on devices of several processes. Every process then makes the same engine and submits the same requests
in the same order; what a call draws is replicated, so that all read the same tokens and go on alike. What could differ
from process to process, they agree on here. Called by the engine and by `kinetics_jax.collect`.
"""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kinetics_jax.attention import DATA_AXIS


def spans_processes(mesh: Mesh | None) -> bool:
    """Return whether some of the mesh's devices belong to other processes."""
    return mesh is not None and any(device.process_index != jax.process_index() for device in mesh.devices.flat)


def from_first_process(array: np.ndarray) -> np.ndarray:
    """Return what the first process passed, in all of them; they pass arrays of one shape and dtype."""
    return np.asarray(multihost_utils.broadcast_one_to_all(array))


def smallest_of_processes(number: int) -> int:
    """Return the smallest of the numbers that the processes passed."""
    return int(np.min(multihost_utils.process_allgather(np.asarray(number, np.int32))))


def place_call(call: Any, mesh: Mesh | None) -> Any:
    """Put a `Batch` or `PromptChunk` where its program wants it: rows over "data"; `forced` has them last.

    Without a mesh the program takes the host's arrays as they are.
    """
    if mesh is None:
        return call
    placed = {name: place_rows(array, mesh) for name, array in call._asdict().items() if name != "forced"}
    if "forced" in call._fields:
        placed["forced"] = _put(call.forced, NamedSharding(mesh, PartitionSpec(None, DATA_AXIS)))
    return type(call)(**placed)


def place_rows(array: np.ndarray, mesh: Mesh | None) -> jax.Array:
    """Put an array on the device, or its rows over the data axis of a mesh."""
    return jax.device_put(array) if mesh is None else _put(array, NamedSharding(mesh, PartitionSpec(DATA_AXIS)))


def _put(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    if sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    # Every process holds all of it; `device_put` would compare the arrays of all processes first, at every call.
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
