"""Where a paged cache lies on a mesh: asked by whoever makes one for a decoder that lies on the same mesh."""

from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ._cache import PagedCache, cache_of_leaves
from ._mesh import DATA_AXIS, checked_mesh, kv_head_axis


def cache_shardings(cache: PagedCache, mesh: Mesh) -> PagedCache:
    """Return where each array of a cache lies: KV heads over "model", sequences over "data".

    A page belongs to no one sequence (all trials share the prompt's), so every place on the data axis holds all pages:
    the axis divides what a device reads in a step, not what it stores. A batch of caches, as `vmap` over problems
    makes it, has its problems over "data", pages included. KV heads that the model axis does not divide are
    replicated. A cache with page groups has each group of pages with its sequences.

    Args:
        cache: The cache or its shapes (`jax.eval_shape`), or a batch of caches: every array with one axis in front.
        mesh: Has the axes "data" and "model".

    Returns:
        A cache with shardings in place of arrays, for `jax.device_put` or `jax.jit(..., in_shardings=...)`.

    Raises:
        ValueError: If the mesh has other axes, or its data axis does not divide the sequences (or problems).

    Example:
        >>> import jax
        >>> from kinetics_jax.attention import init_shared_cache
        >>> from kinetics_jax.specs import MODELS
        >>> cache = init_shared_cache(MODELS["Kinetics-Mini-0.1M"], num_trials=2, max_prompt_len=16, max_gen_len=4)
        >>> shardings = cache_shardings(cache, jax.make_mesh((1, 1), ("data", "model")))
        >>> tuple(shardings.key_pages.spec), tuple(shardings.lengths.spec)
        ((None, None, 'model'), ('data',))
        >>> cache = jax.device_put(cache, shardings)

    References:
        DESIGN.md "Scale".
    """
    mesh = checked_mesh(mesh)
    num_rows, num_places = cache.lengths.shape[0], mesh.shape[DATA_AXIS]
    is_batch = len(cache.lengths.shape) == 2
    if num_rows % num_places:
        what = "problems" if is_batch else "sequences"
        raise ValueError(
            f"the data axis must divide the {what}; got {num_rows} {what} and a data axis of {num_places}. "
            f"Use a multiple of {num_places} {what}, or a smaller data axis."
        )
    heads = kv_head_axis(mesh, cache.key_means.shape[-2])
    pages = DATA_AXIS if cache.num_page_groups > 1 else None
    pool = NamedSharding(mesh, PartitionSpec(*[DATA_AXIS] * is_batch, None, pages, heads))
    rows = NamedSharding(mesh, PartitionSpec(DATA_AXIS))
    return cache_of_leaves(cache, key_pages=pool, value_pages=pool, key_means=pool, page_table=rows, lengths=rows)
