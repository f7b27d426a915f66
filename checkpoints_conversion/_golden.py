"""What another program says that a model computes: a golden file, or the model run here on the same tokens.

Called by `_verify`. A golden file is a .safetensors or .npz with these arrays:

    token_ids       whole numbers [B, T]
    logits          of the token after each position [B, T, V], or of those in `positions` [B, P, V]
    positions       places in 0..T-1 [P], left out if the logits are of all
    hidden_states   left out, or the residual stream after the embedding and after each layer [L + 1, B, T, D]
"""

import importlib
import importlib.util
import struct
import zipfile
import zlib
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from kinetics_jax.models import Decoder

from ._gguf import load_gguf
from ._load import load_checkpoint
from ._problems import raise_problems

Engine = Literal["transformers", "kinetics"]
_TORN_ZIP = (zipfile.BadZipFile, zlib.error, struct.error, NotImplementedError, MemoryError)
GOLDEN_SUFFIXES = (".safetensors", ".npz")
DEFAULT_SHAPE = (2, 32)
"""Sequences and tokens that are drawn where nobody names token ids."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Hold what a model should compute.

    Attributes:
        name: Who says so, for people.
        token_ids: The sequences [B, T].
        logits: Float32 logits [B, P, V].
        positions: Places in the sequences that the logits are of [P].
        hidden_states: The residual stream [L + 1, B, T, D], or None.
    """

    name: str
    token_ids: np.ndarray
    logits: np.ndarray
    positions: np.ndarray
    hidden_states: np.ndarray | None = None


def read_golden(path: str | PathLike[str]) -> Reference:
    """Read a golden file.

    Raises:
        ValueError: If it is missing, malformed, or its arrays do not fit together; lists all.
    """
    file = Path(path)
    subject = f"cannot read {file}"
    arrays = _read_arrays(file, subject)
    problems = [f"array {name} is missing" for name in ("token_ids", "logits") if name not in arrays]
    raise_problems(subject, problems)
    token_ids, logits = arrays["token_ids"], arrays["logits"]
    positions = arrays.get("positions")
    if positions is None:
        positions = np.arange(token_ids.shape[-1])
    hidden_states = arrays.get("hidden_states")
    for name, array, num_axes, kind in (
        ("token_ids", token_ids, 2, np.integer),
        ("logits", logits, 3, np.floating),
        ("positions", positions, 1, np.integer),
        ("hidden_states", hidden_states, 4, np.floating),
    ):
        if array is not None and (array.ndim != num_axes or not np.issubdtype(array.dtype, kind) or not array.size):
            problems.append(
                f"array {name} must have {num_axes} axes of {'floats' if kind is np.floating else 'whole numbers'}; "
                f"got {array.dtype} {list(array.shape)}"
            )
    raise_problems(subject, problems)
    if logits.shape[:2] != (len(token_ids), len(positions)):
        problems.append(f"logits must be [{len(token_ids)}, {len(positions)}, V]; got {list(logits.shape)}")
    if positions.min() < 0 or positions.max() >= token_ids.shape[1]:
        problems.append(f"positions must lie in 0..{token_ids.shape[1] - 1}; got {positions.min()}..{positions.max()}")
    if token_ids.min() < 0 or token_ids.max() >= logits.shape[2]:
        problems.append(f"token_ids must lie in 0..{logits.shape[2] - 1}; got {token_ids.min()}..{token_ids.max()}")
    if hidden_states is not None and hidden_states.shape[1:3] != token_ids.shape:
        problems.append(f"hidden_states must be [L + 1, B, T, D] of {list(token_ids.shape)}; got {hidden_states.shape}")
    raise_problems(subject, problems)
    return Reference(
        name=file.name, token_ids=token_ids, logits=logits, positions=positions, hidden_states=hidden_states
    )


def _read_arrays(file: Path, subject: str) -> dict[str, np.ndarray]:
    if file.suffix not in GOLDEN_SUFFIXES:
        raise ValueError(f"{subject}: a golden file ends in {' or '.join(GOLDEN_SUFFIXES)}")
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        with file.open("rb") as opened:  # NumPy would leave a torn one open
            if not zipfile.is_zipfile(opened):
                raise ValueError("it does not end as a zip archive does")
            opened.seek(0)
            with np.load(opened, allow_pickle=False) as stored:
                return dict(stored)
    except FileNotFoundError:
        raise ValueError(f"{subject}: no such file") from None
    except (SafetensorError, OSError, ValueError, EOFError, *_TORN_ZIP) as error:
        raise ValueError(f"{subject}: it is no whole {file.suffix} file ({error})") from error


