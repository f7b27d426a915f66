"""From a converted checkpoint back to a Hugging Face folder: the same tensors in the same files, bit for bit.

The manifest says which tensors there were, a tied head's second copy among them, and what their bytes were.
"""

import hashlib
import json
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from kinetics_jax.models import WEIGHTS_FOLDER, ModelFile, leaf_name
from kinetics_jax.specs import ModelSpec

from ._manifest import Manifest, TensorRecord
from ._orbax import Stores, brief, read_part
from ._prefetch import MAX_HELD_BYTES, Budget, prefetch
from ._problems import raise_problems
from ._rules import EMBEDDING, TIED_HEAD, TensorRule, tensor_rules
from ._safetensors import write_safetensors
from ._source import HF_CONFIG_FILE, TOKENIZER_FILES, copy_files
from ._staging import check_free, check_space, check_target, new_folder, partial_of, publish
from ._stored import INDEX_FILE, NUMPY_DTYPES, SINGLE_FILE, StoredTensor, read_json_object

_DTYPE_FIELDS = ("torch_dtype", "dtype")  # of transformers 4 and 5


def export_checkpoint(
    source: str | PathLike[str],
    target: str | PathLike[str],
    *,
    force: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a converted checkpoint as the Hugging Face folder it came from.

    Weights that kept their dtype come back bit for bit, which is checked against the manifest; those that were rounded
    are written as they are. Host memory grows by the largest tensor and some chunks.

    Args:
        source: The folder that `convert_checkpoint` wrote.
        target: The folder to make: written beside as `TARGET.partial`, renamed when it is whole.
        force: Whether a Hugging Face folder in `target` is replaced.
        on_progress: Is called with the bytes done and all there are.

    Returns:
        `target`.

    Raises:
        ValueError: If the source is no whole converted checkpoint, its weights are damaged or int8, or the target may
            not be written. The target is untouched.
        OSError: If the disk is full.

    Example:
        >>> export_checkpoint("no such folder", "mine")
        Traceback (most recent call last):
        ...
        ValueError: no such folder holds no converted checkpoint: model.json is missing. Make one with ...
    """
    source, target = Path(source), Path(target)
    subject, problems = f"cannot export {source}", list[str]()
    file = ModelFile.read(source)
    manifest = Manifest.read(source, problems)
    config = read_json_object(source / HF_CONFIG_FILE, problems)
    if file.quantisation is not None:
        problems.append(f"its weights are {file.quantisation}: export the checkpoint that keeps the floats")
    if not (source / WEIGHTS_FOLDER).is_dir():
        problems.append(f"{WEIGHTS_FOLDER} is missing")
    check_target(target, source, proof="config.json", force=force, problems=problems)
    rules = {} if manifest is None else _match_rules(file.spec, manifest, problems)
    raise_problems(subject, problems)
    assert manifest is not None
    plan = _make_plan(subject, source / WEIGHTS_FOLDER, manifest, rules)
    check_space(target, plan.num_bytes, problems)
    raise_problems(subject, problems)
    with new_folder(partial_of(target)) as partial:
        _write_tensors(plan, partial, on_progress or (lambda done, total: None))
        copy_files(source, partial, TOKENIZER_FILES)
        changes = {} if plan.keeps_dtypes else {name: file.dtype for name in _DTYPE_FIELDS if name in config}
        _write_json(partial / "config.json", config | changes)
        check_free(target, proof="config.json", force=force, problems=problems)
        raise_problems(subject, problems)
        publish(partial, target)
    return target


@dataclass(frozen=True, kw_only=True)
class _Tensor:
    """One tensor to write: where it comes from, which rule turns it, and how the file will have it."""

    record: TensorRecord
    rule: TensorRule
    stored: StoredTensor

    @property
    def keeps_bytes(self) -> bool:
        """Whether the bytes are to be those of the source: nothing was rounded, and no GGUF file had another layout."""
        return self.record.file == self.stored.file.name and self.record.dtype == self.stored.dtype


@dataclass(frozen=True, kw_only=True)
class _Plan:
    subject: str
    stores: Stores
    tensors: tuple[_Tensor, ...]

    @property
    def num_bytes(self) -> int:
        return sum(tensor.stored.num_bytes for tensor in self.tensors)

    @property
    def keeps_dtypes(self) -> bool:
        return all(tensor.record.dtype == tensor.stored.dtype for tensor in self.tensors)

    @property
    def files(self) -> dict[str, list[_Tensor]]:
        files: dict[str, list[_Tensor]] = {}
        for tensor in self.tensors:
            files.setdefault(tensor.stored.file.name, []).append(tensor)
        return files


def _match_rules(spec: ModelSpec, manifest: Manifest, problems: list[str]) -> dict[str, TensorRule]:
    """Return the rule of each tensor of the manifest, which must be those of the model."""
    if spec.num_layers * max(spec.num_experts, 1) > len(manifest.tensors):  # a broken file may ask for any number
        problems.append(f"manifest.json lists {len(manifest.tensors)} tensors, fewer than model.json has layers")
        return {}
    rules = {rule.hf_name: rule for rule in tensor_rules(spec)}
    names = [record.name for record in manifest.tensors]
    if spec.tied_embeddings and TIED_HEAD in names:
        rules[TIED_HEAD] = rules[EMBEDDING]
    if len(set(names)) != len(names) or set(names) != set(rules):
        wrong = sorted(set(names) ^ set(rules))
        problems.append(f"manifest.json lists other tensors than model.json has: {', '.join(wrong[:5]) or 'repeated'}")
        return {}
    for record in manifest.tensors:
        if record.shape != rules[record.name].hf_shape or record.leaf != leaf_name(rules[record.name].path):
            problems.append(f"manifest.json places tensor {record.name} otherwise than model.json")
        if Path(record.file).name != record.file:
            problems.append(f"manifest.json names {record.file!r}, which is no file of a folder")
    return rules


def _make_plan(subject: str, weights: Path, manifest: Manifest, rules: dict[str, TensorRule]) -> _Plan:
    stores, problems = Stores(weights), list[str]()
    spelled = {dtype: name for name, dtype in NUMPY_DTYPES.items()}
    keeps_files = all(record.file.endswith(".safetensors") for record in manifest.tensors)
    tensors = []
    for record in manifest.tensors:
        rule = rules[record.name]
        store = stores.get(record.leaf, problems)
        if store is None:
            continue
        dtype = spelled.get(store.dtype.numpy_dtype)
        if store.shape != rule.leaf_shape or dtype is None:
            problems.append(f"leaf {record.leaf} must have shape {list(rule.leaf_shape)} and floats; got {store}")
            continue
        file = weights / (record.file if keeps_files else SINGLE_FILE)  # only the name counts
        stored = StoredTensor(name=record.name, file=file, dtype=dtype, shape=record.shape)
        tensors.append(_Tensor(record=record, rule=rule, stored=stored))
    raise_problems(subject, list(dict.fromkeys(problems)))
    return _Plan(subject=subject, stores=stores, tensors=tuple(tensors))


def _write_tensors(plan: _Plan, folder: Path, on_progress: Callable[[int, int], None]) -> None:
    done, total = 0, plan.num_bytes
    on_progress(done, total)
    budget = Budget(max(MAX_HELD_BYTES, *(tensor.stored.num_bytes for tensor in plan.tensors)))

    def read_all(tensors: list[_Tensor]) -> Generator[np.ndarray, None, None]:
        nonlocal done
        arrays = prefetch(
            tensors,
            lambda tensor: _read_checked(plan, tensor),
            num_bytes=lambda tensor: tensor.stored.num_bytes,
            budget=budget,
        )
        with closing(arrays):
            for tensor in tensors:
                yield next(arrays)
                budget.give_back(tensor.stored.num_bytes)
                done += tensor.stored.num_bytes
                on_progress(done, total)

    files = plan.files
    for name, tensors in files.items():
        with closing(read_all(tensors)) as numbers:
            write_safetensors(folder / name, [tensor.stored for tensor in tensors], numbers)
    if list(files) != [SINGLE_FILE]:
        weight_map = {tensor.record.name: tensor.stored.file.name for tensor in plan.tensors}
        _write_json(folder / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _read_checked(plan: _Plan, tensor: _Tensor) -> np.ndarray:
    """Return the numbers in the layout of the file; bytes that must be those of the source are compared with them."""
    record, rule = tensor.record, tensor.rule
    numbers = np.empty(rule.hf_shape, NUMPY_DTYPES[tensor.stored.dtype])
    part = rule.to_leaf(numbers)
    assert np.shares_memory(part, numbers), "the leaf must be a view of the layout of the file"
    try:
        read_part(plan.stores, record.leaf, rule.slot, part)
    except ValueError as error:
        raise ValueError(f"{plan.subject}: leaf {record.leaf} is damaged; convert again ({brief(error)})") from error
    if tensor.keeps_bytes and hashlib.sha256(numbers.reshape(-1).view(np.uint8).data).hexdigest() != record.sha256:
        raise ValueError(
            f"{plan.subject}: leaf {record.leaf} no longer holds the bytes of tensor {record.name}, by the SHA-256 in "
            "manifest.json; convert again"
        )
    return numbers


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
