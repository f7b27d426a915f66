"""From a Hugging Face folder, a hub name or a GGUF file to a converted checkpoint, a tensor at a time.

Everything is checked by headers first. Host memory then holds the tensor that is read, and those that wait for the
disk: at most the largest one and some chunks.
"""

import hashlib
import json
import math
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any, cast, final

import numpy as np

from kinetics_jax.models import MODEL_FILE, WEIGHTS_FOLDER, ModelFile, WeightDType, leaf_name
from kinetics_jax.specs import ModelSpec

from ._int8 import SCALE, quantise_rows
from ._load import checked_rules, read_spec
from ._manifest import Journal, Manifest, TensorRecord
from ._orbax import Leaf, LeafWriter, chunk_shape, create_weights, reopen_weights
from ._prefetch import MAX_HELD_BYTES, Budget, prefetch
from ._problems import raise_problems
from ._rules import EMBEDDING, TensorRule, num_kernel_axes
from ._source import HF_CONFIG_FILE, Source, open_source
from ._staging import check_space, check_target, clear, partial_of, publish, sole_writer
from ._stored import NUMPY_DTYPES, StoredTensor

OnProgress = Callable[[int, int], None]
"""Gets the bytes done and those to do."""

_DTYPES = {"float32": NUMPY_DTYPES["F32"], "bfloat16": NUMPY_DTYPES["BF16"]}


