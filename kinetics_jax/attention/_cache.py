"""The paged KV cache: where the keys and values of many sequences live. Selection reads pages, so page = block.

Every function is pure; inside `jit` with the cache as loop carry the pools are updated in place. Writing is in `_write`
and `_extend`; who owns which page (reference counts, eviction) is in `_pool`.

One prompt shared by B trials (T=10 prompt tokens, P=4; page 2 is the partial tail, so every trial owns a copy of it):

    pool        | 0 | 1 | 2  3  4 | 5  6  7 |          pages 0, 1: shared prompt; 2..4: trial 0; 5..7: trial 1
    trial 0:      0   1   2  3  4                      its row of the page table
    trial 1:      0   1             5  6  7
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Int

from kinetics_jax.specs import DEFAULT_PAGE_LEN, ModelSpec

_ARRAY_FIELDS = ("key_pages", "value_pages", "key_means", "page_table", "lengths")
_STATIC_FIELDS = ("num_shared_pages", "num_page_groups")


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
        num_page_groups: Parts that pool and sequences fall into, one a place on the data axis of a mesh (static). Page
            ids of a sequence count within its part. 1 on one device, and where every place holds all pages.
    """

    key_pages: Float[Array, "L R K P H"]
    value_pages: Float[Array, "L R K P H"]
    key_means: Float[Array, "L R K H"]
    page_table: Int[Array, "B M"]
    lengths: Int[Array, " B"]
    num_shared_pages: int = 0
    num_page_groups: int = 1

    @property
    def page_len(self) -> int:
        """Tokens in a page, P."""
        return self.key_pages.shape[-2]

    # Written out rather than `register_dataclass`: unflattening must not run the constructor, whose shape checks
    # (in tests) would refuse a vmapped cache or the ShapeDtypeStructs of `eval_shape`.
    def tree_flatten_with_keys(self) -> tuple[tuple[tuple[Any, Any], ...], tuple[int, ...]]:
        """Return the arrays with their names, and the static counts."""
        children = tuple((jax.tree_util.GetAttrKey(name), getattr(self, name)) for name in _ARRAY_FIELDS)
        return children, tuple(getattr(self, name) for name in _STATIC_FIELDS)

    @classmethod
    def tree_unflatten(cls, counts: tuple[int, ...], children: tuple[Any, ...]) -> "PagedCache":
        """Rebuild the cache from its arrays."""
        cache = object.__new__(cls)
        for name, value in zip((*_ARRAY_FIELDS, *_STATIC_FIELDS), (*children, *counts), strict=True):
            object.__setattr__(cache, name, value)
        return cache


def init_cache(
    model: ModelSpec,
    *,
    num_sequences: int,
    num_pages: int,
    max_len: int,
    page_len: int = DEFAULT_PAGE_LEN,
    dtype: DTypeLike = jnp.float32,
    num_page_groups: int = 1,
) -> PagedCache:
    """Make an empty cache whose page table is filled by its owner, page by page as sequences grow.

    Args:
        model: Geometry: layers, KV heads and head width.
        num_sequences: Sequences, B.
        num_pages: Pages of the pool, R.
        max_len: Longest sequence [tokens]; M = ceil(max_len / P).
        page_len: Tokens in a page, P.
        dtype: Of keys, values and key means.
        num_page_groups: Parts of pool and sequences, one a place on the data axis of a mesh.

    Returns:
        A cache of length 0 whose table names no page.

    Raises:
        ValueError: If a size is not positive, or the groups divide the pages or the sequences with a rest.

    Example:
        >>> from kinetics_jax.specs import MODELS
        >>> cache = init_cache(MODELS["Kinetics-Mini-0.1M"], num_sequences=3, num_pages=8, max_len=30, page_len=8)
        >>> cache.page_table.shape, cache.key_pages.shape[1]
        ((3, 4), 8)
    """
    _require_positive(
        num_sequences=num_sequences, num_pages=num_pages, max_len=max_len, page_len=page_len, groups=num_page_groups
    )
    if num_pages % num_page_groups or num_sequences % num_page_groups:
        raise ValueError(
            f"num_page_groups must divide pages and sequences; got {num_pages} pages, {num_sequences} sequences and "
            f"{num_page_groups} groups. Use multiples of {num_page_groups}."
        )
    return _empty_cache(
        model,
        num_sequences=num_sequences,
        num_pages=num_pages,
        max_pages=_ceil_div(max_len, page_len),
        page_len=page_len,
        dtype=dtype,
        num_page_groups=num_page_groups,
    )


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
        A cache of length 0; fill it with `write_prompt` before the first token is appended.

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
    _require_positive(num_trials=num_trials, max_prompt_len=max_prompt_len, max_gen_len=max_gen_len, page_len=page_len)
    num_shared_pages = max_prompt_len // page_len
    return _empty_cache(
        model,
        num_sequences=num_trials,
        num_pages=num_shared_pages + num_trials * _ceil_div(max_gen_len + page_len - 1, page_len),
        max_pages=_ceil_div(max_prompt_len + max_gen_len, page_len),
        page_len=page_len,
        dtype=dtype,
        num_shared_pages=num_shared_pages,
    )


def advance(cache: PagedCache, num_new: int | Int[Array, " B"] = 1) -> PagedCache:
    """Count the tokens that every layer has appended: lengths + num_new.

    Args:
        cache: The cache after `rotate_and_append` or `append_tokens` in every layer.
        num_new: Tokens to count, one number or one a sequence [B]. Negative numbers take tokens back: what is appended
            next overwrites them, by `append_tokens` also in the means of their pages.

    Returns:
        The cache with the new lengths.
    """
    return dataclasses.replace(cache, lengths=cache.lengths + num_new)


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


def _empty_cache(
    model: ModelSpec,
    *,
    num_sequences: int,
    num_pages: int,
    max_pages: int,
    page_len: int,
    dtype: DTypeLike,
    **counts: int,
) -> PagedCache:
    pool = (model.num_layers, num_pages, model.num_kv_heads, page_len, model.head_dim)
    return PagedCache(
        key_pages=jnp.zeros(pool, dtype),
        value_pages=jnp.zeros(pool, dtype),
        key_means=jnp.zeros((*pool[:3], model.head_dim), dtype),
        page_table=jnp.full((num_sequences, max_pages), -1, jnp.int32),
        lengths=jnp.zeros(num_sequences, jnp.int32),
        **counts,
    )


def _require_positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1; got {size}")


def _fold_layers(pool: Array) -> Array:
    return pool.reshape(-1, *pool.shape[2:])


def _ceil_div(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)
