"""Many new tokens a sequence at once: chunks of a prompt, or drafts to verify. One token a step is in `_decode`.

The tokens may begin anywhere in a page. Attention is dense and causal over the pages, in XLA on every device: the work
of a chunk is in its matrix products, and the gathered copy of the pages is read once by all its tokens.

    pages of a sequence  | x x x x | x x x x | x x n n | n n n . |      x: held before (lengths = 10), n: num_new = 5
    means renewed                              ^^^^^^^   ^^^^^^^
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from pallas_kernels import gather_pages, page_means

from ._cache import PagedCache, folded_pools, layer_page_table
from ._split import split_over_mesh


def append_tokens(
    cache: PagedCache,
    layer: int | Int[Array, ""],
    keys: Float[Array, "B T K H"],
    values: Float[Array, "B T K H"],
    num_new: Int[Array, " B"],
    *,
    mesh: Mesh | None = None,
) -> PagedCache:
    """Write keys and values of one layer at positions lengths .. lengths + num_new - 1 and renew the means they touch.

    What lay at those positions before, rejected drafts say, is overwritten, and the means then count exactly
    lengths + num_new tokens. Tokens of pages that a sequence does not have are not written. No two sequences may share
    a page that they write.

    Args:
        cache: The cache.
        layer: Index of the layer.
        keys: The new keys, padded at the end to T.
        values: The new values.
        num_new: New tokens of each sequence [tokens], at most T.
        mesh: Axes "data" and "model" over which the cache is sharded, or None.

    Returns:
        The cache with the tokens written; `lengths` unchanged.
    """
    if mesh is not None:
        write = split_over_mesh(append_tokens, mesh, cache, ("cache", "whole", "heads", "heads", "rows"), "cache")
        return write(cache, jnp.asarray(layer, jnp.int32), keys, values, num_new)
    key_pages, value_pages, key_means = folded_pools(cache)
    page_table = layer_page_table(cache, layer)
    page_len, end = cache.page_len, (cache.lengths + num_new)[:, None]
    # A chunk of T tokens reaches into this many pages wherever it begins.
    touched = jnp.arange((keys.shape[1] + page_len - 2) // page_len + 1, dtype=jnp.int32)[None, :]
    touched = (cache.lengths // page_len)[:, None] + touched
    # Dropped writes get distinct ids past the pool, so that the scatter may assume unique indices.
    absent = len(key_pages) + jnp.arange(touched.size, dtype=jnp.int32).reshape(touched.shape)
    page_ids = jnp.where(touched * page_len < end, _page_of(page_table, touched, absent), absent)
    position = touched[:, :, None] * page_len + jnp.arange(page_len, dtype=jnp.int32)[None, None, :]
    place = position - cache.lengths[:, None, None]
    is_new = ((place >= 0) & (position < end[:, :, None]))[:, :, None, :, None]
    places = jnp.clip(place, 0, keys.shape[1] - 1).reshape(len(keys), -1)[:, :, None, None]

    # Whole pages are read before they are written, as in `append_kv`: a read of the means' keys after the write would
    # race the next layer's write, and XLA would copy the pool to be safe. So it would if one kernel read and wrote.
    def renewed(pool: Array, entries: Array) -> Array:
        fitting = jnp.take_along_axis(entries.astype(pool.dtype), places, axis=1)
        fitting = fitting.reshape(*position.shape, *entries.shape[2:]).swapaxes(2, 3)
        return jax.lax.optimization_barrier(jnp.where(is_new, fitting, pool.at[page_ids].get(mode="clip")))

    def put(pool: Array, pages: Array) -> Array:
        return pool.at[page_ids].set(pages.astype(pool.dtype), mode="drop", unique_indices=True)

    new_keys = renewed(key_pages, keys)
    means = page_means(new_keys, (position < end[:, :, None])[:, :, None])
    key_pages, value_pages = put(key_pages, new_keys), put(value_pages, renewed(value_pages, values))
    key_means = put(key_means, means)
    return dataclasses.replace(
        cache,
        key_pages=key_pages.reshape(cache.key_pages.shape),
        value_pages=value_pages.reshape(cache.value_pages.shape),
        key_means=key_means.reshape(cache.key_means.shape),
    )


def extend_attention(
    q: Float[Array, "B T N H"],
    cache: PagedCache,
    layer: int | Int[Array, ""],
    num_new: Int[Array, " B"],
    *,
    scale: float | None = None,
    mesh: Mesh | None = None,
) -> Float[Array, "B T N H"]:
    """Attend densely from T new tokens a sequence: token t reads the lengths + t + 1 entries up to itself.

    Args:
        q: Queries of the new tokens; those of padding give numbers that mean nothing.
        cache: The cache with the new tokens written (`append_tokens`) and `lengths` not yet advanced.
        layer: Index of the layer.
        num_new: New tokens of each sequence [tokens]: nothing past them is read.
        scale: Logit scale; None is 1/sqrt(H).
        mesh: Axes "data" and "model" over which the cache is sharded, or None.

    Returns:
        Attention output in the dtype of q.
    """
    if mesh is not None:

        def read(q: Array, cache: PagedCache, layer: Array, num_new: Array) -> Array:
            return extend_attention(q, cache, layer, num_new, scale=scale)

        split = split_over_mesh(read, mesh, cache, ("heads", "cache", "whole", "rows"), "heads")
        return split(q, cache, jnp.asarray(layer, jnp.int32), num_new)
    key_pages, value_pages, _ = folded_pools(cache)
    page_table = layer_page_table(cache, layer)
    keys, values = gather_pages(key_pages, page_table), gather_pages(value_pages, page_table)
    (batch_size, chunk_len, num_heads, head_dim), num_kv_heads = q.shape, keys.shape[1]
    grouped = q.reshape(batch_size, chunk_len, num_kv_heads, -1, head_dim).astype(keys.dtype)
    logits = jnp.einsum("BTKGH,BKSH->BKGTS", grouped, keys, preferred_element_type=jnp.float32)
    logits *= jnp.float32(head_dim**-0.5 if scale is None else scale)
    entry = jnp.arange(keys.shape[2], dtype=jnp.int32)[None, None, :]
    last = cache.lengths[:, None, None] + jnp.arange(chunk_len, dtype=jnp.int32)[None, :, None]
    held = entry < (cache.lengths + num_new)[:, None, None]
    # Not -inf: a sequence that holds nothing would give NaN, and so would every layer after.
    logits = jnp.where((held & (entry <= last))[:, None, None], logits, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits, axis=-1)
    # 0 * NaN = NaN: slots that nobody wrote must be blanked in the values too.
    values = jnp.where(held[:, 0, None, :, None], values, jnp.zeros((), values.dtype))
    out = jnp.einsum("BKGTS,BKSH->BTKGH", weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
    return out.reshape(batch_size, chunk_len, num_heads, head_dim).astype(q.dtype)


def _page_of(page_table: Int[Array, "B M"], page: Int[Array, "B J"], absent: Int[Array, "B J"]) -> Int[Array, "B J"]:
    """Return the pool's id of logical pages; `absent` where the sequence has no such page."""
    ids = jnp.take_along_axis(page_table, jnp.minimum(page, page_table.shape[1] - 1), axis=1)
    return jnp.where((page < page_table.shape[1]) & (ids >= 0), ids, absent)
