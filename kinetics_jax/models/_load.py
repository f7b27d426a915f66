"""From a converted checkpoint to `Decoder`: Orbax reads every leaf straight to where it belongs.

Called by everyone who runs a converted model. Converting is the business of `checkpoints_conversion`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike

from ._decoder import Decoder, abstract_decoder
from ._model_file import MODEL_FILE, WEIGHTS_FOLDER, ModelFile, leaf_name
from ._sharding import shard_decoder

_MAX_SHOWN = 20
_DAMAGE = (ValueError, OSError, KeyError, TypeError, AttributeError)


def load_model(path: str | PathLike[str], *, dtype: DTypeLike | None = None, mesh: Mesh | None = None) -> Decoder:
    """Build the decoder that a converted checkpoint holds.

    Args:
        path: The folder that `kinetics convert` wrote.
        dtype: Floating dtype of the weights and the computation; None keeps each weight as it is stored and computes
            in the dtype of most of them. int8 kernels stay int8, and their scales float32.
        mesh: Has the axes "data" and "model"; the weights go straight to their devices (`decoder_shardings`). None is
            the default device.

    Returns:
        The decoder; `model(token_ids)` maps [B, T] to float32 logits [B, T, V].

    Raises:
        ValueError: If the folder is no converted checkpoint, if its weights are damaged or not those of its model, or
            if the mesh does not divide the model.

    Example:
        >>> load_model("no/such/folder")
        Traceback (most recent call last):
        ...
        ValueError: no/such/folder holds no converted checkpoint: model.json is missing. Make one with ...
    """
    if dtype is not None and not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype must be a floating dtype; got {jnp.dtype(dtype).name}. Use float32 or bfloat16.")
    folder = Path(path)
    file = ModelFile.read(folder)
    stored = _read_metadata(folder / WEIGHTS_FOLDER)
    if file.spec.num_layers > len(stored):  # a broken file may ask for any number
        raise ValueError(
            f"{folder / WEIGHTS_FOLDER} holds other weights than {MODEL_FILE} says: {len(stored)} leaves for "
            f"{file.spec.num_layers} layers"
        )
    model = abstract_decoder(file.spec, dtype=dtype or file.dtype, int8=file.quantisation == "int8")
    graphdef, state = nnx.split(model if mesh is None else shard_decoder(model, mesh))
    leaves = dict(nnx.to_flat_state(state))
    arrays = _restore(folder / WEIGHTS_FOLDER, leaves, stored, dtype=dtype)
    filled = {path: leaf.replace(arrays[leaf_name(path)]) for path, leaf in leaves.items()}
    return nnx.merge(graphdef, nnx.from_flat_state(filled))


def _read_metadata(weights: Path) -> Mapping[str, Any]:
    """Return shape and dtype of all leaves by name."""
    import orbax.checkpoint as ocp  # takes seconds to load

    if not weights.is_dir():
        raise ValueError(f"{weights} is missing: {MODEL_FILE} has no weights beside it. Convert the model again.")
    with _as_value_error(weights), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        return checkpointer.metadata(weights.absolute()).item_metadata.tree


def _restore(
    weights: Path, leaves: Mapping[Any, nnx.Variable], stored: Mapping[str, Any], *, dtype: DTypeLike | None
) -> dict[str, jax.Array]:
    """Return the arrays of all leaves by name; a device reads only what its shard of each lies in."""
    import orbax.checkpoint as ocp

    default = jnp.empty(()).sharding  # where JAX puts what nobody places
    _check_leaves(weights, {leaf_name(path): leaf for path, leaf in leaves.items()}, stored)
    wanted = {}
    for path, leaf in leaves.items():
        leaf_dtype = stored[leaf_name(path)].dtype if dtype is None else leaf.dtype
        sharding = leaf.get_value().sharding or default
        wanted[leaf_name(path)] = jax.ShapeDtypeStruct(leaf.shape, leaf_dtype, sharding=sharding)
    # Twice the largest leaf may be under way, so that reading overlaps with placing and host memory stays low.
    limit_gb = 1 + 2 * max(leaf.size * leaf.dtype.itemsize for leaf in wanted.values()) // 10**9
    handler = ocp.PyTreeCheckpointHandler(restore_concurrent_gb=limit_gb)
    with _as_value_error(weights), ocp.Checkpointer(handler) as checkpointer:
        arguments = ocp.checkpoint_utils.construct_restore_args(wanted)
        return checkpointer.restore(weights.absolute(), ocp.args.PyTreeRestore(wanted, restore_args=arguments))


@contextmanager
def _as_value_error(weights: Path) -> Iterator[None]:
    """Say in one sentence what Orbax and TensorStore find in damaged files, which they do in many ways."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, _DAMAGE) and type(error) is not Exception:  # Orbax wraps some in a bare one
            raise
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        said = str(cause).partition(" [")[0]  # without the specification that TensorStore repeats each time
        message = f"{weights} is no whole Orbax checkpoint: {type(cause).__name__}: {said}. Convert the model again."
        raise ValueError(message) from error


def _is_float(dtype: DTypeLike) -> bool:
    return jnp.issubdtype(dtype, jnp.floating)


def _check_leaves(weights: Path, wanted: Mapping[str, nnx.Variable], stored: Mapping[str, Any]) -> None:
    problems = [f"leaf {name} is missing" for name in wanted if name not in stored]
    problems += [f"leaf {name} has no place in this model" for name in stored if name not in wanted]
    problems += [
        f"leaf {name} must have shape {list(leaf.shape)}; got {list(stored[name].shape)}"
        for name, leaf in wanted.items()
        if name in stored and tuple(stored[name].shape) != tuple(leaf.shape)
    ]
    problems += [
        f"leaf {name} must be {'int8' if leaf.dtype == jnp.int8 else 'floats'}; got {stored[name].dtype}"
        for name, leaf in wanted.items()
        if name in stored
        and not (stored[name].dtype == jnp.int8 if leaf.dtype == jnp.int8 else _is_float(stored[name].dtype))
    ]
    if problems:
        shown = [*problems[:_MAX_SHOWN], f"... {len(problems)} problems"] if len(problems) > _MAX_SHOWN else problems
        raise ValueError(f"{weights} holds other weights than {MODEL_FILE} says: {'; '.join(shown)}")
