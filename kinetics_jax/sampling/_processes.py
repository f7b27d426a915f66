"""One engine in many processes (`jax.distributed`): each runs the same program with the same host decisions.

A mesh may lie on devices of several processes. Every process then makes the same engine and submits the same requests
in the same order; what a call draws is replicated, so that all read the same tokens and go on alike. What could differ
from process to process, they agree on here. Called by the engine and by `kinetics_jax.collect`.
"""

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding


def spans_processes(mesh: Mesh | None) -> bool:
    """Return whether some of the mesh's devices belong to other processes."""
    return mesh is not None and any(device.process_index != jax.process_index() for device in mesh.devices.flat)


def from_first_process(array: np.ndarray) -> np.ndarray:
    """Return what the first process passed, in all of them; they pass arrays of one shape and dtype."""
    return np.asarray(multihost_utils.broadcast_one_to_all(array))


def smallest_of_processes(number: int) -> int:
    """Return the smallest of the numbers that the processes passed."""
    return int(np.min(multihost_utils.process_allgather(np.asarray(number, np.int32))))


def put(array: np.ndarray, sharding: NamedSharding | None) -> jax.Array:
    """Put an array that every process holds where it belongs."""
    if sharding is None or sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    # `device_put` would compare the arrays of all processes first, at every call.
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
