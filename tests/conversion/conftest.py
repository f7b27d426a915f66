"""Tiny checkpoints for the conversion tests."""

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.typing import DTypeLike

from checkpoints_conversion import save_checkpoint
from kinetics_jax.models import Decoder, abstract_decoder
from kinetics_jax.specs import ModelSpec


@pytest.fixture(scope="session")
def tiny_spec() -> ModelSpec:
    """Return a geometry whose sizes all differ, so that no two axes can be confused."""
    return ModelSpec(
        name="tiny",
        family="Qwen3",
        num_layers=2,
        d_model=12,
        mlp_dim=20,
        num_heads=6,
        num_kv_heads=3,
        head_dim=8,
        vocab_size=32,
        max_len=64,
        rope_theta=5_000.0,
        tied_embeddings=True,
    )


@pytest.fixture(scope="session")
def random_decoder() -> Callable[..., Decoder]:
    """Return a maker of decoders whose every leaf, norms included, is random; NumPy draws, so nothing compiles."""

    @lru_cache  # tracing a decoder takes a tenth of a second
    def traced(spec: ModelSpec, dtype: np.dtype) -> tuple[nnx.GraphDef, nnx.State]:
        return nnx.split(abstract_decoder(spec, dtype=dtype))

    def make(spec: ModelSpec, *, dtype: DTypeLike = jnp.float32, seed: int = 0) -> Decoder:
        random = np.random.default_rng(seed)

        def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
            center = 1.0 if len(leaf.shape) == 1 else 0.0
            return jnp.asarray(random.normal(center, 0.3, leaf.shape).astype(leaf.dtype))

        graphdef, state = traced(spec, jnp.dtype(dtype))
        return nnx.merge(graphdef, jax.tree.map(draw, state))

    return make


@pytest.fixture(scope="session")
def tiny_model(tiny_spec: ModelSpec, random_decoder: Callable[..., Decoder]) -> Decoder:
    return random_decoder(tiny_spec)


@pytest.fixture
def tiny_folder(tiny_model: Decoder, tmp_path: Path) -> Path:
    """Return a fresh float32 checkpoint of the tiny model."""
    save_checkpoint(tiny_model, tmp_path / "tiny", dtype="float32")
    return tmp_path / "tiny"


@pytest.fixture
def edit_config(tiny_folder: Path) -> Callable[..., None]:
    """Return a function that changes fields of the tiny folder's config.json; None removes one."""

    def edit(**changes: Any) -> None:
        file = tiny_folder / "config.json"
        config = json.loads(file.read_text()) | changes
        file.write_text(json.dumps({field: value for field, value in config.items() if value is not None}))

    return edit
