"""Tiny decoders with random weights, made without compiling an initialiser."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
from flax import nnx

from kinetics_jax.models import Decoder, abstract_decoder
from kinetics_jax.specs import Llama3Rope, ModelSpec, YarnRope

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
EXPERTS = replace(TINY, name="tiny experts", mlp_dim=10, num_experts=5, num_active_experts=2)
VARIANTS = {
    "Qwen3, tied": TINY,
    "Qwen2, untied, Llama 3 rotary": replace(
        TINY,
        tied_embeddings=False,
        qk_norm=False,
        qkv_bias=True,
        rope_scaling=Llama3Rope(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_len=64),
    ),
    "experts, MQA, YaRN": replace(
        EXPERTS, num_kv_heads=1, norm_topk_prob=False, rope_scaling=YarnRope(factor=4.0, original_max_len=64)
    ),
}


def random_decoder(spec: ModelSpec, *, dtype: str = "float32") -> Decoder:
    """Fill a decoder with normal weights of about unit gain; norm scales lie around 1."""
    rng = np.random.default_rng(0)
    graph, state = nnx.split(abstract_decoder(spec, dtype=dtype))

    def fill(path: tuple, leaf: nnx.Variable) -> nnx.Variable:
        if path[-1] == "scale":
            weight = rng.uniform(0.5, 1.5, leaf.shape)
        elif path[-1] == "bias":
            weight = rng.normal(size=leaf.shape)
        else:
            is_stacked = path[-1] in ("gate_proj", "up_proj", "down_proj")
            inputs = leaf.shape[1:2] if is_stacked else leaf.shape[:-1] if "o_proj" in path else leaf.shape[:1]
            weight = rng.normal(size=leaf.shape) / np.sqrt(np.prod(inputs))
        return leaf.replace(jnp.asarray(weight, dtype))

    leaves = [(path, fill(path, leaf)) for path, leaf in nnx.to_flat_state(state)]
    return nnx.merge(graph, nnx.from_flat_state(leaves))
