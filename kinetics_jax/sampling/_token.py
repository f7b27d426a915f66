"""Draw the next token: temperature, top-k, top-p and min-p by threshold, without sorting the vocabulary.

Every rule keeps the tokens at or above some probability, so each is a threshold, and the strictest one holds.
The top-k and top-p thresholds are found by bisection over the bit patterns of the probabilities, which for
non-negative floats are integers in the same order: exact after 31 halvings, monotone sums, no sort.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from kinetics_jax.specs import SamplingSpec

_NUM_BITS = 31
"""Bits of a non-negative float32."""


def sample_token(logits: Float[Array, "B V"], keys: Key[Array, " B"], sampling: SamplingSpec) -> Int[Array, " B"]:
    """Draw one token per row, row b with key b.

    Args:
        logits: Next-token logits [B, V], float32.
        keys: One key per row [B].
        sampling: Temperature and truncation; temperature 0 takes the largest logit (lowest id on ties).

    Returns:
        Token ids [B].
    """
    if sampling.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    scaled = logits / sampling.temperature
    kept = jnp.where(allowed_tokens(scaled, sampling), scaled, -jnp.inf)
    return jax.vmap(jax.random.categorical)(keys, kept).astype(jnp.int32)


def allowed_tokens(scaled_logits: Float[Array, "B V"], sampling: SamplingSpec) -> Bool[Array, "B V"]:
    """Return which tokens top-k, top-p and min-p leave; ties at a threshold stay together.

    Top-k and top-p are both judged on the full distribution.

    Args:
        scaled_logits: Logits after the temperature [B, V].
        sampling: The rules.

    Returns:
        Whether each token may be drawn [B, V]; the most likely one always may.

    Example:
        >>> allowed_tokens(jnp.log(jnp.array([[0.5, 0.3, 0.2]])), SamplingSpec(top_p=0.6)).tolist()
        [[True, True, False]]
    """
    probs = jax.nn.softmax(scaled_logits, axis=-1)
    threshold = sampling.min_p * probs.max(axis=-1, keepdims=True)
    if 0 < sampling.top_k < probs.shape[-1]:
        enough = _largest_threshold(probs, lambda kept: kept.sum(axis=-1) >= sampling.top_k)
        threshold = jnp.maximum(threshold, enough)
    if sampling.top_p < 1:
        enough = _largest_threshold(probs, lambda kept: jnp.where(kept, probs, 0).sum(axis=-1) >= sampling.top_p)
        threshold = jnp.maximum(threshold, enough)
    return probs >= threshold


def _largest_threshold(probs: Array, is_enough: Callable[[Array], Array]) -> Array:
    """Return per row the largest t for which the tokens with p >= t are enough; 0 where no t is."""
    bits = jax.lax.bitcast_convert_type(probs.astype(jnp.float32), jnp.int32)

    def add_bit(place: int | Array, threshold: Array) -> Array:
        higher = threshold | (1 << (_NUM_BITS - 1 - place))
        return jnp.where(is_enough(bits >= higher)[:, None], higher, threshold)

    threshold = jax.lax.fori_loop(0, _NUM_BITS, add_bit, jnp.zeros_like(bits[:, :1]))
    return jax.lax.bitcast_convert_type(threshold, jnp.float32)
