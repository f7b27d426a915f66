"""The embedded models: small, trained, in Hugging Face layout, loaded by name without a network."""

from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
from jax.typing import DTypeLike

from checkpoints_conversion import HfTokenizer, load_checkpoint, load_tokenizer, weights_hash
from kinetics_jax.models import Decoder
from kinetics_jax.specs import MODELS

_FOLDER = Path(__file__).parent
FAMILY_NOTES = _FOLDER / "NOTES.md"
"""What was tried on the way to the family; part of every card."""
MINI_MODELS = tuple(name for name in MODELS if name.startswith("Kinetics-Mini"))


@dataclass(frozen=True, kw_only=True)
class ZooModel:
    """Hold a loaded model with what identifies it.

    Attributes:
        model: The decoder.
        tokenizer: Its tokenizer.
        weights_hash: SHA-256 over its stored tensors.
    """

    model: Decoder
    tokenizer: HfTokenizer
    weights_hash: str


def model_folder(name: str) -> Path:
    """Return the folder of an embedded model: config.json, model.safetensors, tokenizer.json and its card.

    Raises:
        ValueError: If the zoo has no model of that name; the message lists the known ones.

    Example:
        >>> model_folder("Kinetics-Mini-7M").name
        'Kinetics-Mini-7M'
    """
    if name not in MINI_MODELS:
        raise ValueError(f"the zoo has no model {name!r}, nor is there such a folder. Known: {', '.join(MINI_MODELS)}")
    return _FOLDER / name


def load_zoo_model(name_or_folder: str, *, dtype: DTypeLike = jnp.float32) -> ZooModel:
    """Load an embedded model by name, or any folder in the same layout.

    Args:
        name_or_folder: A name of `MINI_MODELS` or a path to a folder with config, weights and tokenizer.
        dtype: Dtype of the weights and of the arithmetic.

    Raises:
        ValueError: If it is neither, or the files are damaged; the error names the file.

    Example:
        >>> load_zoo_model("Kinetics-Mini-0.1M").model.spec.num_layers
        2
    """
    folder = Path(name_or_folder)
    if name_or_folder in MINI_MODELS or not folder.is_dir():
        folder = model_folder(name_or_folder)
    return ZooModel(
        model=load_checkpoint(folder, dtype=dtype), tokenizer=load_tokenizer(folder), weights_hash=weights_hash(folder)
    )
