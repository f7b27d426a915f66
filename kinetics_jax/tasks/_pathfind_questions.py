"""Pathfind's questions, drawn on the device: random graphs, and targets that few walks reach."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from ._pathfind_tokens import BOS, COLON, HOPS_BASE, MAX_DEPTH, NODE_BASE, NUM_NODES, OUT_DEGREE, QUERY, SEMICOLON

_SPLIT_SEEDS = {"train": 0, "held_out": 1}


class PathfindBatch(NamedTuple):
    """Hold a batch of questions, B of them.

    Attributes:
        successors: The two nodes each node points to [B, nodes, 2].
        source: Where the path starts [B].
        target: Where it must end [B].
        depth: Hops it must take [B].
        prompt_ids: The prompt's token ids [B, prompt_len].
    """

    successors: Int[Array, "B nodes 2"]
    source: Int[Array, " B"]
    target: Int[Array, " B"]
    depth: Int[Array, " B"]
    prompt_ids: Int[Array, "B prompt_len"]


def problem_key(split: str, index: int | Int[Array, ""]) -> PRNGKeyArray:
    """Return the key from which problem (or training batch) `index` of a split is drawn.

    The splits fold different constants into one root key, so no training graph shares a seed with a held-out one.

    Raises:
        ValueError: If the split is neither "train" nor "held_out".
    """
    if split not in _SPLIT_SEEDS:
        raise ValueError(f"unknown split {split!r}. Known: {', '.join(_SPLIT_SEEDS)}")
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(0), _SPLIT_SEEDS[split]), index)


def sample_questions(key: PRNGKeyArray, depth: Int[Array, " B"]) -> PathfindBatch:
    """Draw one random graph and question per entry of `depth`; jit- and vmap-safe.

    Each node points to two distinct others. The target is drawn among the nodes that the fewest walks of exactly
    `depth` hops from the source reach (nearly always one walk), the source itself excluded.

    Args:
        key: One key for the whole batch.
        depth: Hops asked for, each in 1..8 [B].

    Returns:
        The batch, prompts rendered with the edges in random order.
    """
    keys = jax.random.split(key, depth.shape[0])
    return PathfindBatch(*jax.vmap(_sample_question)(keys, depth))


def _sample_question(key: PRNGKeyArray, depth: Int[Array, ""]) -> tuple[Array, ...]:
    graph_key, source_key, target_key, order_key = jax.random.split(key, 4)
    successors = _sample_successors(graph_key)
    source = jax.random.randint(source_key, (), 0, NUM_NODES)
    reaches = _num_walks(successors, source, depth)
    allowed = (reaches > 0) & (jnp.arange(NUM_NODES) != source)
    fewest = jnp.min(jnp.where(allowed, reaches, jnp.inf))
    target = _choose(target_key, allowed & (reaches == fewest))
    prompt_ids = _render_prompt(order_key, successors, source, target, depth)
    return successors, source, target, depth, prompt_ids


def _sample_successors(key: PRNGKeyArray) -> Int[Array, "nodes 2"]:
    first_key, second_key = jax.random.split(key)
    nodes = jnp.arange(NUM_NODES)
    first = jax.random.randint(first_key, (NUM_NODES,), 1, NUM_NODES)
    second = jax.random.randint(second_key, (NUM_NODES,), 1, NUM_NODES - 1)
    # Distinct offsets give distinct successors, none of them the node itself.
    second = jnp.where(second >= first, second + 1, second)
    return (nodes[:, None] + jnp.stack([first, second], axis=1)) % NUM_NODES


def _num_walks(successors: Int[Array, "nodes 2"], source: Array, depth: Array) -> Array:
    adjacency = jax.nn.one_hot(successors, NUM_NODES).sum(axis=1)
    walks = jax.nn.one_hot(source, NUM_NODES)
    for hop in range(MAX_DEPTH):
        walks = jnp.where(hop < depth, walks @ adjacency, walks)
    return walks


def _choose(key: PRNGKeyArray, allowed: Bool[Array, " nodes"]) -> Array:
    return jnp.argmax(jnp.where(allowed, jax.random.uniform(key, allowed.shape), -1.0))


def _render_prompt(key: PRNGKeyArray, successors: Array, source: Array, target: Array, depth: Array) -> Array:
    num_edges = NUM_NODES * OUT_DEGREE
    tails = jnp.repeat(jnp.arange(NUM_NODES), OUT_DEGREE)
    triples = jnp.stack([tails + NODE_BASE, successors.reshape(-1) + NODE_BASE, jnp.full(num_edges, SEMICOLON)], axis=1)
    edges = triples[jax.random.permutation(key, num_edges)].reshape(-1)
    question = jnp.stack(
        [jnp.asarray(QUERY), source + NODE_BASE, target + NODE_BASE, HOPS_BASE + depth, jnp.asarray(COLON)]
    )
    return jnp.concatenate([jnp.full(1, BOS), edges, question]).astype(jnp.int32)
