"""From a Hugging Face folder, a hub name or a GGUF file to a converted checkpoint, a tensor at a time.

Everything is checked by headers first. Then threads read, hash and turn several tensors at a time, a band of chunks
each, and TensorStore writes chunks in the background. Host memory holds the bands that are read or wait for the disk.
No device is looked for: converting neither wakes an accelerator nor takes its memory.
"""

import hashlib
import json
import math
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import closing
from dataclasses import dataclass, field, replace
from os import PathLike, fspath
from pathlib import Path
from typing import Any, cast, final

import numpy as np
from jax.sharding import AbstractMesh, Mesh

from kinetics_jax import __version__
from kinetics_jax.models import MODEL_FILE, WEIGHTS_FOLDER, ModelFile, WeightDType, leaf_name, leaf_shardings
from kinetics_jax.specs import ModelSpec

from ._bands import Band, Banding
from ._int8 import SCALE, quantise_rows
from ._load import checked_rules, read_spec
from ._manifest import Journal, Manifest, TensorRecord
from ._orbax import (
    Leaf,
    Region,
    Slot,
    Stores,
    chunk_shape,
    create_weights,
    regions,
    reopen_weights,
    start_writing,
)
from ._prefetch import MAX_HELD_BYTES, Budget, gather
from ._problems import raise_problems
from ._rules import EMBEDDING, TensorRule, num_kernel_axes
from ._source import HF_CONFIG_FILE, OnBytes, Source, open_source
from ._staging import check_free, check_space, check_target, clear, partial_of, publish, sole_writer
from ._stored import NUMPY_DTYPES, StoredTensor

OnProgress = Callable[[int, int], None]
"""Gets the bytes done and those to do."""

_DTYPES = {"float32": NUMPY_DTYPES["F32"], "bfloat16": NUMPY_DTYPES["BF16"]}


