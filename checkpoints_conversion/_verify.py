"""Does a checkpoint compute what it should? Logits against a reference, and the first layer that differs if not."""

import dataclasses
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
from flax import nnx

from kinetics_jax.models import MODEL_FILE, WEIGHTS_FOLDER, Decoder, load_model

from ._golden import Engine, Reference, read_golden, run_decoder, run_hidden_states, run_source
from ._load import load_checkpoint
from ._logit_error import LogitError, logit_error
from ._manifest import MANIFEST_FILE, Manifest
from ._orbax import Stores
from ._problems import raise_problems
from ._stored import NUMPY_DTYPES

EXACT_TOLERANCE, ROUNDED_TOLERANCE = 1e-4, 0.02
"""Error that passes, as a share of the largest logit: the largest error of float32, which summed in another order
was below 1e-5 on every model tried, or the mean error of rounded weights, which was 5e-3 at most. Their largest error
says little: where rounding makes a router choose another expert, one position is off by a third."""


@dataclass(frozen=True, kw_only=True)
class LayerError:
    """Say how far the residual stream is from the reference at one place.

    Attributes:
        after: "embedding" or "layer 0", "layer 1", ...
        max_abs: Largest difference of two entries.
        mean_abs: Mean difference.
        largest: Largest entry of the reference.
    """

    after: str
    max_abs: float
    mean_abs: float
    largest: float


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """Say whether a checkpoint computes what a reference says.

    Attributes:
        checkpoint: What was verified.
        against: Who says what it should compute.
        dtype: In which dtype it was computed.
        int8: Whether its weights are int8.
        rounded: Whether it is judged by its mean error, as rounded weights are, or by its largest.
        tolerance: That error may be this share of the largest entry of the reference.
        error: Error of the logits.
        largest_logit: Largest logit of the reference.
        layers: Errors of the hidden states, in order; empty if the logits agree or the reference has none.
    """

    checkpoint: str
    against: str
    dtype: str
    int8: bool
    rounded: bool
    tolerance: float
    error: LogitError
    largest_logit: float
    layers: tuple[LayerError, ...] = ()

    @property
    def agrees(self) -> bool:
        """Whether the logits are within the tolerance; not if one is no number."""
        return self._passes(self.error, self.largest_logit)

    @property
    def first_difference(self) -> LayerError | None:
        """The first place whose error is above the tolerance, or None."""
        return next((layer for layer in self.layers if not self._passes(layer, layer.largest)), None)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain data for JSON."""
        first = self.first_difference
        return asdict(self) | {"agrees": self.agrees, "first_difference": None if first is None else asdict(first)}

    def __str__(self) -> str:
        how = f"{self.dtype}, int8 weights" if self.int8 else self.dtype
        verdict = "agrees with" if self.agrees else "DIFFERS from"
        lines = [
            f"{self.checkpoint} ({how}) {verdict} {self.against}",
            f"{self.error}; logits go up to {self.largest_logit:.3g}, "
            f"and the {'mean' if self.rounded else 'largest'} error may be {self.tolerance:.2g} of that",
        ]
        if not self.agrees:
            lines.append(self._where())
        return "\n".join(lines)

    def _passes(self, error: LogitError | LayerError, largest: float) -> bool:
        return (error.mean_abs if self.rounded else error.max_abs) <= self.tolerance * largest

    def _where(self) -> str:
        if not self.layers:
            return "The reference has no hidden states, so it cannot be said which layer differs first."
        first = self.first_difference
        if first is None:
            return "Every hidden state agrees: the final norm or the output head differs."
        return (
            f"The first difference is after {first.after}: {first.max_abs:.3g} at most, {first.mean_abs:.3g} on "
            f"average, in entries up to {first.largest:.3g}."
        )


def verify_checkpoint(
    path: str | PathLike[str],
    *,
    against: str | PathLike[str],
    dtype: Literal["float32", "bfloat16"] = "float32",
    token_ids: np.ndarray | None = None,
    rounded: bool | None = None,
    tolerance: float | None = None,
    engine: Engine | None = None,
) -> VerifyReport:
    """Compare the logits of a checkpoint with a golden file, or with the model run here on the same tokens.

    If they differ, the hidden states say after which layer they first do.

    Args:
        path: A folder that `kinetics convert` wrote, or a Hugging Face folder.
        against: A golden file (`write_golden`), a Hugging Face folder, or a GGUF file.
        dtype: In which dtype the checkpoint computes; float32 shows errors that bfloat16 would hide.
        token_ids: Sequences [B, T]; None takes those of the golden file, or draws 2 of 32 tokens.
        rounded: Whether conversion rounded the weights (`--dtype bfloat16`), so that the mean error counts, not the
            largest. None asks the manifest. int8 weights and a dtype of bfloat16 always are.
        tolerance: The error that passes, as a share of the largest logit; None is 1e-4, or 0.02 if rounded.
        engine: What runs a folder that is verified against: "transformers", or "kinetics", which reads it by itself, so
            that only the conversion is tested. None is transformers where it and torch are installed. A named one is
            never replaced.

    Returns:
        The report.

    Raises:
        ValueError: If checkpoint or reference cannot be read, or they have other tokens or sizes.
        ImportError: If transformers is asked for and it or torch is missing.
    """
    path, against = Path(path), Path(against)
    if not against.exists():
        raise ValueError(f"cannot verify against {against}: no such file or folder")
    model = load_model(path, dtype=dtype) if (path / MODEL_FILE).exists() else load_checkpoint(path, dtype=dtype)
    reference = _read_or_run(against, token_ids, engine, model)
    int8 = any(leaf.dtype == np.int8 for _, leaf in nnx.to_flat_state(nnx.state(model)))
    if rounded is None:
        rounded = _conversion_rounded(path)
    rounded = rounded or int8 or dtype != "float32"
    if tolerance is None:
        tolerance = ROUNDED_TOLERANCE if rounded else EXACT_TOLERANCE
    logits = run_decoder(model, reference.token_ids)[:, reference.positions]
    report = VerifyReport(
        checkpoint=str(path),
        against=reference.name,
        dtype=dtype,
        int8=int8,
        rounded=rounded,
        tolerance=tolerance,
        error=logit_error(reference.logits, logits),
        largest_logit=float(np.abs(reference.logits).max()),
    )
    if report.agrees or reference.hidden_states is None:
        return report
    layers = _layer_errors(reference.hidden_states, run_hidden_states(model, reference.token_ids))
    return dataclasses.replace(report, layers=layers)


def _read_or_run(against: Path, token_ids: np.ndarray | None, engine: Engine | None, model: Decoder) -> Reference:
    """Return a reference that fits the model."""
    spec = model.spec
    if token_ids is not None and (token_ids.ndim != 2 or not token_ids.size):
        raise ValueError(f"token_ids must have shape [B, T]; got {list(token_ids.shape)}")
    if token_ids is not None and not 0 <= token_ids.min() <= token_ids.max() < spec.vocab_size:
        raise ValueError(f"token_ids must lie in 0..{spec.vocab_size - 1}; got {token_ids.min()}..{token_ids.max()}")
    if against.is_dir() or against.suffix == ".gguf":
        reference = run_source(against, token_ids, engine=engine)
    elif token_ids is None and engine is None:
        reference = read_golden(against)
    else:
        raise ValueError(f"{against} has its own token ids and logits: leave token_ids and engine out")
    if reference.logits.shape[2] != spec.vocab_size:
        raise ValueError(f"{reference.name} has {reference.logits.shape[2]} logits, {spec.name} {spec.vocab_size}")
    wanted = (spec.num_layers + 1, *reference.token_ids.shape, spec.d_model)
    if reference.hidden_states is not None and reference.hidden_states.shape != wanted:
        raise ValueError(
            f"{reference.name} has hidden states {list(reference.hidden_states.shape)}; {spec.name} has {list(wanted)}"
        )
    return reference


def _conversion_rounded(folder: Path) -> bool:
    """Say whether a converted checkpoint keeps a tensor in a dtype that cannot hold what its source stores."""
    if not (folder / MANIFEST_FILE).exists():
        return False
    problems: list[str] = []
    manifest = Manifest.read(folder, problems)
    raise_problems(f"cannot verify {folder}", problems)
    assert manifest is not None
    stores = Stores(folder / WEIGHTS_FOLDER)
    dtypes = {name: stores[name].dtype.numpy_dtype for name in {record.leaf for record in manifest.tensors}}
    return any(dtypes[record.leaf] not in (np.float32, NUMPY_DTYPES.get(record.dtype)) for record in manifest.tensors)


def _layer_errors(wanted: np.ndarray, got: np.ndarray) -> tuple[LayerError, ...]:
    errors = []
    for index, (state, ours) in enumerate(zip(wanted, got, strict=True)):
        difference = np.abs(ours - state)
        error = LayerError(
            after=f"layer {index - 1}" if index else "embedding",
            max_abs=float(difference.max()),
            mean_abs=float(difference.mean()),
            largest=float(np.abs(state).max()),
        )
        errors.append(error)
    return tuple(errors)
