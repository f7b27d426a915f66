"""Attention on a mesh: each device writes and reads the KV heads that it holds, so that no pool is ever gathered.

The mesh has the axes "data" (sequences) and "model" (heads). Where the model axis does not divide the KV heads, every
device holds and reads them all.
"""

from typing import overload

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

DATA_AXIS, MODEL_AXIS = "data", "model"


@overload
def checked_mesh(mesh: Mesh) -> Mesh: ...
@overload
def checked_mesh(mesh: AbstractMesh) -> AbstractMesh: ...
def checked_mesh(mesh: Mesh | AbstractMesh) -> Mesh | AbstractMesh:
    """Return the mesh with axes that XLA shards over as it sees fit, whatever their type was (`AxisType.Auto`).

    Raises:
        ValueError: If its axes are not "data" and "model".

    Example:
        >>> mesh = jax.make_mesh((1, 1), ("data", "model"))
        >>> [kind.name for kind in checked_mesh(mesh).axis_types]
        ['Auto', 'Auto']
    """
    if set(mesh.axis_names) != {DATA_AXIS, MODEL_AXIS}:
        raise ValueError(
            f"a mesh must have the axes {DATA_AXIS!r} and {MODEL_AXIS!r}; got {mesh.axis_names}. "
            f"Use jax.make_mesh((1, {mesh.size}), ({DATA_AXIS!r}, {MODEL_AXIS!r}))"
        )
    axis_types = (AxisType.Auto, AxisType.Auto)
    if isinstance(mesh, AbstractMesh):
        return AbstractMesh(mesh.axis_sizes, mesh.axis_names, axis_types=axis_types)
    return Mesh(mesh.devices, mesh.axis_names, axis_types=axis_types)


def kv_head_axis(mesh: Mesh | AbstractMesh, num_kv_heads: int) -> str | None:
    """Return the mesh axis that KV heads are cut over, or None where it does not divide them: all devices hold all."""
    return None if num_kv_heads % mesh.shape[MODEL_AXIS] else MODEL_AXIS


def place_kv(entries: Float[Array, "L B T K H"], mesh: Mesh | None) -> Float[Array, "L B T K H"]:
    """Keep the keys or values of a prompt where a cache on this mesh will hold them.

    Left to itself XLA may cut replicated KV heads, and then every decode step of a loop gathers the whole cache.
    """
    if mesh is None:
        return entries
    anywhere = PartitionSpec.UNCONSTRAINED
    spec = PartitionSpec(anywhere, anywhere, None, kv_head_axis(mesh, entries.shape[3]), None)
    return jax.lax.with_sharding_constraint(entries, NamedSharding(mesh, spec))
