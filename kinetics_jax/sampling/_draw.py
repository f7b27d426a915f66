"""One token of each row by its probability: Gumbel noise and the largest sum.

Called by `_token`. The noise of a token is a function of the row's key and the token's id, never of the batch or of
the token's rank: two models, caches or devices whose logits differ by rounding almost always draw the same token.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ._largest import in_blocks

WHOLE_VOCAB_LEN = 4096
"""Largest vocabulary in which every token gets noise, as in `jax.random.categorical`: recorded traces were drawn so."""

_BLOCK_LEN = 256


def draw_token(logits: Float[Array, "B V"], keys: Key[Array, " B"]) -> Int[Array, " B"]:
    """Draw one token per row with probability softmax(logits), row b with key b.

    A small vocabulary is drawn from by `jax.random.categorical`. In a large one, noise for every token would cost
    more than all reading: a block of 256 tokens is drawn first, by the log of its mass, then a token in it.

    Args:
        logits: Logits without NaN and +inf; -inf is never drawn unless a row holds nothing else [B, V].
        keys: One key per row [B].

    Returns:
        Token ids [B]; 0 where all of a row is -inf.
    """
    vocab_size = logits.shape[1]
    if vocab_size <= WHOLE_VOCAB_LEN:
        return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)
    blocks = in_blocks(logits, _BLOCK_LEN)
    # No token has the id V, so the blocks' noise is no token's.
    block_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, vocab_size)
    block = jax.vmap(jax.random.categorical)(block_keys, jax.nn.logsumexp(blocks, axis=-1)).astype(jnp.int32)
    chosen = jnp.take_along_axis(blocks, block[:, None, None], axis=1, mode="clip")[:, 0]
    ids = block[:, None] * _BLOCK_LEN + jnp.arange(_BLOCK_LEN, dtype=jnp.int32)[None, :]
    return draw_candidate(chosen, ids, keys)


def draw_candidate(logits: Float[Array, "B S"], ids: Int[Array, "B S"], keys: Key[Array, " B"]) -> Int[Array, " B"]:
    """Draw one of a few listed tokens per row with probability softmax(logits).

    Args:
        logits: Logits of the candidates; -inf is never drawn unless a row holds nothing else.
        ids: Their token ids.
        keys: One key per row.

    Returns:
        Token ids [B]; the first where all of a row is -inf.
    """
    noise = jax.vmap(jax.vmap(_token_noise, (None, 0)))(keys, ids)
    index = jnp.argmax(logits + noise, axis=-1)
    return jnp.take_along_axis(ids, index[:, None], axis=-1, mode="clip")[:, 0]


def _token_noise(key: Key[Array, ""], token_id: Int[Array, ""]) -> Float[Array, ""]:
    return jax.random.gumbel(jax.random.fold_in(key, token_id), dtype=jnp.float32)
