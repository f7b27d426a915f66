"""Which model does a command mean? A name of the zoo, a Hugging Face folder, or a converted checkpoint."""

import json
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
from jax.sharding import Mesh

from checkpoints_conversion import HfTokenizer, load_tokenizer
from kinetics_jax.models import MODEL_FILE, ModelFile, load_model, shard_decoder
from kinetics_jax.specs import MODELS, ModelSpec
from kinetics_jax.tasks import Pathfind, Task, TextTask, get_task, tokenised
from kinetics_jax.zoo import MINI_MODELS, ZooModel, load_zoo_model


def load_any_model(name_or_folder: str, *, dtype: str | None = None, mesh: Mesh | None = None) -> ZooModel:
    """Load a model with its tokenizer, wherever it lies.

    Args:
        name_or_folder: A name of the zoo, a folder in Hugging Face layout, or one that `kinetics convert` made.
        dtype: "float32" or "bfloat16"; None is float32, or for a converted checkpoint what it is stored in.
        mesh: Where the weights go, or None for the default device.

    Raises:
        ValueError: If it is none of these, its files are damaged, or its architecture is not one that is known.
    """
    folder = Path(name_or_folder)
    chosen = None if dtype is None else jnp.dtype(dtype)
    if name_or_folder in MINI_MODELS or not (folder / MODEL_FILE).is_file():
        loaded = load_zoo_model(name_or_folder, dtype=chosen or jnp.float32)
        if mesh is None:
            return loaded
        return ZooModel(
            model=shard_decoder(loaded.model, mesh), tokenizer=loaded.tokenizer, weights_hash=loaded.weights_hash
        )
    if not (folder / "tokenizer.json").is_file():
        raise ValueError(f"{folder} has no tokenizer.json. Copy it there from the folder that was converted.")
    return ZooModel(
        model=load_model(folder, dtype=chosen, mesh=mesh),
        tokenizer=load_tokenizer(folder),
        weights_hash=_converted_hash(folder),
    )


def known_models(folders: Sequence[Path]) -> dict[str, ModelSpec]:
    """Return the geometries of the catalogue and of the models in these folders, by the names in their traces.

    Args:
        folders: Converted checkpoints, or folders in Hugging Face layout; only their configs are read.

    Raises:
        ValueError: If a folder has no config that is understood.
    """
    specs = [_geometry(folder) for folder in folders]
    return {**MODELS, **{spec.name: spec for spec in specs}}


def task_for(name: str, data: Path | None, tokenizer: HfTokenizer, *, enable_thinking: bool) -> Task:
    """Return the task as this model hears it.

    Raises:
        ValueError: If there is none of that name, or the model does not know its tokens, or no words.
    """
    task = get_task(name, data=data)
    is_mini = _knows(tokenizer, Pathfind().vocabulary)
    if isinstance(task, TextTask):
        if is_mini:
            raise ValueError(f"task {name!r} is asked in words, and this model reads none; choose pathfind")
        return tokenised(task, tokenizer, enable_thinking=enable_thinking)
    if not is_mini:
        raise ValueError(f"task {name!r} is asked in the tokens of the embedded models, and this model has others")
    return task


def _knows(tokenizer: HfTokenizer, vocabulary: tuple[str, ...]) -> bool:
    return all(tokenizer.backend.token_to_id(word) == number for number, word in enumerate(vocabulary))


def _geometry(folder: Path) -> ModelSpec:
    if (folder / MODEL_FILE).is_file():
        return ModelFile.read(folder).spec
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{folder} has no {MODEL_FILE}, and {file.name} cannot be read ({type(error).__name__}). "
            "Give the folder of a model."
        ) from error
    if not isinstance(config, dict):
        raise ValueError(f"{file} must hold a JSON object; got {type(config).__name__}")
    return ModelSpec.from_hf_config(config, name=folder.resolve().name)


def _converted_hash(folder: Path) -> str:
    """Return the hash of the weights that a checkpoint was converted from, marked where conversion rounded them."""
    try:
        stored = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["weights_hash"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder / 'manifest.json'} does not say which weights these are ({type(error).__name__}). "
            "Convert the model again."
        ) from error
    quantisation = ModelFile.read(folder).quantisation
    return str(stored) if quantisation is None else f"{stored}-{quantisation}"
