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
    lengths + num_new tokens. Tokens of pages that a sequence does not have are not written.

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
    num_rows, page_len = key_pages.shape[0], cache.page_len
    place = jnp.arange(keys.shape[1], dtype=jnp.int32)[None, :]
    position = cache.lengths[:, None] + place
    page_ids = jnp.where(place < num_new[:, None], _page_of(page_table, position // page_len, num_rows), num_rows)
    slots = position % page_len

    def write_into(pool: Array, entries: Array) -> Array:
        return pool.at[page_ids, :, slots].set(entries.astype(pool.dtype), mode="drop")

    key_pages, value_pages = write_into(key_pages, keys), write_into(value_pages, values)
    # A chunk of T tokens reaches into this many pages wherever it begins.
    touched = jnp.arange((keys.shape[1] + page_len - 2) // page_len + 1, dtype=jnp.int32)[None, :]
    touched = (cache.lengths // page_len)[:, None] + touched
    end = (cache.lengths + num_new)[:, None]
    touched_ids = jnp.where(touched * page_len < end, _page_of(page_table, touched, num_rows), num_rows)
    pages = key_pages.at[touched_ids].get(mode="fill", fill_value=0)
    slot = touched[:, :, None, None] * page_len + jnp.arange(page_len, dtype=jnp.int32)[None, None, None, :]
    means = page_means(pages, slot < end[:, :, None, None])
    key_means = key_means.at[touched_ids].set(means.astype(key_means.dtype), mode="drop")
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
    *,
    scale: float | None = None,
    mesh: Mesh | None = None,
) -> Float[Array, "B T N H"]:
    """Attend densely from T new tokens a sequence: token t reads the lengths + t + 1 entries up to itself.

    Args:
        q: Queries of the new tokens; those of padding give numbers that mean nothing.
        cache: The cache with the new tokens written (`append_tokens`) and `lengths` not yet advanced.
        layer: Index of the layer.
        scale: Logit scale; None is 1/sqrt(H).
        mesh: Axes "data" and "model" over which the cache is sharded, or None.

    Returns:
        Attention output in the dtype of q.
    """
    if mesh is not None:

        def read(q: Array, cache: PagedCache, layer: Array) -> Array:
            return extend_attention(q, cache, layer, scale=scale)

        split = split_over_mesh(read, mesh, cache, ("heads", "cache", "whole"), "heads")
        return split(q, cache, jnp.asarray(layer, jnp.int32))
    key_pages, value_pages, _ = folded_pools(cache)
    page_table = layer_page_table(cache, layer)
    keys, values = gather_pages(key_pages, page_table), gather_pages(value_pages, page_table)
    (batch_size, num_new, num_heads, head_dim), num_kv_heads = q.shape, keys.shape[1]
    grouped = q.reshape(batch_size, num_new, num_kv_heads, -1, head_dim).astype(keys.dtype)
    logits = jnp.einsum("BTKGH,BKSH->BKGTS", grouped, keys, preferred_element_type=jnp.float32)
    logits *= jnp.float32(head_dim**-0.5 if scale is None else scale)
    entry = jnp.arange(keys.shape[2], dtype=jnp.int32)[None, None, :]
    last = cache.lengths[:, None, None] + jnp.arange(num_new, dtype=jnp.int32)[None, :, None]
    readable = entry <= last
    weights = jax.nn.softmax(jnp.where(readable[:, None, None], logits, -jnp.inf), axis=-1)
    # 0 * NaN = NaN: slots that nobody wrote must be blanked in the values too.
    values = jnp.where(readable[:, -1, None, :, None], values, jnp.zeros((), values.dtype))
    out = jnp.einsum("BKGTS,BKSH->BTKGH", weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
    return out.reshape(batch_size, num_new, num_heads, head_dim).astype(q.dtype)


def _page_of(page_table: Int[Array, "B M"], page: Int[Array, "B T"], absent: int) -> Int[Array, "B T"]:
    """Return the pool's id of logical pages; `absent`, which no pool has, where the sequence has no such page."""
    ids = jnp.take_along_axis(page_table, jnp.minimum(page, page_table.shape[1] - 1), axis=1)
    return jnp.where((page < page_table.shape[1]) & (ids >= 0), ids, absent)
