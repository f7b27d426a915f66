"""One tile of bfloat16 pages on the tensor cores: S = q K^T, online softmax, out += P V.

Called by `_mosaic_gpu_attend` for every tile of an item; `_mosaic_gpu_tile8` has the same functions for 8-bit pages.
Rows of q are padded to the 64 that the tensor cores want; the products cost nothing beside the copies. Rows past the
group hold whatever lies beside it, and their results are dropped.
"""

import math
from typing import Any

import jax.experimental.pallas as pl
import jax.numpy as jnp
from jax import lax

from ._mosaic_gpu_work import ROWS, Work
from ._plgpu import plgpu

_LOG2_E = math.log2(math.e)
_SWIZZLED = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))


def scratch(work: Work, dtype: Any, out_dtype: Any) -> dict[str, Any]:
    """Return the shared memory of queries, ring, weights and results."""
    tiles = (work.num_stages, work.tile_len, work.head_dim)
    return {
        "q": plgpu.SMEM((ROWS, work.head_dim), dtype, transforms=_SWIZZLED),
        "keys": plgpu.SMEM(tiles, dtype, transforms=_SWIZZLED),
        "values": plgpu.SMEM(tiles, dtype, transforms=_SWIZZLED),
        "weights": plgpu.SMEM((ROWS, work.tile_len), dtype, transforms=_SWIZZLED),
        "out": plgpu.SMEM((ROWS, work.head_dim), out_dtype),
        "lse": plgpu.SMEM((ROWS,), jnp.float32),
    }


def start(work: Work) -> tuple:
    """Return a softmax over nothing: sum of weighted values [64, H], largest logit and sum of weights [64]."""
    empty = plgpu.layout_cast(jnp.full((ROWS,), 0, jnp.float32), plgpu.Layout.WGMMA.reduce(1))
    acc = plgpu.layout_cast(jnp.full((ROWS, work.head_dim), 0, jnp.float32), plgpu.Layout.WGMMA)
    return acc, empty - jnp.inf, empty


def add(work: Work, shared: Any, slot: Any, num_left: Any, scale: float, carry: tuple) -> tuple:
    """Add one tile to the running softmax; logits are in base 2, and slots from `num_left` on hold nothing."""
    acc, peak, total = carry
    plgpu.barrier_wait(shared.keys_here.at[slot])
    shape = (ROWS, work.tile_len)

    def logits_of(acc_ref):
        plgpu.wgmma(acc_ref, shared.q, shared.keys.at[slot].transpose((1, 0)))
        return acc_ref[...]

    logits = pl.run_scoped(logits_of, plgpu.ACC(shape, jnp.float32)) * (scale * _LOG2_E)
    position = plgpu.broadcasted_iota(jnp.int32, shape, 1, layout=plgpu.Layout.WGMMA)
    logits = jnp.where(position < num_left, logits, -jnp.inf)
    new_peak = jnp.maximum(peak, logits.max(axis=1))
    keep = jnp.exp2(peak - new_peak)
    weights = jnp.exp2(logits - _to_rows(new_peak, logits))
    total = total * keep + weights.sum(axis=1)
    shared.weights[...] = weights.astype(shared.weights.dtype)
    plgpu.commit_smem()
    plgpu.barrier_wait(shared.values_here.at[slot])

    @pl.when(num_left < work.tile_len)
    def _():  # 0 * NaN = NaN: slots that hold nothing must be blanked in the values too
        values = plgpu.load(shared.values.at[slot], layout=plgpu.Layout.WGMMA)
        key = plgpu.broadcasted_iota(jnp.int32, values.shape, 0, layout=plgpu.Layout.WGMMA)
        shared.values[slot] = jnp.where(key < num_left, values, jnp.zeros((), values.dtype))
        plgpu.commit_smem()

    def product(acc_ref):
        plgpu.wgmma(acc_ref, shared.weights, shared.values.at[slot])
        return acc_ref[...]

    added = pl.run_scoped(product, plgpu.ACC(acc.shape, jnp.float32))
    plgpu.barrier_arrive(shared.tile_free.at[slot])
    return acc * _to_rows(keep, acc) + added, new_peak, total


def store(shared: Any, carry: tuple) -> None:
    """Write output and log-sum-exp to shared memory, once those of the item before are on their way."""
    acc, peak, total = carry
    some = total > 0
    inverse = jnp.where(some, 1.0 / jnp.where(some, total, 1.0), 0.0)
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
    shared.out[...] = (acc * _to_rows(inverse, acc)).astype(shared.out.dtype)
    shared.lse[...] = jnp.where(some, peak / _LOG2_E + jnp.log(jnp.where(some, total, 1.0)), -jnp.inf)


def _to_rows(values: Any, like: Any) -> Any:
    return lax.broadcast_in_dim(values, like.shape, [0])
