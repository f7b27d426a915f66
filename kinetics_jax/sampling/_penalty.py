"""What is done to the model's logits before the temperature: repetition penalty, bias, and values that are no numbers.

Called by `_token`.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from kinetics_jax.specs import SamplingSpec


def adjusted_logits(
    logits: Float[Array, "B V"], sampling: SamplingSpec, seen: Bool[Array, "B V"] | None
) -> Float[Array, "B V"]:
    """Penalise seen tokens, add the bias and rule NaN out.

    Args:
        logits: Next-token logits [B, V].
        sampling: Holds penalty and bias.
        seen: Which tokens prompt and output hold; wanted by a penalty.

    Returns:
        Float32 logits, NaN replaced by -inf.

    Raises:
        ValueError: If a penalty has no `seen`, or a biased token is outside of the vocabulary.

    Example:
        >>> spec = SamplingSpec(repetition_penalty=2.0, logit_bias=((3, 1.5),))
        >>> logits, seen = jnp.array([[3.0, -3.0, 3.0, 0.0]]), jnp.array([[True, True, False, False]])
        >>> adjusted_logits(logits, spec, seen).tolist()
        [[1.5, -6.0, 3.0, 1.5]]
    """
    logits = logits.astype(jnp.float32)
    vocab_size = logits.shape[1]
    if sampling.repetition_penalty != 1:
        if seen is None:
            raise ValueError(
                f"a repetition penalty wants `seen`, the tokens of prompt and output; got None with {sampling}. "
                "Pass seen [B, V], from `seen_tokens`"
            )
        penalty = sampling.repetition_penalty
        logits = jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)
    if sampling.logit_bias:
        ids, biases = zip(*sampling.logit_bias, strict=True)
        if ids[-1] >= vocab_size:
            raise ValueError(f"logit_bias wants token ids below the vocabulary of {vocab_size}; got {ids[-1]}")
        bias = jnp.zeros(vocab_size, jnp.float32).at[jnp.asarray(ids)].set(jnp.asarray(biases, jnp.float32))
        logits = logits + bias[None, :]
    return jnp.where(jnp.isnan(logits), -jnp.inf, logits)


def seen_tokens(
    token_ids: Int[Array, "B T"], num_held: Int[Array, " B"], vocab_size: int, seen: Bool[Array, "B V"] | None = None
) -> Bool[Array, "B V"]:
    """Mark the tokens that sequences hold, for the repetition penalty.

    Args:
        token_ids: Tokens of each sequence, padded at the end [B, T].
        num_held: How many of them count [B].
        vocab_size: V.
        seen: What is marked already; None is nothing.

    Returns:
        Whether each token was seen [B, V].

    Example:
        >>> seen_tokens(jnp.array([[2, 0, 3]]), jnp.array([2]), 4).tolist()
        [[True, False, True, False]]
    """
    batch_size, num_tokens = token_ids.shape
    if seen is None:
        seen = jnp.zeros((batch_size, vocab_size), bool)
    counts = jnp.arange(num_tokens, dtype=jnp.int32)[None, :] < num_held[:, None]
    rows = jnp.arange(batch_size, dtype=jnp.int32)[:, None]
    return seen.at[rows, jnp.where(counts, token_ids, vocab_size)].set(True, mode="drop")
