"""One decoder layer: grouped-query attention and a SwiGLU MLP, each behind an RMSNorm and a residual.

The layer is told how to attend: training, prefill and decode share all weights and differ in one function.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from kinetics_jax.specs import ModelSpec

from ._rope import apply_rope

Attend = Callable[[Array, Array, Array], Array]
"""Maps queries [B, T, N, H], new keys and new values [B, T, K, H] to attended heads [B, T, N, H]."""


class DecoderLayer(nnx.Module):
    """Hold the weights of one layer of a `ModelSpec`.

    Kernels keep heads apart ([D, N, H], not [D, N*H]), so that a mesh can shard them by head.
    """

    def __init__(self, spec: ModelSpec, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        def norm(width: int) -> nnx.RMSNorm:
            return nnx.RMSNorm(width, epsilon=spec.norm_eps, dtype=dtype, param_dtype=param_dtype, rngs=rngs)

        def linear(inputs: int | tuple[int, ...], outputs: int | tuple[int, ...]) -> nnx.LinearGeneral:
            axis = -1 if isinstance(inputs, int) else tuple(range(-len(inputs), 0))
            return nnx.LinearGeneral(
                inputs, outputs, axis=axis, use_bias=False, dtype=dtype, param_dtype=param_dtype, rngs=rngs
            )

        heads, kv_heads = (spec.num_heads, spec.head_dim), (spec.num_kv_heads, spec.head_dim)
        self.rope_theta = spec.rope_theta
        self.attention_norm = norm(spec.d_model)
        self.q_proj = linear(spec.d_model, heads)
        self.k_proj = linear(spec.d_model, kv_heads)
        self.v_proj = linear(spec.d_model, kv_heads)
        self.o_proj = linear(heads, spec.d_model)
        self.q_norm = norm(spec.head_dim) if spec.qk_norm else None
        self.k_norm = norm(spec.head_dim) if spec.qk_norm else None
        self.mlp_norm = norm(spec.d_model)
        self.gate_proj = linear(spec.d_model, spec.mlp_dim)
        self.up_proj = linear(spec.d_model, spec.mlp_dim)
        self.down_proj = linear(spec.mlp_dim, spec.d_model)

    def __call__(
        self, residual: Float[Array, "B T D"], positions: Int[Array, "#B T"], attend: Attend
    ) -> Float[Array, "B T D"]:
        """Return the residual stream after this layer."""
        hidden = self.attention_norm(residual)
        queries, keys, values = self.q_proj(hidden), self.k_proj(hidden), self.v_proj(hidden)
        if self.q_norm is not None and self.k_norm is not None:
            queries, keys = self.q_norm(queries), self.k_norm(keys)
        queries = apply_rope(queries, positions, theta=self.rope_theta)
        keys = apply_rope(keys, positions, theta=self.rope_theta)
        residual = residual + self.o_proj(attend(queries, keys, values))

        hidden = self.mlp_norm(residual)
        return residual + self.down_proj(jax.nn.silu(self.gate_proj(hidden)) * self.up_proj(hidden))


def logits_from(hidden: Float[Array, "*batch D"], table: Float[Array, "V D"]) -> Float[Array, "*batch V"]:
    """Return hidden . table^T with float32 accumulation and result."""
    return jnp.einsum("...D,VD->...V", hidden, table.astype(hidden.dtype), preferred_element_type=jnp.float32)
