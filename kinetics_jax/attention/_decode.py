"""One decode step of attention: which entries each spec reads. Called by `models`, once a layer and step.

A new method is one branch of `decode_attention` and one function here.
"""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from kinetics_jax.specs import AttentionSpec, BlockTopK, Dense, Local, PageSelection, Quest, TopK
from pallas_kernels import block_topk_decode, choose_pages, gather_pages, paged_decode

from ._cache import PagedCache, folded_pools, layer_page_table
from ._split import split_over_mesh


def decode_attention(
    spec: AttentionSpec,
    q: Float[Array, "B N H"],
    cache: PagedCache,
    layer: int | Int[Array, ""],
    *,
    scale: float | None = None,
    mesh: Mesh | None = None,
) -> Float[Array, "B N H"]:
    """Attend from the token just appended to the entries that `spec` reads, itself included.

    Called after `rotate_and_append(cache, layer, ...)` and before `advance`, so that it sees lengths + 1 entries.
    Selection is per sequence, KV head and step, by scores averaged over the query heads of a group; ties go to the
    lowest token or page. Sinks and newest entries of a selection count in its budget. A budget that covers the whole
    table gives the dense result bit for bit.

    BlockTopK and Local touch only the pages that they read. TopK and Quest are exact but not fast: TopK is an oracle
    that scores every key, and the cache keeps no page bounds, so Quest finds them in the keys at every step.

    Args:
        spec: What this layer runs (`specs.attention_by_layer`): Dense, TopK (tokens by q . key), BlockTopK (pages by
            mean key), Quest (pages by a bound of q . key) or Local (window and sinks).
        q: Queries of the newest token.
        cache: The cache with the newest token appended.
        layer: Index of the layer.
        scale: Logit scale; None is 1/sqrt(H).
        mesh: Axes "data" and "model" over which the cache is sharded (`cache_shardings`), or None.

    Returns:
        Attention output in the dtype of q.

    Raises:
        ValueError: If the pages of a BlockTopK or Quest spec are not the pages of the cache.

    Example:
        >>> from functools import partial
        >>> from kinetics_jax.attention import init_shared_cache
        >>> from kinetics_jax.specs import MODELS
        >>> model, window = MODELS["Qwen3-0.6B"], Local(window_len=8, sink_len=4)
        >>> cache = init_shared_cache(model, num_trials=2, max_prompt_len=16, max_gen_len=4)
        >>> q = jnp.ones((2, model.num_heads, model.head_dim))
        >>> jax.eval_shape(partial(decode_attention, window, layer=3), q, cache).shape
        (2, 16, 128)

    References:
        PAPER.md section 4; DESIGN.md "attention / cache".
    """
    if isinstance(spec, PageSelection) and spec.page_len != cache.page_len:
        raise ValueError(
            f"a selection block is a page of the cache; got {spec} with pages of {cache.page_len} tokens. "
            f"Build the cache with page_len={spec.page_len}"
        )
    if mesh is not None:

        def read(q: Array, cache: PagedCache, layer: Array) -> Array:
            return decode_attention(spec, q, cache, layer, scale=scale)

        split = split_over_mesh(read, mesh, cache, ("heads", "cache", "whole"), "heads")
        return split(q, cache, jnp.asarray(layer))
    key_pages, value_pages, key_means = folded_pools(cache)
    page_table, lengths = layer_page_table(cache, layer), cache.lengths + 1
    window_len, sink_len, mask = None, 0, None
    match spec:
        case BlockTopK():
            return block_topk_decode(
                q,
                key_pages,
                value_pages,
                key_means,
                page_table,
                lengths,
                num_blocks=spec.num_pages,
                num_sink_blocks=spec.num_sink_pages,
                num_local_blocks=spec.num_local_pages,
                scale=scale,
            )
        case Dense():
            pass
        case Local():
            window_len, sink_len = spec.window_len, spec.sink_len
        case TopK():
            mask = _top_tokens(spec, q, key_pages, page_table, lengths)
        case Quest():
            mask = _quest_tokens(spec, q, key_pages, page_table, lengths)
    return paged_decode(
        q,
        key_pages,
        value_pages,
        page_table,
        lengths,
        window_len=window_len,
        sink_len=sink_len,
        token_mask=mask,
        scale=scale,
    )


