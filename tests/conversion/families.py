"""Tiny models of every family, and Hugging Face folders of them as they are published."""

import json
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import load_file, save_file

from kinetics_jax.models import Decoder
from kinetics_jax.specs import Llama3Rope, ModelSpec, YarnRope

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"

QWEN3 = ModelSpec(
    name="source",
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
QWEN2 = replace(QWEN3, family="Qwen2", qk_norm=False, qkv_bias=True, num_kv_heads=1)
LLAMA = replace(
    QWEN3,
    family="Llama",
    qk_norm=False,
    tied_embeddings=False,
    rope_scaling=Llama3Rope(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_len=32),
)
MIXTURE = replace(QWEN3, family="Qwen3-MoE", mlp_dim=10, num_experts=5, num_active_experts=2, tied_embeddings=False)
FAMILIES = {
    "Qwen3, tied": QWEN3,
    "Qwen3, untied, MHA, YaRN": replace(
        QWEN3, tied_embeddings=False, num_kv_heads=6, rope_scaling=YarnRope(factor=4.0, original_max_len=16)
    ),
    "Qwen2, biases, MQA": QWEN2,
    "Llama, scaled rotary": LLAMA,
    "Qwen3-MoE": MIXTURE,
    "Qwen3-MoE, tied, raw top-k": replace(MIXTURE, tied_embeddings=True, norm_topk_prob=False),
}


def leaves_of(model: Decoder) -> dict[tuple, np.ndarray]:
    return {path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(nnx.state(model))}


def assert_same_weights(got: Decoder, wanted: Decoder) -> None:
    got_leaves, wanted_leaves = leaves_of(got), leaves_of(wanted)
    assert set(got_leaves) == set(wanted_leaves)
    for path, leaf in wanted_leaves.items():
        np.testing.assert_array_equal(got_leaves[path], leaf, err_msg=str(path), strict=True)


def store_head_twice(folder: Path) -> None:
    """Add the tied head a second time, as the files of Qwen3-0.6B have it."""
    tensors = load_file(folder / WEIGHTS)
    save_file(tensors | {HEAD: tensors[EMBEDDING]}, folder / WEIGHTS, metadata={"format": "pt"})


def make_shards(folder: Path, *, num_shards: int = 3) -> None:
    """Spread the tensors over shards with an index; an expert's three matrices land in different ones."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names, weight_map = sorted(tensors), {}
    for number in range(num_shards):
        part = names[number::num_shards]
        shard = f"model-{number + 1:05}-of-{num_shards:05}.safetensors"
        save_file({name: tensors[name] for name in part}, folder / shard, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, shard)
    total = sum(tensor.nbytes for tensor in tensors.values())
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}))


def keep_norms_in_float32(folder: Path) -> None:
    """Store norms as float32 beside bfloat16 matrices."""
    tensors = load_file(folder / WEIGHTS)
    kept = {name: tensor.astype(np.float32) if tensor.ndim == 1 else tensor for name, tensor in tensors.items()}
    assert {tensor.dtype.name for tensor in kept.values()} == {"float32", jnp.dtype("bfloat16").name}
    save_file(kept, folder / WEIGHTS, metadata={"format": "pt"})


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
