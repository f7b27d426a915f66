"""What is written to a paged cache: a whole prompt for all its trials, one token a sequence and step, copies of pages.

Called by `models` (once a layer and step) and `sampling` (write_prompt). Many tokens at once are in `_extend`.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from pallas_kernels import page_means, rotate_and_append_kv

from ._cache import PagedCache, folded_pools, layer_page_table
from ._rotation import Rotation
from ._split import Cut, split_over_mesh


def write_prompt(
    cache: PagedCache,
    keys: Float[Array, "L T K H"],
    values: Float[Array, "L T K H"],
    prompt_len: int | Int[Array, ""],
) -> PagedCache:
    """Fill the cache of `init_shared_cache` with one prompt: full pages once, the partial tail page for each trial.

    Args:
        cache: The cache to fill; whatever it held is dropped.
        keys: Keys of the (padded) prompt, T <= max_prompt_len; entries from `prompt_len` on are ignored.
        values: Values, laid out as the keys.
        prompt_len: True length of the prompt [tokens], at most T; may be traced.

    Returns:
        The cache with lengths = prompt_len.

    Raises:
        ValueError: If the padded prompt does not fit the shared pages.

    Example:
        >>> from kinetics_jax.attention import init_shared_cache
        >>> from kinetics_jax.specs import MODELS
        >>> model = MODELS["Qwen3-0.6B"]
        >>> cache = init_shared_cache(model, num_trials=2, max_prompt_len=10, max_gen_len=6, page_len=4)
        >>> keys = jnp.ones((28, 10, 8, 128))
        >>> write_prompt(cache, keys, keys, 10).page_table.tolist()
        [[0, 1, 2, 3], [0, 1, 5, 6]]
    """
    batch_size, max_pages = cache.page_table.shape
    page_len, num_shared = cache.page_len, cache.num_shared_pages
    num_own = (cache.key_pages.shape[1] - num_shared) // batch_size
    if keys.shape[1] >= (num_shared + 1) * page_len:
        raise ValueError(
            f"the prompt must fit the shared pages: fewer than {(num_shared + 1) * page_len} tokens; "
            f"got {keys.shape[1]}. Build the cache with max_prompt_len={keys.shape[1]}"
        )
    prompt_len = jnp.asarray(prompt_len, jnp.int32)
    num_full = prompt_len // page_len

    def fill(pool: Array, pages: Array) -> Array:
        num_written = min(num_shared, pages.shape[1])
        pool = pool.at[:, :num_written].set(pages[:, :num_written])
        tail = jax.lax.dynamic_slice_in_dim(pages, num_full, 1, axis=1)
        return pool.at[:, num_shared::num_own].set(tail)

    key_pages = _cut_into_pages(keys.astype(cache.key_pages.dtype), page_len)
    value_pages = _cut_into_pages(values.astype(cache.value_pages.dtype), page_len)
    position = jnp.arange(key_pages.shape[1] * page_len, dtype=jnp.int32).reshape(1, -1, 1, page_len)
    means = page_means(key_pages, position < prompt_len).astype(cache.key_means.dtype)
    own = jnp.arange(max_pages, dtype=jnp.int32)[None, :] - num_full
    own_ids = num_shared + jnp.arange(batch_size, dtype=jnp.int32)[:, None] * num_own + own
    page_table = jnp.where(own < 0, own + num_full, jnp.where(own < num_own, own_ids, -1))
    return dataclasses.replace(
        cache,
        key_pages=fill(cache.key_pages, key_pages),
        value_pages=fill(cache.value_pages, value_pages),
        key_means=fill(cache.key_means, means),
        page_table=page_table,
        lengths=jnp.full(batch_size, prompt_len, jnp.int32),
    )


def rotate_and_append(
    cache: PagedCache,
    layer: int | Int[Array, ""],
    queries: Float[Array, "B N H"],
    keys: Float[Array, "B K H"],
    values: Float[Array, "B K H"],
    rotation: Rotation,
    *,
    mesh: Mesh | None = None,
) -> tuple[Float[Array, "B N H"], PagedCache]:
    """Norm and rotate the newest token's queries and keys of one layer, then write its keys and values.

    They go to position `lengths`, and the mean of their page is renewed: on a GPU all in one kernel. A step appends
    once in every layer, then calls `advance`. A sequence without a page left is not written.

    Args:
        cache: The cache.
        layer: Index of the layer.
        queries: The queries as projected.
        keys: The new keys as projected.
        values: The new values.
        rotation: How they are normed and turned; one token a sequence.
        mesh: Axes "data" and "model" over which the cache is sharded (`cache_shardings`), or None.

    Returns:
        The queries to attend with, and the cache with the token written; `lengths` unchanged.

    Raises:
        ValueError: If the rotation is not of one token a sequence.

    Example:
        >>> from kinetics_jax.attention import init_shared_cache
        >>> from kinetics_jax.specs import MODELS
        >>> cache = init_shared_cache(MODELS["Kinetics-Mini-0.1M"], num_trials=1, max_prompt_len=1, max_gen_len=1)
        >>> num_layers, _, num_kv_heads, _, head_dim = cache.key_pages.shape
        >>> prompt = jnp.zeros((num_layers, 1, num_kv_heads, head_dim))
        >>> cache = write_prompt(cache, prompt, prompt, 1)
        >>> heads, half = jnp.ones((1, num_kv_heads, head_dim)), jnp.zeros((1, 1, head_dim // 2))
        >>> about = Rotation(cos=half - 1, sin=half)  # by 180 degrees
        >>> queries, cache = rotate_and_append(cache, 0, heads, heads, heads, about)
        >>> bool((queries == -heads).all()), float(cache.key_pages.sum()) == -heads.size
        (True, True)
    """
    if rotation.cos.shape[:2] != (queries.shape[0], 1):
        raise ValueError(
            f"a step appends one token to each of {queries.shape[0]} sequences; got a rotation of "
            f"{rotation.cos.shape[1]} tokens of {rotation.cos.shape[0]}. Use append_tokens for more"
        )

    def run(
        cache: PagedCache,
        layer: int | Array,
        queries: Array,
        keys: Array,
        values: Array,
        angles: tuple[Array, Array],
        norms: tuple[Array, Array] | None,
    ) -> tuple[Array, PagedCache]:
        table, lengths = layer_page_table(cache, layer), cache.lengths + 1
        queries, *pools = rotate_and_append_kv(
            *folded_pools(cache), table, lengths, queries, keys, values, *angles, norms=norms, epsilon=rotation.epsilon
        )
        return queries, _with_pools(cache, *pools)

    if mesh is not None:
        inputs: tuple[Cut, ...] = ("cache", "whole", "heads", "heads", "heads", "rows", "whole")
        run, layer = split_over_mesh(run, mesh, cache, inputs, ("heads", "cache")), jnp.asarray(layer, jnp.int32)
    return run(cache, layer, queries, keys, values, (rotation.cos[:, 0], rotation.sin[:, 0]), rotation.norms)


def copy_pages(
    cache: PagedCache, source: Int[Array, " B"], target: Int[Array, " B"], *, mesh: Mesh | None = None
) -> PagedCache:
    """Copy one page a sequence, keys, values and means of all layers: a private copy of a page that others share.

    Args:
        cache: The cache.
        source: Page to copy, by its id in the pool (in the sequence's group of it).
        target: Page to overwrite; a sequence with nothing to copy names `SCRATCH_PAGE` for both.
        mesh: Axes "data" and "model" over which the cache is sharded, or None.

    Returns:
        The cache with the pages copied; no table changes.
    """
    if mesh is not None:
        split = split_over_mesh(copy_pages, mesh, cache, ("cache", "rows", "rows"), "cache")
        return split(cache, source, target)

    def copied(pool: Array) -> Array:
        # A kernel that reads and writes the pool would need a copy of it to read from.
        pages = jax.lax.optimization_barrier(pool.at[:, source].get(mode="clip"))
        return pool.at[:, target].set(pages, mode="drop")

    return dataclasses.replace(
        cache,
        key_pages=copied(cache.key_pages),
        value_pages=copied(cache.value_pages),
        key_means=copied(cache.key_means),
    )


def _with_pools(cache: PagedCache, key_pages: Array, value_pages: Array, key_means: Array) -> PagedCache:
    """Return the cache with other pools, given with the layers folded into the pages."""
    return dataclasses.replace(
        cache,
        key_pages=key_pages.reshape(cache.key_pages.shape),
        value_pages=value_pages.reshape(cache.value_pages.shape),
        key_means=key_means.reshape(cache.key_means.shape),
    )


def _cut_into_pages(entries: Float[Array, "L T K H"], page_len: int) -> Float[Array, "L M K P H"]:
    """Cut [L, T, K, H] into pages; at least one page is partly or wholly padding, for the tail slice to land on."""
    num_layers, prompt_len, num_kv_heads, head_dim = entries.shape
    num_pages = prompt_len // page_len + 1
    padding = num_pages * page_len - prompt_len
    padded = jnp.pad(entries, ((0, 0), (0, padding), (0, 0), (0, 0)))
    return padded.reshape(num_layers, num_pages, page_len, num_kv_heads, head_dim).swapaxes(2, 3)
