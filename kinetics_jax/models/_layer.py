"""One decoder layer: grouped-query attention and an MLP, each behind an RMSNorm and a residual.

The layer is told how to attend: training, prefill and decode share all weights and differ in one function.
"""

from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from kinetics_jax.attention import Rotation
from kinetics_jax.specs import ModelSpec

from ._linear import Linear
from ._mlp import make_mlp
from ._norm import RMSNorm
from ._rope import rope_angles

Attend = Callable[[Array, Array, Array, Rotation], Array]
"""Maps queries [B, T, N, H], new keys and new values [B, T, K, H] to attended heads [B, T, N, H].

All three come as projected; queries and keys are still to be normed and turned, as the rotation says.
"""


class DecoderLayer(nnx.Module):
    """Hold the weights of one layer of a `ModelSpec`.

    Kernels keep heads apart ([D, N, H], not [D, N*H]), so that a mesh can shard them by head.
    """

    def __init__(self, spec: ModelSpec, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        def norm(width: int) -> RMSNorm:
            return RMSNorm(width, epsilon=spec.norm_eps, dtype=dtype, param_dtype=param_dtype)

        def linear(inputs: tuple[int, ...], outputs: tuple[int, ...], *, use_bias: bool) -> Linear:
            return Linear(inputs, outputs, use_bias=use_bias, dtype=dtype, param_dtype=param_dtype, rngs=rngs)

        width = (spec.d_model,)
        heads, kv_heads = (spec.num_heads, spec.head_dim), (spec.num_kv_heads, spec.head_dim)
        self.head_dim = spec.head_dim
        self.rope_theta = spec.rope_theta
        self.rope_scaling = spec.rope_scaling
        self.attention_norm = norm(spec.d_model)
        self.q_proj = linear(width, heads, use_bias=spec.qkv_bias)
        self.k_proj = linear(width, kv_heads, use_bias=spec.qkv_bias)
        self.v_proj = linear(width, kv_heads, use_bias=spec.qkv_bias)
        self.o_proj = linear(heads, width, use_bias=False)
        self.q_norm = norm(spec.head_dim) if spec.qk_norm else None
        self.k_norm = norm(spec.head_dim) if spec.qk_norm else None
        self.mlp_norm = norm(spec.d_model)
        self.mlp = make_mlp(spec, dtype=dtype, param_dtype=param_dtype, rngs=rngs)

    def __call__(
        self, residual: Float[Array, "B T D"], positions: Int[Array, "#B T"], attend: Attend
    ) -> Float[Array, "B T D"]:
        """Return the residual stream after this layer."""
        hidden = self.attention_norm(residual)
        heads = self.q_proj(hidden), self.k_proj(hidden), self.v_proj(hidden)
        residual = residual + self.o_proj(attend(*heads, self._rotation(positions)))
        return residual + self.mlp(self.mlp_norm(residual))

    def _rotation(self, positions: Int[Array, "#B T"]) -> Rotation:
        cos, sin = rope_angles(positions, self.head_dim, theta=self.rope_theta, scaling=self.rope_scaling)
        if self.q_norm is None or self.k_norm is None:
            return Rotation(cos=cos, sin=sin)
        norms = self.q_norm.scale[...], self.k_norm.scale[...]
        return Rotation(cos=cos, sin=sin, norms=norms, epsilon=self.q_norm.epsilon)


def logits_from(hidden: Float[Array, "*batch D"], table: Float[Array, "V D"]) -> Float[Array, "*batch V"]:
    """Return hidden . table^T with float32 accumulation and result."""
    return jnp.einsum("...D,VD->...V", hidden, table.astype(hidden.dtype), preferred_element_type=jnp.float32)