def _top_tokens(
    spec: TopK,
    q: Float[Array, "B N H"],
    key_pages: Float[Array, "R K P H"],
    page_table: Int[Array, "B M"],
    lengths: Int[Array, " B"],
) -> Bool[Array, "B K S"] | None:
    """Mark the tokens with the largest group-mean score; None where the budget covers the table."""
    table_len = page_table.shape[1] * key_pages.shape[2]
    if spec.budget_len >= table_len:
        return None
    keys = gather_pages(key_pages, page_table).astype(jnp.float32)
    # The mean over the group of q.k is (mean q).k.
    scores = _dot("BKH,BKSH->BKS", jnp.mean(_grouped(q, key_pages), axis=2), keys)
    return _chosen(scores, lengths, spec.budget_len, spec.sink_len, spec.local_len)


def _quest_tokens(
    spec: Quest,
    q: Float[Array, "B N H"],
    key_pages: Float[Array, "R K P H"],
    page_table: Int[Array, "B M"],
    lengths: Int[Array, " B"],
) -> Bool[Array, "B K S"] | None:
    """Mark the tokens of the pages with the largest group-mean bound; None where the budget covers the table."""
    max_pages, page_len = page_table.shape[1], key_pages.shape[2]
    if spec.num_pages >= max_pages:
        return None
    keys = gather_pages(key_pages, page_table)
    keys = keys.reshape(*keys.shape[:2], max_pages, page_len, -1)
    held = jnp.arange(max_pages * page_len, dtype=jnp.int32)[None, :] < lengths[:, None]
    # A slot that holds no token repeats the first of its page, which moves no bound.
    keys = jnp.where(held.reshape(-1, 1, max_pages, page_len, 1), keys, keys[..., :1, :])
    low, high = (bound.astype(jnp.float32) for bound in (keys.min(axis=3), keys.max(axis=3)))
    # max(q low, q high) is q high where q > 0 and q low where q < 0, so the mean over the group folds into the query.
    queries = _grouped(q, key_pages)
    rising, falling = (jnp.mean(part, axis=2) for part in (jnp.maximum(queries, 0), jnp.minimum(queries, 0)))
    scores = _dot("BKH,BKMH->BKM", rising, high) + _dot("BKH,BKMH->BKM", falling, low)
    num_held = (lengths + page_len - 1) // page_len
    chosen = _chosen(scores, num_held, spec.num_pages, spec.num_sink_pages, spec.num_local_pages)
    return jnp.repeat(chosen, page_len, axis=-1)


def _chosen(
    scores: Float[Array, "B K M"], num_held: Int[Array, " B"], num_read: int, num_first: int, num_newest: int
) -> Bool[Array, "B K M"]:
    """Mark the first, the newest and then the best of the pages, or of tokens as pages of one."""
    chosen = choose_pages(scores, num_held, num_blocks=num_read, num_sink_blocks=num_first, num_local_blocks=num_newest)
    return jnp.put_along_axis(jnp.zeros(scores.shape, bool), chosen, True, axis=-1, inplace=False, mode="drop")


def _grouped(q: Float[Array, "B N H"], key_pages: Float[Array, "R K P H"]) -> Float[Array, "B K G H"]:
    """Return the queries of each KV head in float32."""
    return q.astype(jnp.float32).reshape(q.shape[0], key_pages.shape[1], -1, q.shape[2])


def _dot(subscripts: str, query: Array, keys: Array) -> Array:
    return jnp.einsum(subscripts, query, keys, precision=jax.lax.Precision.HIGHEST)
