"""The page pools of an engine: how large, and where they lie. They stay on the device from call to call."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kinetics_jax.attention import DATA_AXIS, PagedCache, cache_shardings, init_cache, kv_head_axis
from kinetics_jax.models import Decoder
from kinetics_jax.specs import DEFAULT_PAGE_LEN, AttentionSpec, PageSelection

from ._processes import smallest_of_processes, spans_processes

_MEMORY_SHARE = 0.9
"""Share of a device's free memory that the pools may take; the rest is for activations."""


class Pools(NamedTuple):
    """Hold the arrays of a cache that live on the device.

    Attributes:
        key_pages: As `PagedCache`.
        value_pages: As `PagedCache`.
        key_means: As `PagedCache`.
    """

    key_pages: Float[Array, "L R K P H"]
    value_pages: Float[Array, "L R K P H"]
    key_means: Float[Array, "L R K H"]


def pools_of(cache: PagedCache) -> Pools:
    """Return the arrays of a cache that stay on the device."""
    return Pools(key_pages=cache.key_pages, value_pages=cache.value_pages, key_means=cache.key_means)


def common_page_len(attentions: Sequence[AttentionSpec], page_len: int | None) -> int:
    """Return the page length that all specs agree on, which must be `page_len` if that is given."""
    if not attentions:
        raise ValueError("attentions must name at least one spec; got none. Use (Dense(),)")
    wanted = {spec.page_len for spec in attentions if isinstance(spec, PageSelection)}
    if page_len is not None:
        wanted.add(page_len)
    if len(wanted) > 1:
        raise ValueError(
            f"all attention specs of an engine share its pages; got pages of {sorted(wanted)} tokens. "
            "Use an engine for each page length."
        )
    chosen = wanted.pop() if wanted else DEFAULT_PAGE_LEN
    if chosen < 1:
        raise ValueError(f"page_len must be at least 1; got {chosen}")
    return chosen


def default_num_pages(model: Decoder, page_len: int, wanted: int) -> int:
    """Return `wanted` pages, or as many as fit the memory that the device says is free, where it says so."""
    device = next(iter(model.embed.embedding[...].addressable_shards)).device
    memory = device.memory_stats() or {}
    if "bytes_limit" not in memory:
        return wanted
    free_bytes = _MEMORY_SHARE * (memory["bytes_limit"] - memory["bytes_in_use"])
    spec, num_cuts = model.spec, 1
    if model.mesh is not None:  # a device holds its share of the heads, and of the pages
        num_cuts = model.mesh.shape[DATA_AXIS]
        if kv_head_axis(model.mesh, spec.num_kv_heads) is not None:
            num_cuts = model.mesh.size
    # Keys and values of every token, and a mean key.
    elements = spec.num_layers * spec.num_kv_heads * spec.head_dim * (2 * page_len + 1)
    num_pages = min(wanted, int(num_cuts * free_bytes / (elements * jnp.dtype(model.dtype).itemsize)))
    return smallest_of_processes(num_pages) if spans_processes(model.mesh) else num_pages


def make_pools(model: Decoder, *, num_pages: int, page_len: int, num_page_groups: int) -> Pools:
    """Make the pools where they will stay: a pool may be larger than half of what is free."""

    def make() -> PagedCache:
        return init_cache(
            model.spec,
            num_sequences=num_page_groups,  # tables come with each call
            num_pages=num_pages,
            max_len=1,
            page_len=page_len,
            dtype=model.dtype,
            num_page_groups=num_page_groups,
        )

    places = None if model.mesh is None else pool_shardings(model, num_page_groups)
    return jax.jit(lambda: pools_of(make()), out_shardings=places)()


def pool_shardings(model: Decoder, num_page_groups: int) -> Pools:
    """Return where the pools of a decoder on a mesh lie."""
    make = partial(init_cache, model.spec, num_sequences=num_page_groups, num_pages=num_page_groups, max_len=1)
    assert model.mesh is not None
    return pools_of(cache_shardings(jax.eval_shape(partial(make, num_page_groups=num_page_groups)), model.mesh))
