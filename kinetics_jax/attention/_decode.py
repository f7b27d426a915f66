"""One decode step of attention: which entries each spec reads. Called by `models`, once a layer and step.

A new method is one branch of `decode_attention` and one function here.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from kinetics_jax.specs import AttentionSpec, BlockTopK, Dense, Local, TopK
from pallas_kernels import block_topk_decode, gather_pages, paged_decode

from ._cache import PagedCache, folded_pools, layer_page_table


def decode_attention(
    spec: AttentionSpec,
    q: Float[Array, "B N H"],
    cache: PagedCache,
    layer: int | Int[Array, ""],
    *,
    scale: float | None = None,
) -> Float[Array, "B N H"]:
    """Attend from the token just appended to the entries that `spec` reads, itself included.

    Called after `append(cache, layer, ...)` and before `advance`, so that it sees lengths + 1 entries. Selection is
    per sequence, KV head and step, by scores averaged over the query heads of a group; ties go to the lowest token or
    page. A budget that covers the whole table gives the dense result bit for bit.

    Args:
        spec: Dense, TopK (tokens, an oracle: it looks at every key), BlockTopK (pages by mean key) or Local (window).
        q: Queries of the newest token.
        cache: The cache with the newest token appended.
        layer: Index of the layer.
        scale: Logit scale; None is 1/sqrt(H).

    Returns:
        Attention output in the dtype of q.

    Raises:
        ValueError: If the pages of a BlockTopK spec are not the pages of the cache.

    References:
        PAPER.md section 4; DESIGN.md "attention / cache".
    """
    key_pages, value_pages, key_means = folded_pools(cache)
    page_table, lengths = layer_page_table(cache, layer), cache.lengths + 1
    match spec:
        case Dense():
            return paged_decode(q, key_pages, value_pages, page_table, lengths, scale=scale)
        case Local(window_len=window_len):
            return paged_decode(q, key_pages, value_pages, page_table, lengths, window_len=window_len, scale=scale)
        case TopK(budget_len=budget_len):
            mask = _top_tokens(q, key_pages, page_table, lengths, budget_len)
            return paged_decode(q, key_pages, value_pages, page_table, lengths, token_mask=mask, scale=scale)
        case BlockTopK():
            if spec.page_len != cache.page_len:
                raise ValueError(
                    f"a selection block is a page of the cache; got {spec} with pages of {cache.page_len} tokens. "
                    f"Build the cache with page_len={spec.page_len}"
                )
            return block_topk_decode(
                q,
                key_pages,
                value_pages,
                key_means,
                page_table,
                lengths,
                num_blocks=spec.num_pages,
                num_sink_blocks=spec.num_sink_pages,
                scale=scale,
            )


def _top_tokens(
    q: Float[Array, "B N H"],
    key_pages: Float[Array, "R K P H"],
    page_table: Int[Array, "B M"],
    lengths: Int[Array, " B"],
    budget_len: int,
) -> Bool[Array, "B K S"] | None:
    """Mark the `budget_len` tokens with the largest group-mean score; None where the budget covers the table."""
    batch_size, _, head_dim = q.shape
    num_kv_heads, page_len = key_pages.shape[1:3]
    table_len = page_table.shape[1] * page_len
    if budget_len >= table_len:
        return None
    group_q = jnp.mean(q.astype(jnp.float32).reshape(batch_size, num_kv_heads, -1, head_dim), axis=2)
    keys = gather_pages(key_pages, page_table).astype(jnp.float32)
    scores = jnp.einsum("BKH,BKSH->BKS", group_q, keys, precision=jax.lax.Precision.HIGHEST)
    scores = jnp.where(scores == 0, 0.0, scores)  # top_k orders -0.0 below 0.0; for us they tie
    position = jnp.arange(table_len, dtype=jnp.int32)[None, None, :]
    scores = jnp.where(position < lengths[:, None, None], scores, -jnp.inf)
    best, index = jax.lax.top_k(scores, budget_len)
    # Equal scores go to the lowest positions, so the tokens at the threshold are taken up to the last one listed.
    # (Reductions, not slices of the last entry: XLA turns a sliced top_k into a full sort.)
    threshold = jnp.min(best, axis=-1, keepdims=True)
    last_tie = jnp.max(jnp.where(best == threshold, index, -1), axis=-1, keepdims=True)
    return (scores > threshold) | ((scores == threshold) & (position <= last_tie))
