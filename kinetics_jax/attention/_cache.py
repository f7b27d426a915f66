"""The paged KV cache: where the keys and values of many sequences live. Selection reads pages, so page = block.

Called by `models` (append, once a layer and step) and `sampling` (init, write_prompt, advance). Every function is
pure; inside `jit` with the cache as loop carry the pools are updated in place. Left out: a scheduler that reserves
pages as they fill, reference counts, eviction.

One prompt shared by B trials (T=10 prompt tokens, P=4; page 2 is the partial tail, so every trial owns a copy of it):

    pool        | 0 | 1 | 2  3  4 | 5  6  7 |          pages 0, 1: shared prompt; 2..4: trial 0; 5..7: trial 1
    trial 0:      0   1   2  3  4                      its row of the page table
    trial 1:      0   1             5  6  7
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, DTypeLike, Float, Int

from kinetics_jax.specs import DEFAULT_PAGE_LEN, ModelSpec
from pallas_kernels import append_kv, page_means

from ._mesh import kv_head_axis, split_by_head

_ARRAY_FIELDS = ("key_pages", "value_pages", "key_means", "page_table", "lengths")


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True, kw_only=True)
class PagedCache:
    """Hold keys and values of B sequences in pages of P tokens; a JAX pytree.

    Attributes:
        key_pages: Keys of every layer, page, KV head and slot.
        value_pages: Values, laid out as the keys.
        key_means: Mean key over the held slots of each page.
        page_table: Page ids of each sequence in order; -1 where it has no page.
        lengths: Tokens held by each sequence [tokens], the one being decoded not yet counted.
        num_shared_pages: First pages of the pool, kept for the prompt that all sequences share (static).
    """

    key_pages: Float[Array, "L R K P H"]
    value_pages: Float[Array, "L R K P H"]
    key_means: Float[Array, "L R K H"]
    page_table: Int[Array, "B M"]
    lengths: Int[Array, " B"]
    num_shared_pages: int = 0

    @property
    def page_len(self) -> int:
        """Tokens in a page, P."""
        return self.key_pages.shape[-2]

    # Written out rather than `register_dataclass`: unflattening must not run the constructor, whose shape checks
    # (in tests) would refuse a vmapped cache or the ShapeDtypeStructs of `eval_shape`.
    def tree_flatten_with_keys(self) -> tuple[tuple[tuple[Any, Any], ...], int]:
        """Return the arrays with their names, and the static page count."""
        children = tuple((jax.tree_util.GetAttrKey(name), getattr(self, name)) for name in _ARRAY_FIELDS)
        return children, self.num_shared_pages

    @classmethod
    def tree_unflatten(cls, num_shared_pages: int, children: tuple[Any, ...]) -> "PagedCache":
        """Rebuild the cache from its arrays."""
        cache = object.__new__(cls)
        for name, child in zip(_ARRAY_FIELDS, children, strict=True):
            object.__setattr__(cache, name, child)
        object.__setattr__(cache, "num_shared_pages", num_shared_pages)
        return cache


def init_shared_cache(
    model: ModelSpec,
    *,
    num_trials: int,
    max_prompt_len: int,
    max_gen_len: int,
    page_len: int = DEFAULT_PAGE_LEN,
    dtype: DTypeLike = jnp.float32,
) -> PagedCache:
    """Make an empty cache for `num_trials` sequences that continue one prompt.

    Pages: floor(max_prompt_len / P) shared, and ceil((max_gen_len + P - 1) / P) for each trial, so that any prompt up
    to `max_prompt_len` fits, whatever part of its last page it fills.

    Args:
        model: Geometry: layers, KV heads and head width.
        num_trials: Sequences, B.
        max_prompt_len: Longest prompt [tokens].
        max_gen_len: Most tokens appended to a sequence [tokens].
        page_len: Tokens in a page, P.
        dtype: Of keys, values and key means.

    Returns:
        A cache of length 0; fill it with `write_prompt` before the first `append`.

    Raises:
        ValueError: If a size is not positive.

    Example:
        >>> from kinetics_jax.specs import MODELS
        >>> model = MODELS["Qwen3-0.6B"]
        >>> cache = init_shared_cache(model, num_trials=2, max_prompt_len=10, max_gen_len=6, page_len=4)
        >>> cache.key_pages.shape, cache.page_table.shape
        ((28, 8, 8, 4, 128), (2, 4))

    References:
        DESIGN.md "attention / cache".
    """
    for name, size in (
        ("num_trials", num_trials),
        ("max_prompt_len", max_prompt_len),
        ("max_gen_len", max_gen_len),
        ("page_len", page_len),
    ):
        if size < 1:
            raise ValueError(f"{name} must be at least 1; got {size}")
    num_shared_pages = max_prompt_len // page_len
    num_pages = num_shared_pages + num_trials * _ceil_div(max_gen_len + page_len - 1, page_len)
    max_pages = _ceil_div(max_prompt_len + max_gen_len, page_len)
    pool = (model.num_layers, num_pages, model.num_kv_heads, page_len, model.head_dim)
    return PagedCache(
        key_pages=jnp.zeros(pool, dtype),
        value_pages=jnp.zeros(pool, dtype),
        key_means=jnp.zeros((*pool[:3], model.head_dim), dtype),
        page_table=jnp.full((num_trials, max_pages), -1, jnp.int32),
        lengths=jnp.zeros(num_trials, jnp.int32),
        num_shared_pages=num_shared_pages,
    )


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


def append(
    cache: PagedCache,
    layer: int | Int[Array, ""],
    keys: Float[Array, "B K H"],
    values: Float[Array, "B K H"],
    *,
    mesh: Mesh | None = None,
) -> PagedCache:
    """Write the newest token's keys and values of one layer at position `lengths` and renew its page's mean.

    A step appends once in every layer, then calls `advance`. A sequence without a page left is not written.

    Args:
        cache: The cache.
        layer: Index of the layer.
        keys: The new keys.
        values: The new values.
        mesh: Axes "data" and "model" over which the cache is sharded (`cache_shardings`), or None.

    Returns:
        The cache with the token written; `lengths` unchanged.
    """
    if mesh is not None:
        heads, by_head = head_specs(cache, mesh)
        write = split_by_head(append, mesh, (by_head, PartitionSpec(), heads, heads), by_head)
        return write(cache, jnp.asarray(layer, jnp.int32), keys, values)
    key_pages, value_pages, key_means = append_kv(
        _fold_layers(cache.key_pages),
        _fold_layers(cache.value_pages),
        _fold_layers(cache.key_means),
        layer_page_table(cache, layer),
        cache.lengths + 1,
        keys,
        values,
    )
    return dataclasses.replace(
        cache,
        key_pages=key_pages.reshape(cache.key_pages.shape),
        value_pages=value_pages.reshape(cache.value_pages.shape),
        key_means=key_means.reshape(cache.key_means.shape),
    )


def advance(cache: PagedCache, active: Bool[Array, " B"] | None = None) -> PagedCache:
    """Count the token that every layer has appended: lengths + 1.

    Args:
        cache: The cache after `append` in every layer.
        active: Sequences that advance; None is all. The others overwrite the same position at their next append.

    Returns:
        The cache with the new lengths.
    """
    step = 1 if active is None else active.astype(cache.lengths.dtype)
    return dataclasses.replace(cache, lengths=cache.lengths + step)


def head_specs(cache: PagedCache, mesh: Mesh) -> tuple[PartitionSpec, PagedCache]:
    """Return how a mesh cuts heads [B, heads, H] and a cache: its pools [L, R, K, ...] by KV head, the rest not."""
    axis = kv_head_axis(mesh, cache.key_pages.shape[2])
    pool, rest = PartitionSpec(None, None, axis), PartitionSpec()
    specs = cache_of_leaves(cache, key_pages=pool, value_pages=pool, key_means=pool, page_table=rest, lengths=rest)
    return PartitionSpec(None, axis), specs


def cache_of_leaves(cache: PagedCache, **leaves: object) -> PagedCache:
    """Return a cache of the same structure with other leaves by name: PartitionSpecs, shardings."""
    return jax.tree.unflatten(jax.tree.structure(cache), [leaves[name] for name in _ARRAY_FIELDS])


def folded_pools(cache: PagedCache) -> tuple[Array, Array, Array]:
    """Return keys, values [L * R, K, P, H] and means [L * R, K, H]: views, so that no layer is ever copied out."""
    return _fold_layers(cache.key_pages), _fold_layers(cache.value_pages), _fold_layers(cache.key_means)


def layer_page_table(cache: PagedCache, layer: int | Int[Array, ""]) -> Int[Array, "B M"]:
    """Return the page table of one layer into the folded pools; -1 stays -1."""
    num_pages = cache.key_pages.shape[1]
    return jnp.where(cache.page_table >= 0, cache.page_table + layer * num_pages, -1)


def _fold_layers(pool: Array) -> Array:
    return pool.reshape(-1, *pool.shape[2:])


def _cut_into_pages(entries: Float[Array, "L T K H"], page_len: int) -> Float[Array, "L M K P H"]:
    """Cut [L, T, K, H] into pages; at least one page is partly or wholly padding, for the tail slice to land on."""
    num_layers, prompt_len, num_kv_heads, head_dim = entries.shape
    num_pages = prompt_len // page_len + 1
    padding = num_pages * page_len - prompt_len
    padded = jnp.pad(entries, ((0, 0), (0, padding), (0, 0), (0, 0)))
    return padded.reshape(num_layers, num_pages, page_len, num_kv_heads, head_dim).swapaxes(2, 3)


def _ceil_div(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)
