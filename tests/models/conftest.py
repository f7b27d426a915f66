"""Tiny decoders with random weights, made without compiling an initialiser."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kinetics_jax.models import Decoder, abstract_decoder
from kinetics_jax.specs import ModelSpec

TINY = ModelSpec(
    name="tiny",
    family="test",
    num_layers=2,
    d_model=24,
    mlp_dim=40,
    num_heads=6,
    num_kv_heads=2,
    head_dim=8,
    vocab_size=32,
    max_len=64,
    rope_theta=100.0,
    tied_embeddings=True,
)


def random_decoder(spec: ModelSpec, *, dtype: str = "float32") -> Decoder:
    """Fill a decoder with normal weights of about unit gain; norm scales lie around 1."""
    rng = np.random.default_rng(0)
    graph, state = nnx.split(abstract_decoder(spec, dtype=dtype))

    def fill(path: tuple, leaf: nnx.Variable) -> nnx.Variable:
        if path[-1] == "scale":
            weight = rng.uniform(0.5, 1.5, leaf.shape)
        else:
            inputs = leaf.shape[:-1] if "o_proj" in path else leaf.shape[:1]
            weight = rng.normal(size=leaf.shape) / np.sqrt(np.prod(inputs))
        return leaf.replace(jnp.asarray(weight, dtype))

    leaves = [(path, fill(path, leaf)) for path, leaf in nnx.to_flat_state(state)]
    return nnx.merge(graph, nnx.from_flat_state(leaves))


@pytest.fixture(scope="package", params=["tied with QK-norm", "untied without"])
def model(request: pytest.FixtureRequest) -> Decoder:
    is_qwen3 = request.param == "tied with QK-norm"
    return random_decoder(dataclasses.replace(TINY, tied_embeddings=is_qwen3, qk_norm=is_qwen3))


@pytest.fixture(scope="package")
def tiny() -> Decoder:
    return random_decoder(TINY)


@pytest.fixture(scope="package")
def half_tiny() -> Decoder:
    return random_decoder(TINY, dtype="bfloat16")
