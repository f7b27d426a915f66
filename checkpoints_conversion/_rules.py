"""The table of tensors: each Hugging Face name beside the leaf of `Decoder` that holds the same numbers.

One table serves both directions and all families. A kernel's shape is written `inputs | outputs` in the alphabet of the
house; Hugging Face stores it as the matrix [outputs, inputs], heads flattened. `| outputs` is a bias, flattened too. A
shape without a bar is stored as it is. A name with `*` stands for one tensor an expert; the leaf stacks them.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

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
)
_QK_NORM_TABLE = (
    ("self_attn.q_norm.weight", "q_norm.scale", "H"),
    ("self_attn.k_norm.weight", "k_norm.scale", "H"),
)
_QKV_BIAS_TABLE = (
    ("self_attn.q_proj.bias", "q_proj.bias", "| N H"),
    ("self_attn.k_proj.bias", "k_proj.bias", "| K H"),
    ("self_attn.v_proj.bias", "v_proj.bias", "| K H"),
)
_MLP_TABLE = (
    ("mlp.gate_proj.weight", "mlp.gate_proj.kernel", "D | F"),
    ("mlp.up_proj.weight", "mlp.up_proj.kernel", "D | F"),
    ("mlp.down_proj.weight", "mlp.down_proj.kernel", "F | D"),
)
_EXPERTS_TABLE = (
    ("mlp.gate.weight", "mlp.router.kernel", "D | E"),
    ("mlp.experts.*.gate_proj.weight", "mlp.gate_proj", "D | F"),
    ("mlp.experts.*.up_proj.weight", "mlp.up_proj", "D | F"),
    ("mlp.experts.*.down_proj.weight", "mlp.down_proj", "F | D"),
)

TIED_HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
"""Some published files (Qwen3-0.6B, 1.7B) store a tied head a second time."""

LeafPath = tuple[str | int, ...]


@dataclass(frozen=True, kw_only=True)
class TensorRule:
    """Say which stored tensor fills which leaf, or which slice of a leaf, and how its axes turn.

    Attributes:
        hf_name: Name in the safetensors file.
        path: Path of the leaf in the flat state of `Decoder`.
        inputs: Sizes of the input axes; empty for a bias, None if the tensor is stored as it is.
        outputs: Sizes of its other axes.
        num_stacked: Tensors that the leaf stacks along a first axis of its own; 0 if it holds this one only.
        index: Place of this tensor in the stack.
    """

    hf_name: str
    path: LeafPath
    inputs: tuple[int, ...] | None
    outputs: tuple[int, ...]
    num_stacked: int = 0
    index: int = 0

    @property
    def leaf_shape(self) -> tuple[int, ...]:
        """Shape in `Decoder`, of the whole leaf."""
        return ((self.num_stacked,) if self.num_stacked else ()) + self.part_shape

    @property
    def hf_shape(self) -> tuple[int, ...]:
        """Shape in the file."""
        if self.inputs is None:
            return self.outputs
        return (math.prod(self.outputs), *([math.prod(self.inputs)] if self.inputs else []))

    @property
    def slot(self) -> tuple[int, ...]:
        """Index of this tensor's part of the leaf: `leaf[rule.slot]`, the whole leaf if it is no stack."""
        return (self.index,) if self.num_stacked else ()

    @property
    def part_shape(self) -> tuple[int, ...]:
        """Shape in `Decoder` of this tensor's part of the leaf."""
        return (self.inputs or ()) + self.outputs

    def to_leaf(self, stored: np.ndarray) -> np.ndarray:
        """Return a view of the stored tensor in the layout of its part of the leaf."""
        return stored if self.inputs is None else stored.T.reshape(self.part_shape)

    def to_stored(self, leaf: np.ndarray) -> np.ndarray:
        """Return this tensor's part of the whole leaf in the layout of the file: the inverse of `to_leaf`."""
        return self.part_to_stored(leaf[self.slot])

    def part_to_stored(self, part: np.ndarray) -> np.ndarray:
        """Return a view of this tensor's part of the leaf in the layout of the file."""
        return part if self.inputs is None else part.reshape(self.hf_shape[::-1]).T


def tensor_rules(spec: ModelSpec) -> tuple[TensorRule, ...]:
    """Return one rule per tensor of a model of this geometry."""
    sizes = {
        "V": spec.vocab_size,
        "D": spec.d_model,
        "E": spec.num_experts,
        "F": spec.mlp_dim,
        "N": spec.num_heads,
        "K": spec.num_kv_heads,
        "H": spec.head_dim,
    }
    return tuple(rule for row in _rows(spec) for rule in _rules_of_row(*row, sizes))


def _rows(spec: ModelSpec) -> Iterator[tuple[str, LeafPath, str]]:
    for hf_name, leaf, shape in _MODEL_TABLE + (() if spec.tied_embeddings else _UNTIED_TABLE):
        yield hf_name, tuple(leaf.split(".")), shape
    layer_table = _LAYER_TABLE + (_EXPERTS_TABLE if spec.num_experts else _MLP_TABLE)
    layer_table += _QK_NORM_TABLE if spec.qk_norm else ()
    layer_table += _QKV_BIAS_TABLE if spec.qkv_bias else ()
    for layer in range(spec.num_layers):
        for hf_name, leaf, shape in layer_table:
            yield f"model.layers.{layer}.{hf_name}", ("layers", layer, *leaf.split(".")), shape


def _rules_of_row(hf_name: str, path: LeafPath, shape: str, sizes: dict[str, int]) -> Iterator[TensorRule]:
    inputs, bar, outputs = shape.rpartition("|")
    rule = TensorRule(
        hf_name=hf_name,
        path=path,
        inputs=tuple(sizes[axis] for axis in inputs.split()) if bar else None,
        outputs=tuple(sizes[axis] for axis in outputs.split()),
    )
    if "*" not in hf_name:
        yield rule
        return
    for index in range(sizes["E"]):
        yield replace(rule, hf_name=hf_name.replace("*", str(index)), num_stacked=sizes["E"], index=index)


def num_kernel_axes(leaf: str) -> tuple[int, int] | None:
    """Return how many input and output axes a kernel has that int8 models round; None for every other leaf.

    Those are all that a token is multiplied with, except the router of a mixture and a head that is the embedding.

    Args:
        leaf: Dotted path.

    Example:
        >>> num_kernel_axes("layers.3.o_proj.kernel"), num_kernel_axes("layers.3.mlp.router.kernel")
        ((2, 1), None)
    """
    table = (*_UNTIED_TABLE, *_LAYER_TABLE, *_MLP_TABLE, *_EXPERTS_TABLE)
    in_layer = re.sub(r"^layers\.\d+\.", "", leaf)
    shape = next((shape for _, row_leaf, shape in table if row_leaf == in_layer and "router" not in row_leaf), "")
    inputs, _, outputs = shape.rpartition("|")
    return (len(inputs.split()), len(outputs.split())) if inputs.strip() else None
