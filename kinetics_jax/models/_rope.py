"""Rotary position embedding in the rotate-half layout of Hugging Face checkpoints."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def apply_rope(
    heads: Float[Array, "*batch T heads H"], positions: Int[Array, "*#batch T"], *, theta: float
) -> Float[Array, "*batch T heads H"]:
    """Rotate each head by its token's position.

    With f_i = theta^(-2i/H) the pair (x_i, x_{i+H/2}) turns by the angle position * f_i, computed in float32.

    Args:
        heads: Queries or keys [..., T, heads, H].
        positions: Place of each token in its sequence [..., T].
        theta: Base of the frequencies.

    Returns:
        The rotated heads, same shape and dtype.

    References:
        RoFormer (arXiv 2104.09864), with halves instead of interleaved pairs.
    """
    half = heads.shape[-1] // 2
    frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions[..., None, None].astype(jnp.float32) * frequency.reshape((1,) * (positions.ndim + 1) + (-1,))
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    left, right = jnp.split(heads.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1).astype(heads.dtype)
