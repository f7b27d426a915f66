"""vmap for kernels with a batch axis of their own: the mapped axis becomes part of the batch.

Called by `_dispatch` around every Pallas implementation; XLA's has the native `vmap`.

    q [X, B, N, H], page_table [X, B, M], lengths [X, B]     ->  [X * B, ...]
    pools [R, K, P, H], not mapped                           ->  as they are: one pool for all
    pools [X, R, K, P, H], mapped                            ->  [X * R, ...], page id r of x becomes x * R + r
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

Kernel = Callable[..., tuple[Array, ...]]


def fold_into_batch(kernel: Kernel, *, pools: Sequence[int], page_table: int) -> Kernel:
    """Return the kernel with a `vmap` that calls it once, for a larger batch.

    Args:
        kernel: Takes arrays only, each with the batch or, for pools, the page first; returns arrays by batch.
        pools: Positions of the arguments that hold pages.
        page_table: Position of the argument that holds page ids [B, M].

    Returns:
        The same function of the same arrays; `vmap` of it, nested too, folds every mapped axis into the batch.
    """
    folded = jax.custom_batching.custom_vmap(kernel)

    @folded.def_vmap
    def rule(axis_size: int, in_batched: list[bool], *arrays: Array) -> tuple[tuple[Array, ...], tuple[bool, ...]]:
        own_pools = any(in_batched[i] for i in pools)

        def fold(i: int, array: Array) -> Array:
            if i in pools and not own_pools:
                return array
            if not in_batched[i]:
                array = jnp.broadcast_to(array[None], (axis_size, *array.shape))
            if i == page_table and own_pools:
                array = _own_page_ids(array, arrays[pools[0]].shape[int(in_batched[pools[0]])])
            return array.reshape(axis_size * array.shape[1], *array.shape[2:])

        outs = folded(*(fold(i, array) for i, array in enumerate(arrays)))
        outs = tuple(out.reshape(axis_size, out.shape[0] // axis_size, *out.shape[1:]) for out in outs)
        return outs, (True,) * len(outs)

    return folded


def _own_page_ids(page_table: Int[Array, "X B M"], num_pages: int) -> Int[Array, "X B M"]:
    # Ids out of range read some page, but never one of another pool.
    first = num_pages * jnp.arange(page_table.shape[0], dtype=page_table.dtype)
    return jnp.clip(page_table, 0, num_pages - 1) + first[:, None, None]
