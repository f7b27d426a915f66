"""From a Hugging Face folder to `Decoder`: check everything by headers, then fill leaf by leaf.

Placing shards on a mesh and writing Orbax are left out here.
"""

from collections import Counter
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from kinetics_jax.models import Decoder, abstract_decoder
from kinetics_jax.specs import ModelSpec

from ._problems import raise_problems
from ._rules import EMBEDDING, TIED_HEAD, LeafPath, TensorRule, tensor_rules
from ._stored import FLOAT_DTYPES, StoredTensor, is_same_tensor, read_inventory, read_json_object, stream_tensors


def load_checkpoint(folder: str | PathLike[str], *, dtype: DTypeLike = jnp.float32) -> Decoder:
    """Build the decoder whose weights a Hugging Face folder holds.

    Args:
        folder: Has config.json and model.safetensors, or an index with its shards. No code in it is run.
        dtype: Floating dtype of the weights and the computation, whatever the file stores.

    Returns:
        The decoder, every leaf filled from exactly one tensor and every tensor used.

    Raises:
        ValueError: If files are missing, truncated or malformed, if a config field is unknown or asks for what
            `Decoder` does not compute, or if tensors are missing, extra, misshapen or not floating. Lists them all.

    Example:
        >>> load_checkpoint("no/such/folder")
        Traceback (most recent call last):
        ...
        ValueError: cannot load no/such/folder: no such folder
    """
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype must be a floating dtype; got {jnp.dtype(dtype).name}. Use float32 or bfloat16.")
    folder = Path(folder)
    subject = f"cannot load {folder}"
    if not folder.is_dir():
        raise ValueError(f"{subject}: no such folder")
    problems: list[str] = []
    spec = _read_spec(folder, problems)
    inventory = read_inventory(folder, problems)
    if spec is None or problems:
        raise_problems(subject, problems)
    assert spec is not None
    rules = {rule.hf_name: rule for rule in checked_rules(spec, inventory, problems)}
    raise_problems(subject, problems)
    tensors = stream_tensors([inventory[name] for name in rules])
    return fill_decoder(spec, rules, ((stored.name, tensor) for stored, tensor in tensors), dtype)


def _read_spec(folder: Path, problems: list[str]) -> ModelSpec | None:
    found: list[str] = []
    config = read_json_object(folder / "config.json", found)
    problems.extend(found)
    return None if found else read_spec(config, folder.resolve().name, problems)


def read_spec(config: dict[str, Any], name: str, problems: list[str]) -> ModelSpec | None:
    """Return the geometry of a config; on failure add one problem and return None."""
    try:
        return ModelSpec.from_hf_config(config, name=name)
    except ValueError as error:
        problems.append(str(error).removeprefix("cannot read "))
        return None


def checked_rules(spec: ModelSpec, inventory: dict[str, StoredTensor], problems: list[str]) -> tuple[TensorRule, ...]:
    """Return the rules of the model after comparing them with the headers, both ways."""
    if spec.num_layers * max(spec.num_experts, 1) > len(inventory):  # a broken config may ask for any number
        experts = f" of {spec.num_experts} experts" if spec.num_experts else ""
        problems.append(
            f"config.json has {spec.num_layers} layers{experts}, but the files hold {len(inventory)} tensors"
        )
        return ()
    rules = tensor_rules(spec)
    for rule in rules:
        stored = inventory.get(rule.hf_name)
        if stored is None:
            problems.append(f"tensor {rule.hf_name} {list(rule.hf_shape)} is missing from the weight files")
            continue
        if stored.shape != rule.hf_shape:
            problems.append(
                f"tensor {rule.hf_name} in {stored.file.name} must have shape {list(rule.hf_shape)} "
                f"by config.json; got {list(stored.shape)}"
            )
        if stored.dtype not in FLOAT_DTYPES:
            problems.append(
                f"tensor {rule.hf_name} in {stored.file.name} must be one of {', '.join(FLOAT_DTYPES)}; "
                f"got {stored.dtype}"
            )
    used = {rule.hf_name for rule in rules}
    if spec.tied_embeddings and TIED_HEAD in inventory and not problems:
        used.add(TIED_HEAD)
        _check_tied_head(inventory, problems)
    problems.extend(
        f"tensor {name} in {inventory[name].file.name} has no place in this model"
        for name in sorted(set(inventory) - used)
    )
    return rules


def _check_tied_head(inventory: dict[str, StoredTensor], problems: list[str]) -> None:
    if not is_same_tensor(inventory[TIED_HEAD], inventory[EMBEDDING]):
        problems.append(
            f"tensor {TIED_HEAD} in {inventory[TIED_HEAD].file.name} differs from {EMBEDDING}, "
            "but config.json ties them (tie_word_embeddings)"
        )


def fill_decoder(
    spec: ModelSpec, rules: dict[str, TensorRule], tensors: Iterable[tuple[str, np.ndarray]], dtype: DTypeLike
) -> Decoder:
    """Return the decoder of a spec, filled from Hugging Face names and numbers, one tensor in memory at a time."""
    graphdef, state = nnx.split(abstract_decoder(spec, dtype=dtype))
    leaves = dict(nnx.to_flat_state(state))
    num_missing = Counter(rule.path for rule in rules.values())
    assert set(leaves) == set(num_missing), "the table of tensors is no bijection"
    partial: dict[LeafPath, np.ndarray] = {}  # a leaf that stacks experts fills up tensor by tensor
    for name, tensor in tensors:
        rule = rules[name]
        leaf = leaves[rule.path]
        assert leaf.shape == rule.leaf_shape, (rule.path, leaf.shape, rule.leaf_shape)
        if rule.path not in partial:
            partial[rule.path] = np.empty(rule.leaf_shape, dtype)
        partial[rule.path][rule.slot] = rule.to_leaf(tensor)  # rounds to nearest even
        num_missing[rule.path] -= 1
        if num_missing[rule.path] == 0:
            leaves[rule.path] = leaf.replace(jnp.asarray(partial.pop(rule.path)))
    return nnx.merge(graphdef, nnx.from_flat_state(leaves))
