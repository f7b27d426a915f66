"""Angles of the rotary position embedding of Hugging Face checkpoints, plain or stretched. Called by `_layer`."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from kinetics_jax.specs import Llama3Rope, RopeScaling, YarnRope


def rope_angles(
    positions: Int[Array, "*batch T"], head_dim: int, *, theta: float, scaling: RopeScaling | None = None
) -> tuple[Float[Array, "*batch T half"], Float[Array, "*batch T half"]]:
    """Return cosine and sine of the angle by which each pair of a token's heads turns.

    The pair (x_i, x_{i+H/2}) turns by the angle position * f_i, computed in float32, with f = `rope_frequencies`.
    YaRN lengthens the heads as well, which sharpens the logits: both come multiplied by its factor.

    Args:
        positions: Place of each token in its sequence.
        head_dim: Width of a head, H.
        theta: Base of the frequencies.
        scaling: How the frequencies are stretched, or None.

    Returns:
        Cosine and sine [..., T, H/2], float32.

    References:
        RoFormer (arXiv 2104.09864), with halves instead of interleaved pairs.
    """
    frequency = jnp.asarray(rope_frequencies(head_dim, theta=theta, scaling=scaling), jnp.float32)
    angle = positions[..., None].astype(jnp.float32) * frequency.reshape((1,) * positions.ndim + (-1,))
    length = _yarn_length(scaling) if isinstance(scaling, YarnRope) else 1.0
    return length * jnp.cos(angle), length * jnp.sin(angle)


def rope_frequencies(head_dim: int, *, theta: float, scaling: RopeScaling | None = None) -> Float[np.ndarray, " half"]:
    """Return the float64 angles by which the pairs of a head turn from one token to the next [rad].

    Plain: f_i = theta^(-2i/H). A scaling multiplies it by a_i + (1 - a_i) / factor, where a_i in 0..1 says how far
    the pair keeps its speed:

    - Llama 3: a = (original_max_len f / 2 pi - low) / (high - low), clipped: by turns over the original context.
    - YaRN: a falls linearly with i, from 1 at the pair that makes beta_fast turns over the original context to 0 at
      the one that makes beta_slow, both rounded outwards to whole i.

    Example:
        >>> rope_frequencies(4, theta=100.0).tolist()
        [1.0, 0.1]

    References:
        The Llama 3 Herd of Models (arXiv 2407.21783); YaRN (arXiv 2309.00071), section 3.2.
    """
    pair = np.arange(head_dim // 2)
    frequency = theta ** (-2.0 * pair / head_dim)
    match scaling:
        case None:
            return frequency
        case Llama3Rope(low_freq_factor=low, high_freq_factor=high):
            turns = scaling.original_max_len * frequency / (2 * math.pi)
            kept = np.clip((turns - low) / (high - low), 0, 1)
        case YarnRope():
            first = max(math.floor(_pair_with_turns(scaling.beta_fast, head_dim, theta, scaling.original_max_len)), 0)
            last = math.ceil(_pair_with_turns(scaling.beta_slow, head_dim, theta, scaling.original_max_len))
            last = min(last, head_dim - 1)  # beyond the last pair, H/2 - 1: as transformers has it
            kept = 1 - np.clip((pair - first) / (last - first or 0.001), 0, 1)
    return frequency * (kept + (1 - kept) / scaling.factor)


def _pair_with_turns(turns: float, head_dim: int, theta: float, context_len: int) -> float:
    """Return the (fractional) i whose frequency theta^(-2i/H) makes `turns` turns over the context."""
    return head_dim * math.log(context_len / (2 * math.pi * turns)) / (2 * math.log(theta))


def _yarn_length(scaling: YarnRope) -> float:
    """Return the factor on queries and keys; logits grow by its square (arXiv 2309.00071, section 3.4)."""
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    return 0.1 * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0