def convert_checkpoint(
    source: str | PathLike[str],
    target: str | PathLike[str],
    *,
    dtype: str | None = None,
    int8: bool = False,
    revision: str | None = None,
    force: bool = False,
    on_progress: OnProgress | None = None,
) -> Path:
    """Convert a model into a folder that `kinetics_jax.models.load_model` reads straight onto any devices.

    All headers, the config and the target are checked before anything is written. The folder is written as
    `TARGET.partial` and renamed when it is whole; after a kill, calling again goes on where the last run stopped. Host
    memory grows by the largest tensor and at most half a gigabyte.

    Args:
        source: A folder with config.json and safetensors, a name on the Hugging Face hub, or a GGUF file. No code in
            it is run, and pickles are not opened.
        target: The folder to make.
        dtype: "float32" or "bfloat16" for all weights, rounded to nearest even; None keeps each as it is stored.
        int8: Whether kernels are rounded to int8 (`quantise_leaf`); `dtype` is then for what keeps its floats. Such a
            checkpoint cannot be exported again.
        revision: Branch, tag or commit of a hub name; None is the newest.
        force: Whether a converted checkpoint in `target` is replaced.
        on_progress: Is called with the bytes done and all there are, by one thread at a time.

    Returns:
        `target`.

    Raises:
        ValueError: If files are missing, truncated or malformed, a config field is unknown or asks for what `Decoder`
            does not compute, tensors are missing, extra, misshapen or not floating, or the target may not be written.
            Lists them all; the target is untouched. If a weight that is to be int8 is not finite.
        OSError: If the disk is full or the hub cannot be reached.
        ImportError: If the source needs an extra that is not installed.

    Example:
        >>> convert_checkpoint("no such folder", "mine")
        Traceback (most recent call last):
        ...
        ValueError: cannot convert no such folder: no such folder, and no name on the hub, which looks like ...
    """
    if dtype is not None and dtype not in _DTYPES:
        raise ValueError(f"dtype must be 'float32', 'bfloat16' or None, which keeps what is stored; got {dtype!r}")
    target = Path(target)
    subject, problems = f"cannot convert {fspath(source)}", list[str]()
    opened = open_source(source, revision=revision, problems=problems)
    check_target(target, opened.folder, proof=MODEL_FILE, force=force, problems=problems)
    plan = _make_plan(subject, opened, dtype, int8, problems)
    check_space(target, sum(plan.bytes_by_dtype.values()), problems)
    raise_problems(subject, problems)
    partial = partial_of(target)
    with sole_writer(partial):
        journal = Journal(partial, plan.identity)
        _write_weights(plan, partial / WEIGHTS_FOLDER, journal, on_progress or (lambda done, total: None))
        records = tuple(journal.records[tensor.name] for tensor in plan.tensors)
        ModelFile(spec=plan.spec, dtype=plan.main_dtype, quantisation="int8" if int8 else None).write(partial)
        (partial / HF_CONFIG_FILE).write_text(json.dumps(opened.config, indent=2) + "\n", encoding="utf-8")
        opened.copy_tokenizer(partial)
        Manifest(source=opened.origin, tensors=records).write(partial)
        journal.remove()
        publish(partial, target)
    return target


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What is going to be converted, checked.

    Attributes:
        source: Where the numbers are.
        spec: Geometry of the model.
        rules: By Hugging Face name; a tied head that is stored a second time has none.
        tensors: Every tensor, in the order of the files.
        leaves: What the weights will hold, by leaf name.
    """

    source: Source
    spec: ModelSpec
    rules: dict[str, TensorRule]
    tensors: tuple[StoredTensor, ...]
    leaves: dict[str, Leaf]

    @property
    def identity(self) -> dict[str, Any]:
        """What a journal must agree with for a conversion to go on."""
        stats = [(file, file.stat()) for file in sorted({tensor.file for tensor in self.tensors})]
        return {
            "source": dict(self.source.origin),
            "files": [[file.name, stat.st_size, stat.st_mtime_ns] for file, stat in stats],
            "spec": self.spec.to_dict(),
            "leaves": [[name, leaf.dtype.name, list(leaf.chunk)] for name, leaf in self.leaves.items()],
        }

    @property
    def bytes_by_dtype(self) -> dict[str, int]:
        sizes: dict[str, int] = {}
        for leaf in self.leaves.values():
            sizes[leaf.dtype.name] = sizes.get(leaf.dtype.name, 0) + leaf.num_bytes
        return sizes

    @property
    def main_dtype(self) -> WeightDType:
        """The dtype of most weights that keep their floats; the embedding always does."""
        floats: dict[str, int] = {}
        for name, leaf in self.leaves.items():
            if leaf.dtype != np.int8 and not name.endswith(SCALE):
                floats[leaf.dtype.name] = floats.get(leaf.dtype.name, 0) + leaf.num_bytes
        return cast(WeightDType, max(floats, key=lambda dtype: floats[dtype]))

    def num_part_bytes(self, tensor: StoredTensor) -> int:
        """Size of what a tensor fills: its part of a leaf, and scales; a tied head's second copy is never held."""
        rule = self.rules.get(tensor.name)
        if rule is None:
            return 0
        leaf = self.leaves[leaf_name(rule.path)]
        num_scales = math.prod(rule.outputs) if leaf.dtype == np.int8 else 0
        return math.prod(tensor.shape) * leaf.dtype.itemsize + num_scales * np.dtype(np.float32).itemsize

    def record(self, tensor: StoredTensor, sha256: str) -> TensorRecord:
        rule = self.rules.get(tensor.name) or self.rules[EMBEDDING]  # only a tied head has no rule of its own
        return TensorRecord(
            name=tensor.name,
            leaf=leaf_name(rule.path),
            index=rule.index if rule.num_stacked else None,
            file=tensor.file.name,
            dtype=self.source.stored_dtype(tensor),
            shape=tensor.shape,
            sha256=sha256,
        )


def _make_plan(subject: str, source: Source, dtype: str | None, int8: bool, problems: list[str]) -> _Plan:
    """Check config and headers and say what goes where; what is wrong is added, or raised where nothing can go on."""
    spec = read_spec(source.config, source.name, problems) if source.config else None
    inventory = source.inventory(problems)
    if spec is None or not inventory:
        raise_problems(subject, problems)
    assert spec is not None
    rules = checked_rules(spec, inventory, problems)
    raise_problems(subject, problems)
    leaves: dict[str, Leaf] = {}
    for rule in rules:
        name, tensor = leaf_name(rule.path), inventory[rule.hf_name]
        wanted = NUMPY_DTYPES[tensor.dtype] if dtype is None else _DTYPES[dtype]
        if int8 and num_kernel_axes(name) is not None:
            wanted = np.dtype(np.int8)
            scale_shape = ((rule.num_stacked,) if rule.num_stacked else ()) + rule.outputs
            leaves.setdefault(name + SCALE, _leaf(scale_shape, np.dtype(np.float32), rule, spec))
        if name not in leaves:
            leaves[name] = _leaf(rule.leaf_shape, wanted, rule, spec)
        elif leaves[name].dtype != wanted:
            problems.append(
                f"tensor {tensor.name} in {tensor.file.name} is {wanted.name}, the experts before it "
                f"{leaves[name].dtype.name}; choose one dtype for all"
            )
    in_order = sorted(inventory.values(), key=lambda tensor: (tensor.file, tensor.offset))
    by_name = {rule.hf_name: rule for rule in rules}
    return _Plan(source=source, spec=spec, rules=by_name, tensors=tuple(in_order), leaves=leaves)


