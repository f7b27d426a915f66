"""The second half of a decoder layer: one SwiGLU, or a mixture of many with a router in front.

Which one a `ModelSpec` asks for is decided in `make_mlp`. Kernels are [inputs, outputs]; experts stack theirs.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from kinetics_jax.specs import ModelSpec

from ._experts import Int8Experts, mix_experts
from ._linear import Linear


class SwiGLU(nnx.Module):
    """Compute (silu(x gate) * (x up)) down.

    References:
        GLU Variants Improve Transformer (arXiv 2002.05202), section 2.
    """

    def __init__(self, spec: ModelSpec, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        def linear(inputs: int, outputs: int) -> Linear:
            return Linear((inputs,), (outputs,), dtype=dtype, param_dtype=param_dtype, rngs=rngs)

        self.gate_proj = linear(spec.d_model, spec.mlp_dim)
        self.up_proj = linear(spec.d_model, spec.mlp_dim)
        self.down_proj = linear(spec.mlp_dim, spec.d_model)

    def __call__(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        """Return the update of the residual stream."""
        return self.down_proj(jax.nn.silu(self.gate_proj(hidden)) * self.up_proj(hidden))


class MixtureOfExperts(nnx.Module):
    """Route every token to its J most probable experts and mix their SwiGLUs by their probabilities; none is dropped.

    References:
        Qwen3 technical report (arXiv 2505.09388), section 2.
    """

    def __init__(self, spec: ModelSpec, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        def experts(inputs: int, outputs: int) -> nnx.Param:
            draw = nnx.initializers.lecun_normal(in_axis=-2, out_axis=-1, batch_axis=0)
            return nnx.Param(draw(rngs.params(), (spec.num_experts, inputs, outputs), param_dtype))

        self.dtype = dtype
        self.num_active = spec.num_active_experts
        self.norm_topk_prob = spec.norm_topk_prob
        self.router = nnx.Linear(
            spec.d_model, spec.num_experts, use_bias=False, dtype=dtype, param_dtype=param_dtype, rngs=rngs
        )
        self.gate_proj = experts(spec.d_model, spec.mlp_dim)
        self.up_proj = experts(spec.d_model, spec.mlp_dim)
        self.down_proj = experts(spec.mlp_dim, spec.d_model)
        self.gate_proj_scale: nnx.Param | None = nnx.data(None)
        self.up_proj_scale: nnx.Param | None = nnx.data(None)
        self.down_proj_scale: nnx.Param | None = nnx.data(None)

    def __call__(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        """Return the update of the residual stream."""
        tokens = hidden.reshape(-1, hidden.shape[-1])
        experts, weights = self.route(tokens)
        kernels = (
            values[...].astype(self.dtype) if scale is None else Int8Experts(values[...], scale[...])
            for values, scale in (
                (self.gate_proj, self.gate_proj_scale),
                (self.up_proj, self.up_proj_scale),
                (self.down_proj, self.down_proj_scale),
            )
        )
        return mix_experts(tokens, experts, weights, *kernels).reshape(hidden.shape)

    def route(self, tokens: Float[Array, "T D"]) -> tuple[Int[Array, "T J"], Float[Array, "T J"]]:
        """Return the J most probable experts of each token, the most probable first, and their float32 weights.

        Probabilities are a softmax over all experts; `norm_topk_prob` scales those chosen to sum to one.
        """
        kernel = self.router.kernel[...].astype(tokens.dtype)
        logits = jnp.einsum("TD,DE->TE", tokens, kernel, preferred_element_type=jnp.float32)
        weights, experts = jax.lax.top_k(jax.nn.softmax(logits, axis=-1), self.num_active)
        if self.norm_topk_prob:
            weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
        return experts, weights

    def hold_int8(self) -> None:
        """Turn the shapes of float experts into those of int8 ones and their scales; for abstract decoders."""
        for name in ("gate_proj", "up_proj", "down_proj"):
            shape = getattr(self, name).shape
            setattr(self, name, nnx.Param(jax.ShapeDtypeStruct(shape, jnp.int8)))
            setattr(self, f"{name}_scale", nnx.Param(jax.ShapeDtypeStruct((shape[0], shape[2]), jnp.float32)))


def make_mlp(spec: ModelSpec, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs) -> SwiGLU | MixtureOfExperts:
    """Build what the geometry asks for."""
    kind = MixtureOfExperts if spec.num_experts else SwiGLU
    return kind(spec, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
