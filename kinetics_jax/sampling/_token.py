"""Draw the next token: temperature, top-k, top-p, min-p, penalties and bias, without sorting the vocabulary.

`sample_token` is the one door; `generate` and the engine call it at every step. Tokens are ordered by logit, equal ones
by id. Top-k keeps the first k of that order. Top-p and min-p are thresholds on the logit, judged on the full
distribution: tokens as likely as the last one kept stay too. A token stays if every rule keeps it.

Which way is taken follows from spec and vocabulary alone, so that a row draws the same token in every batch:

    top_k in 1..64       list the k largest (`_largest`), judge and draw among them
    other truncations    find the thresholds by digits (`_threshold`), draw from what stays
    none                 draw from all (`_draw`)

Logits that are no numbers: NaN counts as -inf; +inf, after the temperature, as the largest float32, so that such a
token is certain, the lowest id among several. A row without any logit above -inf gives token 0.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from kinetics_jax.specs import SamplingSpec

from ._draw import draw_candidate, draw_token
from ._largest import MAX_COUNT, largest_tokens
from ._penalty import adjusted_logits
from ._threshold import largest_threshold, ordered_bits


def sample_token(
    logits: Float[Array, "B V"],
    keys: Key[Array, " B"],
    sampling: SamplingSpec,
    seen: Bool[Array, "B V"] | None = None,
) -> Int[Array, " B"]:
    """Draw one token per row, row b with key b.

    Args:
        logits: Next-token logits [B, V].
        keys: One key per row [B]; not used by temperature 0.
        sampling: How to draw (static); temperature 0 takes the largest logit, the lowest id on ties.
        seen: Which tokens prompt and output hold, for the repetition penalty; `seen_tokens` makes it.

    Returns:
        Token ids [B]; 0 for a row without any logit above -inf.

    Raises:
        ValueError: If a repetition penalty has no `seen`, or a biased token is outside of the vocabulary.

    Example:
        >>> logits, keys = jnp.log(jnp.array([[0.1, 0.6, 0.3]])), jax.random.split(jax.random.key(0), 1)
        >>> sample_token(logits, keys, SamplingSpec(top_k=1)).tolist()
        [1]
    """
    adjusted = adjusted_logits(logits, sampling, seen)
    if sampling.temperature == 0:
        return jnp.argmax(adjusted, axis=-1).astype(jnp.int32)
    scaled = _over_temperature(adjusted, sampling)
    if _lists_candidates(sampling, logits.shape[1]):
        candidates, ids = _kept_candidates(scaled, sampling)
        return draw_candidate(candidates, ids, keys)
    return draw_token(jnp.where(allowed_tokens(scaled, sampling), scaled, -jnp.inf), keys)


def token_probs(
    logits: Float[Array, "B V"], sampling: SamplingSpec, seen: Bool[Array, "B V"] | None = None
) -> Float[Array, "B V"]:
    """Return the probabilities that `sample_token` draws with: truncated, and adding up to 1.

    Args:
        logits: Next-token logits [B, V].
        sampling: How tokens are drawn (static); temperature 0 puts all on one token.
        seen: As in `sample_token`.

    Returns:
        Probabilities [B, V], float32.

    Raises:
        ValueError: As `sample_token`.

    Example:
        >>> token_probs(jnp.array([[2.0, 1.0, 2.0]]), SamplingSpec(top_k=2)).tolist()
        [[0.5, 0.0, 0.5]]
    """
    adjusted = adjusted_logits(logits, sampling, seen)
    likeliest = jax.nn.one_hot(jnp.argmax(adjusted, axis=-1), logits.shape[1], dtype=jnp.float32)
    if sampling.temperature == 0:
        return likeliest
    scaled = _over_temperature(adjusted, sampling)
    probs = jax.nn.softmax(jnp.where(allowed_tokens(scaled, sampling), scaled, -jnp.inf), axis=-1)
    return jnp.where(adjusted.max(axis=-1, keepdims=True) > -jnp.inf, probs, likeliest)


def token_log_probs(logits: Float[Array, "B V"], token_ids: Int[Array, " B"]) -> Float[Array, " B"]:
    """Return log softmax(logits) at the tokens: what the model itself thinks of them, whatever drew them.

    Args:
        logits: The model's logits [B, V]; NaN counts as -inf.
        token_ids: Tokens [B].

    Returns:
        Natural logarithms [B], float32, at temperature 1 and without truncation; -inf for a logit of -inf.

    Example:
        >>> jnp.exp(token_log_probs(jnp.log(jnp.array([[0.25, 0.75]])), jnp.array([1]))).tolist()
        [0.75]
    """
    logits = jnp.nan_to_num(logits.astype(jnp.float32), nan=-jnp.inf, posinf=None, neginf=-jnp.inf)
    chosen = jnp.take_along_axis(logits, token_ids[:, None], axis=-1, mode="clip")[:, 0]
    return jnp.where(chosen > -jnp.inf, chosen - jax.nn.logsumexp(logits, axis=-1), -jnp.inf)


def allowed_tokens(scaled_logits: Float[Array, "B V"], sampling: SamplingSpec) -> Bool[Array, "B V"]:
    """Return which tokens top-k, top-p and min-p leave.

    Args:
        scaled_logits: Logits after penalty, bias and temperature, without NaN and +inf [B, V].
        sampling: The rules (static).

    Returns:
        Whether each token may be drawn [B, V]; the most likely one always may, a logit of -inf never.

    Example:
        >>> allowed_tokens(jnp.log(jnp.array([[0.5, 0.3, 0.2]])), SamplingSpec(top_p=0.6)).tolist()
        [[True, True, False]]
    """
    batch_size, vocab_size = scaled_logits.shape
    if _lists_candidates(sampling, vocab_size):
        candidates, ids = _kept_candidates(scaled_logits, sampling)
        rows = jnp.arange(batch_size)[:, None]
        return jnp.zeros(scaled_logits.shape, bool).at[rows, ids].set(candidates > -jnp.inf)
    allowed = scaled_logits > -jnp.inf
    top = _finite(scaled_logits.max(axis=-1, keepdims=True))
    if sampling.min_p > 0:
        allowed &= scaled_logits >= top + math.log(sampling.min_p)
    bits = ordered_bits(scaled_logits)
    if sampling.top_p < 1:
        weights = jnp.exp(scaled_logits - top)
        enough = sampling.top_p * weights.sum(axis=-1, keepdims=True)
        allowed &= bits >= largest_threshold(bits, weights, enough)
    if 0 < sampling.top_k < vocab_size:
        count = jnp.full((batch_size, 1), sampling.top_k, jnp.int32)
        last = largest_threshold(bits, jnp.ones(bits.shape, jnp.int32), count)
        room = count - (bits > last).sum(axis=-1, keepdims=True, dtype=jnp.int32)
        ties = bits == last
        allowed &= (bits > last) | (ties & (jnp.cumsum(ties, axis=-1, dtype=jnp.int32) <= room))
    return allowed


def _lists_candidates(sampling: SamplingSpec, vocab_size: int) -> bool:
    return 0 < sampling.top_k <= min(MAX_COUNT, vocab_size - 1)


def _kept_candidates(scaled: Array, sampling: SamplingSpec) -> tuple[Array, Array]:
    """Return the logits [B, k] of the k largest tokens, -inf where another rule drops one, and their ids."""
    candidates, ids = largest_tokens(scaled, sampling.top_k)
    top = _finite(candidates[:, :1])
    kept = candidates > -jnp.inf
    if sampling.min_p > 0:
        kept &= candidates >= top + math.log(sampling.min_p)
    if sampling.top_p < 1:
        enough = sampling.top_p * jnp.exp(scaled - top).sum(axis=-1, keepdims=True)
        reached = jnp.cumsum(jnp.exp(candidates - top), axis=-1) >= enough
        # In descending order the largest logit at which the mass is reached is the threshold; -inf where none is.
        kept &= candidates >= jnp.where(reached, candidates, -jnp.inf).max(axis=-1, keepdims=True)
    return jnp.where(kept, candidates, -jnp.inf), ids


def _over_temperature(adjusted: Array, sampling: SamplingSpec) -> Array:
    return jnp.minimum(adjusted / sampling.temperature, jnp.finfo(jnp.float32).max)


def _finite(top: Array) -> Array:
    """Replace -inf by 0, so that exp(x - top) of a row without any finite logit is 0 rather than NaN."""
    return jnp.where(top > -jnp.inf, top, 0.0)