def _leaf(shape: tuple[int, ...], dtype: np.dtype, rule: TensorRule, spec: ModelSpec) -> Leaf:
    chunk = chunk_shape(shape, dtype.itemsize, d_model=spec.d_model, is_stack=rule.num_stacked > 0)
    return Leaf(shape=shape, dtype=dtype, chunk=chunk)


def _write_weights(plan: _Plan, weights: Path, journal: Journal, on_progress: OnProgress) -> None:
    if journal.is_new or not weights.is_dir():
        clear(weights.parent)
        create_weights(weights, plan.leaves)
        journal.start()
    else:
        reopen_weights(weights)
    todo = [tensor for tensor in plan.tensors if tensor.name not in journal.records]
    total = sum(tensor.num_bytes for tensor in plan.tensors)
    progress = _Progress(on_progress, done=total - sum(tensor.num_bytes for tensor in todo), total=total)
    budget = Budget(max(MAX_HELD_BYTES, *map(plan.num_part_bytes, plan.tensors)))
    with LeafWriter(weights, budget) as writer:
        parts = prefetch(
            todo,
            lambda tensor: _read_part(plan, tensor, progress),
            num_bytes=plan.num_part_bytes,
            budget=budget,
            wait=writer.finish_oldest,
        )
        try:
            for record, filled in parts:
                _put(plan, record, filled, writer, journal)
                del filled  # else it would be held while the next one is read
        except BaseException:
            progress.stop()
            raise


def _put(
    plan: _Plan, record: TensorRecord, filled: dict[str, np.ndarray], writer: LeafWriter, journal: Journal
) -> None:
    """Write what a tensor filled; once the last of it is on the disk, so is the rest, and the journal notes it."""
    if not filled:
        journal.add(record)
        return
    slot, last = plan.rules[record.name].slot, list(filled)[-1]
    for name, part in filled.items():
        writer.put(name, slot, part, on_written=(lambda: journal.add(record)) if name == last else None)


@final
class _Progress:
    """Count bytes from several threads, one call of `on_progress` at a time; `stop` ends the threads."""

    def __init__(self, on_progress: OnProgress, *, done: int, total: int):
        self._on_progress = on_progress
        self._done = done
        self._total = total
        self._lock = threading.Lock()
        self._stopped = False
        on_progress(done, total)

    def advance(self, num_bytes: int) -> None:
        with self._lock:
            if self._stopped:
                raise CancelledError
            self._done += num_bytes
            self._on_progress(self._done, self._total)

    def stop(self) -> None:
        self._stopped = True


def _read_part(plan: _Plan, tensor: StoredTensor, progress: _Progress) -> tuple[TensorRecord, dict[str, np.ndarray]]:
    """Return what the manifest says of a tensor, and what it fills by leaf; a tied head's second copy fills nothing."""
    digest = hashlib.sha256()
    filled: dict[str, np.ndarray] = {}
    window = scale = None
    if (rule := plan.rules.get(tensor.name)) is not None:
        name = leaf_name(rule.path)
        part = filled[name] = np.empty(rule.part_shape, plan.leaves[name].dtype)
        window = rule.part_to_stored(part)
        assert np.shares_memory(window, part), "the layout of the file must be a view of the leaf"
        if part.dtype == np.int8:
            filled[name + SCALE] = np.empty(rule.outputs, np.float32)
            scale = filled[name + SCALE].reshape(-1)
    first = 0
    for rows in plan.source.rows(tensor, digest.update):
        place = slice(first, first + len(rows))
        if window is not None and scale is not None:
            window[place], scale[place] = quantise_rows(f"tensor {tensor.name}", rows)
        elif window is not None:
            window[place] = rows  # rounds to nearest even
        first += len(rows)
        progress.advance(rows.nbytes)
    return plan.record(tensor, digest.hexdigest()), filled
