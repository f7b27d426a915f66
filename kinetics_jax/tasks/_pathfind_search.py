"""Reference thoughts for pathfind: a shuffled search without repeats by teachers who see a few hops ahead.

A teacher with sight h tries the walks of the asked depth from the source: the first d - h hops run through all
prefixes in random order, never the same one twice; from there on it sees whether the target can be reached in the
hops that are left and, if so, goes there. Each walk is closed by FAIL, the first that arrives by DONE and <eos>.
The prompt does not tell the sight, so a model must infer it, and one that cannot look as far ahead in its head can
still search: more thought makes up for less insight, at 2^h times the walks.

Everything is index arithmetic, without a loop over tokens: a walk is the bit string of the successors it chooses,
and a shuffled search is a shuffled list of bit strings.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

from ._pathfind_questions import PathfindBatch
from ._pathfind_tokens import DONE, EOS, FAIL, MAX_DEPTH, NODE_BASE, NUM_NODES, PAD

SIGHTS = (1, 2, 3, 4)
_SIGHT_WEIGHTS = (0.2, 0.2, 0.25, 0.35)
_NUM_PREFIXES = 2 ** (MAX_DEPTH - min(SIGHTS))


def reference_thoughts(key: PRNGKeyArray, batch: PathfindBatch, *, max_len: int) -> Int[Array, "B max_len"]:
    """Draw a reference thought for every question, each by a teacher of random sight; jit-safe.

    Args:
        key: One key for the whole batch.
        batch: The questions.
        max_len: Tokens returned per thought; longer thoughts are cut, shorter ones padded.

    Returns:
        Token ids [B, max_len], padded with <pad> after <eos>.
    """
    sight_key, walk_key = jax.random.split(key)
    batch_size = batch.source.shape[0]
    weights = jnp.log(jnp.asarray(_SIGHT_WEIGHTS))
    sight = jnp.asarray(SIGHTS)[jax.random.categorical(sight_key, weights, shape=(batch_size,))]
    keys = jax.random.split(walk_key, batch_size)
    thought = jax.vmap(lambda *args: _thought(*args, max_len=max_len))
    return thought(keys, batch.successors, batch.source, batch.target, batch.depth, sight)


def _thought(
    key: PRNGKeyArray, successors: Array, source: Array, target: Array, depth: Array, sight: Array, *, max_len: int
) -> Array:
    nodes = _shuffled_walks(key, successors, source, target, depth, sight)
    arrived = jnp.take_along_axis(nodes, jnp.full((_NUM_PREFIXES, 1), depth), axis=1)[:, 0] == target
    last = jnp.argmax(arrived)  # every prefix is in the list, so one arrives

    walk, offset = jnp.divmod(jnp.arange(max_len), depth + 2)
    walk_or_0 = jnp.minimum(walk, _NUM_PREFIXES - 1)
    closing = jnp.where(arrived[walk_or_0], DONE, FAIL)
    token = jnp.where(offset <= depth, nodes[walk_or_0, jnp.minimum(offset, MAX_DEPTH)] + NODE_BASE, closing)
    after = jnp.where((walk == last + 1) & (offset == 0), EOS, PAD)
    return jnp.where(walk <= last, token, after).astype(jnp.int32)


def _shuffled_walks(
    key: PRNGKeyArray, successors: Array, source: Array, target: Array, depth: Array, sight: Array
) -> Array:
    """Return the nodes of the walks in the order tried [prefixes, max_depth + 1].

    The first 2^(depth - sight) rows run through all prefixes once; later rows are never reached.
    """
    order_key, bit_key = jax.random.split(key)
    codes = jnp.arange(_NUM_PREFIXES)
    prefix_len = jnp.maximum(depth - sight, 0)
    codes = jnp.argsort(jnp.where(codes < 2**prefix_len, jax.random.uniform(order_key, codes.shape), 2.0))
    free_bits = jax.random.bernoulli(bit_key, shape=(MAX_DEPTH, _NUM_PREFIXES)).astype(jnp.int32)
    reaches = _reaches_target(successors, target)

    node = jnp.full(codes.shape, source)
    nodes = [node]
    for hop in range(MAX_DEPTH):
        hops_left = depth - hop - 1
        bit = jnp.where(hop < prefix_len, (codes >> hop) & 1, free_bits[hop])
        options = successors[node]
        leads_there = reaches[jnp.clip(hops_left, 0, MAX_DEPTH - 1)][options]
        only_other = jnp.take_along_axis(leads_there, 1 - bit[:, None], axis=1) & ~jnp.take_along_axis(
            leads_there, bit[:, None], axis=1
        )
        sees = (hops_left + 1 <= sight) & only_other[:, 0]
        node = jnp.take_along_axis(options, jnp.where(sees, 1 - bit, bit)[:, None], axis=1)[:, 0]
        nodes.append(node)
    return jnp.stack(nodes, axis=1)


def _reaches_target(successors: Array, target: Array) -> Array:
    """Return whether each node reaches the target in exactly k hops [k, nodes], for k below the largest depth."""
    reach = [jnp.arange(NUM_NODES) == target]
    for _ in range(MAX_DEPTH - 1):
        reach.append(reach[-1][successors].any(axis=1))
    return jnp.stack(reach)
