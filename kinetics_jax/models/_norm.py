"""RMSNorm as a module. Called by `_layer` and `_decoder`."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from kinetics_jax.attention import rms_norm


class RMSNorm(nnx.Module):
    """Compute x / sqrt(mean(x^2) + epsilon) * scale over the last axis, in float32.

    Not `nnx.RMSNorm`, which multiplies the scale into the root first: `rms_norm` says why.

    Args:
        width: Size of the last axis.
        epsilon: Added to the mean square.
        dtype: Of the result.
        param_dtype: Storage dtype of the scale.

    References:
        Root Mean Square Layer Normalization (arXiv 1910.07467).
    """

    def __init__(self, width: int, *, epsilon: float, dtype: DTypeLike, param_dtype: DTypeLike):
        self.epsilon = epsilon
        self.dtype = dtype
        self.scale = nnx.Param(jnp.ones((width,), param_dtype))

    def __call__(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        """Return the normalised vectors."""
        return rms_norm(hidden, self.scale[...], epsilon=self.epsilon).astype(self.dtype)
