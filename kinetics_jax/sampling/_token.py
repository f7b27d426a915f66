"""Draw the next token: temperature, top-k, top-p and min-p by threshold, without sorting the vocabulary.

Every rule keeps the tokens at or above some probability, so each is a threshold, and the strictest one holds.
The top-k and top-p thresholds are found by bisection on the probability: monotone sums, no sort.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from kinetics_jax.specs import SamplingSpec

_BISECTIONS = 40
"""Halvings of [0, 1]; thresholds are exact to 2^-40 of the largest probability, below float32 spacing near it."""


def sample_token(
    logits: Float[Array, "B V"], keys: PRNGKeyArray, sampling: SamplingSpec
) -> Int[Array, " B"]:
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
    """Return per row the largest t, within the bisection's grid, for which the tokens with p >= t are enough."""

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low + high) / 2
        enough = is_enough(probs >= middle)[:, None]
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    top = probs.max(axis=-1, keepdims=True)
    low, _ = jax.lax.fori_loop(0, _BISECTIONS, halve, (jnp.zeros_like(top), top * (1 + 1e-6)))
    return low
