"""Which k tokens have the largest logits? Found by block maxima and counting, without a sort of the vocabulary.

Called by `_token`. The order of tokens is: larger logit first, lower id first among equal ones. The first k tokens lie
in the first k blocks, blocks ordered by their largest logit, then by id: a token outside of them has k blocks before
its own, and each holds a token that comes before it. So one pass finds the maxima, and only k blocks are looked into:

    V = 151,936 logits | 594 blocks of 256 | the k best | their 16 k blocks of 16 | the k best | 16 k tokens | k tokens

Positions in the order are counted, all pairs at once: at these sizes that is one small kernel, where XLA's top_k on a
GPU is a sort of many steps.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

MAX_COUNT = 64
"""Most tokens that are worth finding so: the pairs grow as (16 k)^2."""

_BLOCK_LENS = (256, 16)


def largest_tokens(logits: Float[Array, "B V"], count: int) -> tuple[Float[Array, "B count"], Int[Array, "B count"]]:
    """Return the `count` largest logits of each row in descending order, equal ones by ascending id, and their ids.

    Args:
        logits: Logits without NaN [B, V].
        count: Tokens to find (static), at most V; meant for up to `MAX_COUNT`.

    Returns:
        Logits and token ids [B, count].

    Example:
        >>> logits, ids = largest_tokens(jnp.array([[1.0, 5.0, 3.0, 5.0]]), 3)
        >>> logits.tolist(), ids.tolist()
        ([[5.0, 5.0, 3.0]], [[1, 3, 2]])
    """
    ids = jnp.broadcast_to(jnp.arange(logits.shape[1], dtype=jnp.int32), logits.shape)
    for block_len in _BLOCK_LENS:
        if logits.shape[1] > count * block_len:
            logits, ids = _best_blocks(logits, ids, count, block_len)
    position = _position_in_order(logits, ids)
    return _first(position, logits, count), _first(position, ids, count)


def _best_blocks(logits: Array, ids: Array, count: int, block_len: int) -> tuple[Array, Array]:
    """Return the logits and ids [B, count * block_len] of the blocks that come first; ids run on within a block."""
    blocks = in_blocks(logits, block_len)
    first_ids = ids[:, ::block_len]
    position = _position_in_order(blocks.max(axis=-1), first_ids)
    index = jnp.broadcast_to(jnp.arange(blocks.shape[1], dtype=jnp.int32), position.shape)
    chosen = jnp.take_along_axis(blocks, _first(position, index, count)[:, :, None], axis=1, mode="clip")
    chosen_ids = _first(position, first_ids, count)[:, :, None] + jnp.arange(block_len, dtype=jnp.int32)[None, None, :]
    return chosen.reshape(chosen.shape[0], -1), chosen_ids.reshape(chosen.shape[0], -1)


def in_blocks(logits: Float[Array, "B S"], block_len: int) -> Float[Array, "B blocks block_len"]:
    """Cut rows into blocks, the last filled up with -inf."""
    padding = -logits.shape[1] % block_len
    padded = jnp.pad(logits, ((0, 0), (0, padding)), constant_values=-jnp.inf)
    return padded.reshape(logits.shape[0], -1, block_len)


def _position_in_order(logits: Float[Array, "B S"], ids: Int[Array, "B S"]) -> Int[Array, "B S"]:
    """Count for each entry those that come before it."""
    mine, other = logits[:, :, None], logits[:, None, :]
    comes_before = (other > mine) | ((other == mine) & (ids[:, None, :] < ids[:, :, None]))
    return comes_before.sum(axis=-1, dtype=jnp.int32)


def _first(position: Int[Array, "B S"], entries: Array, count: int) -> Array:
    """Return the entries [B, count] at positions 0 to count - 1: each sum has one term."""
    wanted = jnp.arange(count, dtype=jnp.int32)[None, :, None]
    return jnp.where(position[:, None, :] == wanted, entries[:, None, :], 0).sum(axis=-1, dtype=entries.dtype)