def convert_checkpoint(
    source: str | PathLike[str],
    target: str | PathLike[str],
    *,
    dtype: str | None = None,
    mesh: Mesh | AbstractMesh | None = None,
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
        mesh: Has the axes "data" and "model"; the chunks on disk are then cut so that each of its devices reads its own
            bytes only. Any other mesh can load the result. An `AbstractMesh` needs no devices, and none is looked for.
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
            Lists them all; the target is untouched. If the mesh does not divide the model, or a weight that is to be
            int8 is not finite.
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
    plan = _make_plan(subject, opened, dtype, mesh, int8, problems)
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
        check_free(target, proof=MODEL_FILE, force=force, problems=problems)
        raise_problems(subject, problems)
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
            "tool": __version__,
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

    def num_band_bytes(self, tensor: StoredTensor) -> int:
        """Size of the largest band of a tensor; a tied head's second copy is never held."""
        rule = self.rules.get(tensor.name)
        return 0 if rule is None else self.banding(rule).num_bytes(0, self.leaves[leaf_name(rule.path)].dtype)

    def banding(self, rule: TensorRule) -> Banding:
        """How a tensor is cut for the chunks of its leaf."""
        return Banding(rule=rule, chunk=self.leaves[leaf_name(rule.path)].chunk[len(rule.slot) :])

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


def _make_plan(
    subject: str,
    source: Source,
    dtype: str | None,
    mesh: Mesh | AbstractMesh | None,
    int8: bool,
    problems: list[str],
) -> _Plan:
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
    if mesh is not None:
        leaves = _cut_for_mesh(leaves, rules, spec, mesh, problems)
    in_order = sorted(inventory.values(), key=lambda tensor: (tensor.file, tensor.offset))
    by_name = {rule.hf_name: rule for rule in rules}
    return _Plan(source=source, spec=spec, rules=by_name, tensors=tuple(in_order), leaves=leaves)


def _leaf(shape: tuple[int, ...], dtype: np.dtype, rule: TensorRule, spec: ModelSpec) -> Leaf:
    chunk = chunk_shape(shape, dtype.itemsize, d_model=spec.d_model, is_stack=rule.num_stacked > 0)
    return Leaf(shape=shape, dtype=dtype, chunk=chunk)


def _cut_for_mesh(
    leaves: dict[str, Leaf],
    rules: tuple[TensorRule, ...],
    spec: ModelSpec,
    mesh: Mesh | AbstractMesh,
    problems: list[str],
) -> dict[str, Leaf]:
    """Return the leaves in chunks that tile the shards of a mesh; one that does not divide the model is a problem."""
    try:
        shardings = leaf_shardings(spec, leaves, mesh)
    except ValueError as error:
        problems.append(str(error))
        return leaves
    stacks = {leaf_name(rule.path) for rule in rules if rule.num_stacked}
    cut = {}
    for name, leaf in leaves.items():
        is_stack, shard = name.removesuffix(SCALE) in stacks, shardings[name].shard_shape(leaf.shape)
        chunk = chunk_shape(leaf.shape, leaf.dtype.itemsize, d_model=spec.d_model, is_stack=is_stack, shard=shard)
        cut[name] = replace(leaf, chunk=chunk)
    return cut


def _write_weights(plan: _Plan, weights: Path, journal: Journal, on_progress: OnProgress) -> None:
    """Write the tensors that the journal does not note; note each once all of it is on the disk."""
    if journal.is_new or not weights.is_dir():
        clear(weights.parent)
        stores = create_weights(weights, plan.leaves)
        journal.start()
    else:
        stores = reopen_weights(weights)
    todo = [tensor for tensor in plan.tensors if tensor.name not in journal.records]
    total = sum(tensor.num_bytes for tensor in plan.tensors)
    progress = _Progress(on_progress, done=total - sum(tensor.num_bytes for tensor in todo), total=total)
    run = _Run(
        plan=plan,
        stores=stores,
        budget=Budget(max(MAX_HELD_BYTES, *map(plan.num_band_bytes, plan.tensors))),
        progress=progress,
    )
    todo.sort(key=lambda tensor: -tensor.num_bytes)  # else a thread may be left alone with a large one at the end
    try:
        with closing(gather(todo, lambda tensor: _write_tensor(run, tensor), on_end=run.stop)) as steps:
            for step in steps:
                for future in step.futures:
                    stores.finish(future)
                run.under_way.remove(step)
                run.budget.give_back(step.held_bytes)
                if step.record is not None:
                    journal.add(step.record)
    finally:
        for step in run.under_way:  # after an error: nothing may write here once the folder is let go
            for future in step.futures:
                future.exception()


@dataclass(frozen=True, kw_only=True, eq=False)
class _Step:
    """Chunks of one tensor on their way to the disk; the last step of a tensor has no more of them, but its record."""

    futures: list[Any] = field(default_factory=list)
    held_bytes: int = 0
    record: TensorRecord | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class _Run:
    """What the threads of one conversion share; `under_way` holds what was started and not waited for."""

    plan: _Plan
    stores: Stores
    budget: Budget
    progress: "_Progress"
    under_way: list[_Step] = field(default_factory=list)

    def stop(self) -> None:
        """Make the threads end soon."""
        self.progress.stop()
        self.budget.close()

    def step(self, name: str, slot: Slot, chunks: Iterable[tuple[Region, np.ndarray]], *, held_bytes: int = 0) -> _Step:
        """Start to write chunks."""
        step = _Step(held_bytes=held_bytes)
        self.under_way.append(step)
        step.futures.extend(start_writing(self.stores, name, slot, region, chunk) for region, chunk in chunks)
        return step


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


def _write_tensor(run: _Run, tensor: StoredTensor) -> Iterator[_Step]:
    """Read and hash a tensor, and start to write what it fills; a tied head's second copy fills nothing."""
    digest = hashlib.sha256()
    rule = run.plan.rules.get(tensor.name)
    if rule is not None:
        yield from _write_bands(run, tensor, rule, digest.update)
    else:
        for rows in run.plan.source.rows(tensor, digest.update):
            run.progress.advance(rows.nbytes)
    last = _Step(record=run.plan.record(tensor, digest.hexdigest()))
    run.under_way.append(last)
    yield last


def _write_bands(run: _Run, tensor: StoredTensor, rule: TensorRule, on_bytes: OnBytes) -> Iterator[_Step]:
    """Fill bands with the rows of a tensor and start to write each that is full; scales come last."""
    name, banding = leaf_name(rule.path), run.plan.banding(rule)
    dtype = run.plan.leaves[name].dtype
    scale = np.empty(rule.outputs, np.float32) if dtype == np.int8 else None
    first, band = 0, None
    for stored in run.plan.source.rows(replace(tensor, shape=banding.stored_shape), on_bytes):
        rows = stored.reshape(-1, *banding.stored_shape[1:])
        while len(rows):
            if band is None:
                run.budget.take(banding.num_bytes(first, dtype))
                band = Band(banding, first, dtype)
            taken, rows = rows[: band.last - first], rows[band.last - first :]
            after = first + len(taken)
            if scale is not None:
                taken, scale[first:after] = _quantise(tensor, taken, num_outputs=len(rule.outputs))
            band.fill(first, taken)
            first = after
            if first == band.last:
                yield run.step(name, rule.slot, band.chunks, held_bytes=banding.num_bytes(band.first, dtype))
                band = None
        run.progress.advance(stored.nbytes)
    if scale is not None:
        chunk = run.plan.leaves[name + SCALE].chunk[len(rule.slot) :]
        chunks = ((region, np.ascontiguousarray(scale[region])) for region in regions(scale.shape, chunk))
        yield run.step(name + SCALE, rule.slot, chunks)


def _quantise(tensor: StoredTensor, rows: np.ndarray, *, num_outputs: int) -> tuple[np.ndarray, np.ndarray]:
    """Round rows [*outputs, *inputs] to int8, and return them and the scales [*outputs]."""
    outputs = rows.shape[:num_outputs]
    values, scale = quantise_rows(f"tensor {tensor.name}", rows.reshape(math.prod(outputs), -1))
    return values.reshape(rows.shape), scale.reshape(outputs)
