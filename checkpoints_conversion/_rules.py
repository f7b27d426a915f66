"""The table of tensors: each Hugging Face name beside the leaf of `Decoder` that holds the same numbers.

One table serves both directions. A kernel's shape is written `inputs | outputs` in the alphabet of the house; Hugging
Face stores it as the matrix [outputs, inputs], heads flattened. A shape without a bar is stored as it is.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from kinetics_jax.specs import ModelSpec

_MODEL_TABLE = (
    ("model.embed_tokens.weight", "embed.embedding", "V D"),
    ("model.norm.weight", "final_norm.scale", "D"),
)
_UNTIED_TABLE = (("lm_head.weight", "lm_head.kernel", "D | V"),)
_LAYER_TABLE = (
    ("input_layernorm.weight", "attention_norm.scale", "D"),
    ("self_attn.q_proj.weight", "q_proj.kernel", "D | N H"),
    ("self_attn.k_proj.weight", "k_proj.kernel", "D | K H"),
    ("self_attn.v_proj.weight", "v_proj.kernel", "D | K H"),
    ("self_attn.o_proj.weight", "o_proj.kernel", "N H | D"),
    ("post_attention_layernorm.weight", "mlp_norm.scale", "D"),
    ("mlp.gate_proj.weight", "gate_proj.kernel", "D | F"),
    ("mlp.up_proj.weight", "up_proj.kernel", "D | F"),
    ("mlp.down_proj.weight", "down_proj.kernel", "F | D"),
)
_QK_NORM_TABLE = (
    ("self_attn.q_norm.weight", "q_norm.scale", "H"),
    ("self_attn.k_norm.weight", "k_norm.scale", "H"),
)

TIED_HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
"""Some published files (Qwen3-0.6B, 1.7B) store a tied head a second time."""

LeafPath = tuple[str | int, ...]


@dataclass(frozen=True, kw_only=True)
class TensorRule:
    """Say which stored tensor fills which leaf, and how its axes turn.

    Attributes:
        hf_name: Name in the safetensors file.
        path: Path of the leaf in the flat state of `Decoder`.
        inputs: Sizes of the leaf's input axes; empty if the tensor is stored as it is.
        outputs: Sizes of its other axes.
    """

    hf_name: str
    path: LeafPath
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @property
    def leaf_shape(self) -> tuple[int, ...]:
        """Shape in `Decoder`."""
        return self.inputs + self.outputs

    @property
    def hf_shape(self) -> tuple[int, ...]:
        """Shape in the file."""
        return (math.prod(self.outputs), math.prod(self.inputs)) if self.inputs else self.outputs

    def to_leaf(self, stored: np.ndarray) -> np.ndarray:
        """Return the stored tensor in the layout of the leaf."""
        return stored.T.reshape(self.leaf_shape) if self.inputs else stored

    def to_stored(self, leaf: np.ndarray) -> np.ndarray:
        """Return the leaf in the layout of the file: the inverse of `to_leaf`."""
        return leaf.reshape(self.hf_shape[::-1]).T if self.inputs else leaf


def tensor_rules(spec: ModelSpec) -> tuple[TensorRule, ...]:
    """Return one rule per tensor of a model of this geometry."""
    sizes = {
        "V": spec.vocab_size,
        "D": spec.d_model,
        "F": spec.mlp_dim,
        "N": spec.num_heads,
        "K": spec.num_kv_heads,
        "H": spec.head_dim,
    }
    return tuple(_rule(hf_name, path, shape, sizes) for hf_name, path, shape in _rows(spec))


def _rows(spec: ModelSpec) -> Iterator[tuple[str, LeafPath, str]]:
    model_table = _MODEL_TABLE if spec.tied_embeddings else _MODEL_TABLE + _UNTIED_TABLE
    for hf_name, leaf, shape in model_table:
        yield hf_name, tuple(leaf.split(".")), shape
    layer_table = _LAYER_TABLE + _QK_NORM_TABLE if spec.qk_norm else _LAYER_TABLE
    for layer in range(spec.num_layers):
        for hf_name, leaf, shape in layer_table:
            yield f"model.layers.{layer}.{hf_name}", ("layers", layer, *leaf.split(".")), shape


def _rule(hf_name: str, path: LeafPath, shape: str, sizes: dict[str, int]) -> TensorRule:
    inputs, _, outputs = shape.rpartition("|")
    return TensorRule(
        hf_name=hf_name,
        path=path,
        inputs=tuple(sizes[axis] for axis in inputs.split()),
        outputs=tuple(sizes[axis] for axis in outputs.split()),
    )
