"""What a model does to queries and keys before it attends: RMSNorm of each head, rotation by its position.

Public for the models, which norm and rotate whole prompts with it; used by `_xla` for one token.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def rms_norm(x: Float[Array, "*B H"], weight: Float[Array, " H"], *, epsilon: float) -> Float[Array, "*B H"]:
    """Compute x / sqrt(mean(x^2) + epsilon) * weight over the last axis, in float32.

    The root divides before the weight multiplies: in this form XLA knows it from softmax and makes one kernel of it on
    a GPU, in place of two.

    Args:
        x: Vectors to normalise.
        weight: Factor of each dimension.
        epsilon: Added to the mean square.

    Returns:
        The normalised vectors in float32.

    Example:
        >>> import jax.numpy as jnp
        >>> rms_norm(jnp.array([3.0, -3.0]), jnp.array([1.0, 2.0]), epsilon=0.0).tolist()
        [1.0, -2.0]

    References:
        Root Mean Square Layer Normalization (arXiv 1910.07467).
    """
    wide = x.astype(jnp.float32)
    unit = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + epsilon)
    return unit * jnp.broadcast_to(weight.astype(jnp.float32), unit.shape)


def rotate(
    heads: Float[Array, "*B N H"], cos: Float[Array, "*#B half"], sin: Float[Array, "*#B half"]
) -> Float[Array, "*B N H"]:
    """Turn the pairs (x_i, x_{i+H/2}) of every head by an angle each, in float32: rotary position embedding.

    Args:
        heads: Queries or keys.
        cos: Cosine of the angle of each pair, times a factor if the heads are to be lengthened (YaRN); all heads of a
            token share it.
        sin: Sine, likewise.

    Returns:
        The turned heads in the dtype of `heads`.

    Example:
        >>> import jax.numpy as jnp
        >>> rotate(jnp.array([[1.0, 2.0]]), jnp.array([0.0]), jnp.array([1.0])).tolist()  # by a right angle
        [[-2.0, 1.0]]

    References:
        RoFormer (arXiv 2104.09864), with halves instead of interleaved pairs.
    """
    cos, sin = cos[..., None, :], sin[..., None, :]
    left, right = jnp.split(heads.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1).astype(heads.dtype)
