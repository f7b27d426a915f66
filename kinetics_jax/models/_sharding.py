"""Where the weights of a decoder lie on a mesh with the axes "data" and "model".

One table says what the axes of every leaf are; heads, KV heads, MLP width and vocabulary are cut over "model", and all
else is replicated. Called by who loads a model onto several devices; XLA adds the sums over devices.
"""

import math
from collections.abc import Iterable
from fnmatch import fnmatchcase

import jax
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from kinetics_jax.attention import MODEL_AXIS, checked_mesh, kv_head_axis
from kinetics_jax.specs import ModelSpec

from ._decoder import Decoder
from ._model_file import leaf_name

# Leaf names, and the axes of those leaves in the alphabet of the house. The first row that fits a leaf counts.
# Experts are cut by their width F, as one MLP is: no token then moves between devices, whatever the router chooses.
_AXES = (
    ("embed.embedding", "V D"),
    ("lm_head.kernel", "D V"),
    ("lm_head.kernel_scale", "V"),
    ("*.q_proj.kernel", "D N H"),
    ("*.q_proj.*", "N H"),
    ("*.[kv]_proj.kernel", "D K H"),
    ("*.[kv]_proj.*", "K H"),
    ("*.o_proj.kernel", "N H D"),
    ("*.o_proj.kernel_scale", "D"),
    ("*.mlp.gate_proj.kernel", "D F"),
    ("*.mlp.up_proj.kernel", "D F"),
    ("*.mlp.down_proj.kernel", "F D"),
    ("*.mlp.gate_proj.kernel_scale", "F"),
    ("*.mlp.up_proj.kernel_scale", "F"),
    ("*.mlp.down_proj.kernel_scale", "D"),
    ("*.mlp.gate_proj", "E D F"),
    ("*.mlp.up_proj", "E D F"),
    ("*.mlp.down_proj", "E F D"),
    ("*.mlp.gate_proj_scale", "E F"),
    ("*.mlp.up_proj_scale", "E F"),
    ("*.mlp.down_proj_scale", "E D"),
    ("*.mlp.router.kernel", "D E"),
    ("*.[qk]_norm.scale", "H"),
    ("*_norm.scale", "D"),
)


def shard_decoder(model: Decoder, mesh: Mesh) -> Decoder:
    """Return the decoder with its weights on the mesh, where it then runs.

    Token ids [B, T] or [B] may be sharded over "data", and so may a cache (`attention.cache_shardings`). The axes count
    as `AxisType.Auto`, even of a mesh from `jax.make_mesh`: XLA places what lies between weights and cache.

    Args:
        model: The decoder, or one with shapes in place of arrays (`abstract_decoder`), to compile ahead of time.
        mesh: Has the axes "data" and "model".

    Returns:
        A decoder of the same numbers, its `mesh` set; `model` keeps its own arrays.

    Raises:
        ValueError: As `decoder_shardings`.

    Example:
        >>> from kinetics_jax.models import abstract_decoder
        >>> from kinetics_jax.specs import MODELS
        >>> model = abstract_decoder(MODELS["Kinetics-Mini-0.1M"])
        >>> model = shard_decoder(model, jax.make_mesh((1, 1), ("data", "model")))
        >>> tuple(model.layers[0].q_proj.kernel.get_value().sharding.spec)
        (None, 'model', None)
    """
    shardings = decoder_shardings(model, mesh)
    graphdef, state = nnx.split(model)

    def place(path: tuple[object, ...], leaf: nnx.Variable) -> nnx.Variable:
        value, sharding = leaf.get_value(), shardings[leaf_name(path)]
        if isinstance(value, jax.ShapeDtypeStruct):
            return leaf.replace(jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=sharding))
        return leaf.replace(jax.device_put(value, sharding))

    placed = nnx.merge(
        graphdef, nnx.from_flat_state([(path, place(path, leaf)) for path, leaf in nnx.to_flat_state(state)])
    )
    placed.mesh = checked_mesh(mesh)
    return placed


def decoder_shardings(model: Decoder, mesh: Mesh) -> dict[str, NamedSharding]:
    """Return where each leaf of a decoder lies, by its dotted name.

    Query heads, MLP width (of each expert), KV heads and vocabulary are cut over "model". The last two are replicated
    where the axis does not divide them; norms and routers always are, and the data axis replicates everything.

    Args:
        model: The decoder, its arrays or its shapes (`abstract_decoder`).
        mesh: Has the axes "data" and "model".

    Returns:
        A sharding for every leaf.

    Raises:
        ValueError: If the mesh has other axes, or its model axis does not divide the query heads and the MLP width.

    Example:
        >>> from kinetics_jax.models import abstract_decoder
        >>> from kinetics_jax.specs import MODELS
        >>> mesh = jax.make_mesh((1, 1), ("data", "model"))
        >>> shardings = decoder_shardings(abstract_decoder(MODELS["Kinetics-Mini-0.1M"]), mesh)
        >>> tuple(shardings["layers.0.mlp.down_proj.kernel"].spec)
        ('model', None)
    """
    shapes = {leaf_name(path): leaf.shape for path, leaf in nnx.to_flat_state(nnx.state(model))}
    shardings = leaf_shardings(model.spec, shapes, mesh)
    for name, shape in shapes.items():
        assert len(shardings[name].spec) == len(shape), (name, shardings[name].spec, shape)
    return shardings


def leaf_shardings(spec: ModelSpec, names: Iterable[str], mesh: Mesh | AbstractMesh) -> dict[str, NamedSharding]:
    """Return where leaves of these names lie, as `decoder_shardings`, for who has no decoder: converters.

    Args:
        spec: Geometry of the model.
        names: Dotted names of leaves.
        mesh: Has the axes "data" and "model"; an `AbstractMesh` needs no devices.

    Returns:
        A sharding for every name.

    Raises:
        ValueError: As `decoder_shardings`.

    Example:
        >>> from kinetics_jax.specs import MODELS
        >>> mesh = AbstractMesh((1, 8), ("data", "model"))
        >>> leaf_shardings(MODELS["Qwen3-32B"], ["lm_head.kernel"], mesh)["lm_head.kernel"].shard_shape((5120, 151936))
        (5120, 18992)
    """
    mesh = checked_mesh(mesh)
    cut = _axes_cut(spec, mesh)
    shardings = {}
    for name in names:
        axes = next((axes.split() for pattern, axes in _AXES if fnmatchcase(name, pattern)), None)
        assert axes is not None, f"no rule says how {name} is sharded"
        shardings[name] = NamedSharding(mesh, PartitionSpec(*(MODEL_AXIS if axis in cut else None for axis in axes)))
    return shardings


def _axes_cut(spec: ModelSpec, mesh: Mesh | AbstractMesh) -> set[str]:
    """Return the letters of the axes that are cut over "model"."""
    num_parts = mesh.shape[MODEL_AXIS]
    if spec.num_heads % num_parts or spec.mlp_dim % num_parts:
        largest = math.gcd(spec.num_heads, spec.mlp_dim)
        raise ValueError(
            f"the model axis must divide the query heads and the MLP width of {spec.name}; got {spec.num_heads} heads, "
            f"width {spec.mlp_dim} and a model axis of {num_parts}. Use a divisor of {largest}."
        )
    optional = {"V": spec.vocab_size % num_parts == 0, "K": kv_head_axis(mesh, spec.num_kv_heads) is not None}
    return {"N", "F"} | {axis for axis, is_cut in optional.items() if is_cut}
