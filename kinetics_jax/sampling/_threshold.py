"""Where must a row of logits be cut so that what stays is enough? Exact, in eight passes, without a sort.

Called by `_token` where the largest tokens cannot be listed: top-p alone, or a large top-k. A float32 is a sign and
31 bits; mapped to an unsigned integer it keeps its order, so the threshold is found digit by digit. A pass tries all
15 digits of four bits in one reduction over the vocabulary. Sums are of terms that are not negative, in one fixed
order, so they fall as the threshold rises.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt

_DIGIT_BITS = 4
_NUM_DIGITS = 32 // _DIGIT_BITS


def ordered_bits(logits: Float[Array, "B V"]) -> UInt[Array, "B V"]:
    """Map float32 without NaN to unsigned integers of the same order; -0.0 is 0.0."""
    bits = jax.lax.bitcast_convert_type(jnp.where(logits == 0, 0.0, logits), jnp.uint32)
    sign = jnp.uint32(1 << 31)
    return jnp.where(bits >= sign, ~bits, bits | sign)


def largest_threshold(
    bits: UInt[Array, "B V"],
    weights: Float[Array, "B V"] | Int[Array, "B V"],
    enough: Float[Array, "B 1"] | Int[Array, "B 1"],
) -> UInt[Array, "B 1"]:
    """Return per row the largest t for which the tokens with bits >= t weigh enough; 0 where no t is.

    Args:
        bits: Order of the tokens, from `ordered_bits`.
        weights: What each token counts, not negative.
        enough: The weight to reach.

    Returns:
        Thresholds, each the bits of a token of its row, or 0.

    Example:
        >>> bits = ordered_bits(jnp.array([[0.5, -1.0, 2.0, 0.5]]))
        >>> threshold = largest_threshold(bits, jnp.ones((1, 4), int), jnp.array([[2]]))
        >>> (bits >= threshold).tolist()  # the second largest is 0.5, and there are two of them
        [[True, False, True, True]]
    """

    def add_digit(place: int | Array, threshold: Array) -> Array:
        shift = jnp.uint32(32 - _DIGIT_BITS) - jnp.uint32(_DIGIT_BITS) * jnp.asarray(place, jnp.uint32)
        raised = [threshold | (jnp.uint32(digit) << shift) for digit in range(1, 1 << _DIGIT_BITS)]
        kept = [jnp.where(bits >= each, weights, jnp.zeros((), weights.dtype)) for each in raised]
        # One reduction of 15 operands: the vocabulary is read once a pass.
        zeros = [jnp.zeros((), weights.dtype)] * len(kept)
        sums = jax.lax.reduce(kept, zeros, lambda left, right: [x + y for x, y in zip(left, right, strict=True)], [1])
        digit = (jnp.stack(sums, axis=1) >= enough).sum(axis=1, keepdims=True, dtype=jnp.uint32)
        return threshold | (digit << shift)

    return jax.lax.fori_loop(0, _NUM_DIGITS, add_digit, jnp.zeros_like(bits[:, :1]))