def write_golden(
    source: str | PathLike[str],
    path: str | PathLike[str],
    *,
    token_ids: np.ndarray | None = None,
    engine: Engine | None = None,
) -> Reference:
    """Run a Hugging Face folder in float32 and keep its logits and hidden states as a golden file.

    A golden file made where torch is installed lets `verify_checkpoint` compare where it is not.

    Args:
        source: The folder, or a GGUF file.
        path: The file to write, .safetensors.
        token_ids: Sequences [B, T]; None draws 2 of 32 tokens, always the same.
        engine: As in `verify_checkpoint`.

    Returns:
        What was written.

    Raises:
        ValueError: If `path` is no .safetensors, or the source cannot be read.
        ImportError: If transformers is asked for and it or torch is missing.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"a golden file is written as .safetensors; got {path}")
    reference = run_source(source, token_ids, engine=engine)
    tensors = {name: np.ascontiguousarray(getattr(reference, name)) for name in ("token_ids", "logits", "positions")}
    assert reference.hidden_states is not None
    tensors["hidden_states"] = np.ascontiguousarray(reference.hidden_states)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.partial")
    try:
        save_file(tensors, beside, metadata={"made_by": reference.name})
        beside.chmod(0o644)  # safetensors makes private files
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return reference


def run_source(source: str | PathLike[str], token_ids: np.ndarray | None, *, engine: Engine | None) -> Reference:
    """Run a Hugging Face folder or a GGUF file in float32 on token ids, and keep logits and hidden states.

    Raises:
        ValueError: If the source cannot be read, or transformers is asked to run a GGUF file.
        ImportError: If transformers is asked for and it or torch is missing.
    """
    source = Path(source)
    if _choose_engine(source, engine) == "kinetics":
        model = load_gguf(source) if source.suffix == ".gguf" else load_checkpoint(source)
        token_ids = _drawn(model.spec.vocab_size) if token_ids is None else token_ids
        logits, hidden_states = run_decoder(model, token_ids), run_hidden_states(model, token_ids)
        name = f"{source}, run by kinetics_jax"
    else:
        transformer = _load_transformers(source)
        token_ids = _drawn(transformer.config.vocab_size) if token_ids is None else token_ids
        logits, hidden_states = _run_transformers(transformer, token_ids)
        name = f"{source}, run by transformers"
    positions = np.arange(token_ids.shape[1])
    return Reference(name=name, token_ids=token_ids, logits=logits, positions=positions, hidden_states=hidden_states)


def run_decoder(model: Decoder, token_ids: np.ndarray) -> np.ndarray:
    """Return the logits of every position [B, T, V]; float32 is not cut to TF32 or bfloat16, as GPUs and TPUs would."""
    with jax.default_matmul_precision("highest"):
        return np.asarray(jax.jit(Decoder.__call__)(model, jnp.asarray(token_ids, jnp.int32)))


def run_hidden_states(model: Decoder, token_ids: np.ndarray) -> np.ndarray:
    """Return the residual stream after the embedding and after each layer, as float32 [L + 1, B, T, D]."""
    with jax.default_matmul_precision("highest"):
        states = jax.jit(Decoder.hidden_states)(model, jnp.asarray(token_ids, jnp.int32))
    return np.asarray(states.astype(jnp.float32))


def _choose_engine(source: Path, engine: Engine | None) -> Engine:
    is_gguf = source.suffix == ".gguf"
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if engine is None:
        return "kinetics" if missing or is_gguf else "transformers"
    if engine == "transformers" and missing:
        raise ImportError(
            f"engine 'transformers' needs {' and '.join(missing)}: pip install torch 'kinetics-jax[hf]', give a golden "
            "file, or use engine 'kinetics', which reads the same folder by itself"
        )
    if engine == "transformers" and is_gguf:
        raise ValueError(f"transformers cannot run {source}. Use engine 'kinetics'.")
    return engine


def _drawn(vocab_size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, vocab_size, DEFAULT_SHAPE)


def _load_transformers(folder: Path) -> Any:
    """Return the float32 model that transformers loads; every tensor must find its place, and no code is run."""
    torch: Any = importlib.import_module("torch")
    transformers: Any = importlib.import_module("transformers")
    if not folder.is_dir():
        raise ValueError(f"cannot run {folder}: no such folder")
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        attn_implementation="eager",
        output_loading_info=True,
        trust_remote_code=False,
        use_safetensors=True,  # never a pickle
    )
    wrong = {name: report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys") if report[name]}
    if wrong:
        raise ValueError(f"transformers cannot place the tensors of {folder}: {wrong}")
    return model.eval()


def _run_transformers(model: Any, token_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    torch: Any = importlib.import_module("torch")
    states: list[np.ndarray] = []

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        states.append((output[0] if isinstance(output, tuple) else output).numpy())

    modules = [model.model.embed_tokens, *model.model.layers]
    hooks = [module.register_forward_hook(keep) for module in modules]
    with torch.no_grad():
        logits = model(torch.as_tensor(token_ids), use_cache=False).logits.numpy()
    for hook in hooks:
        hook.remove()
    return logits, np.stack(states)
