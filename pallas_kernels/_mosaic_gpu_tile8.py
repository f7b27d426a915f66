"""One tile of quantised pages on the tensor cores: S^T = K q^T, online softmax, out^T += V^T P^T.

Called by `_mosaic_gpu_attend` for every tile of an item, with the functions of `_mosaic_gpu_tile`. A tile has the bytes
of a bfloat16 one, but twice as many tokens, and every entry must be widened, so the rest has to be little:

    keys      ring -> registers, bfloat16 -> left operand of S^T [128 tokens, 8 heads]
    values    ring -> registers, bfloat16 -> shared memory -> left operand of out^T [H, 8 heads]     while S^T is made
    scales    ring -> registers; a key's multiplies its row of S^T, a value's its row of P^T

Tokens and head_dim are the rows of the products, the group their 8 columns, of which none is wasted. A lane sums the
weights of its own tokens; only an item's end adds them up.
"""

import math
from typing import Any

import jax.experimental.pallas as pl
import jax.numpy as jnp
from jax import lax

from . import _interpret
from ._mosaic_gpu_work import GROUP_ROWS, Work
from ._plgpu import plgpu, store_element_wise

_LOG2_E = math.log2(math.e)
_SWIZZLED = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))


def scratch(work: Work, dtype: Any, out_dtype: Any, *scale_dtypes: Any) -> dict[str, Any]:
    """Return the shared memory of queries, ring, widened values, weights and results."""
    tiles = (work.num_stages, work.tile_len, work.head_dim)
    swizzled = (plgpu.TilingTransform((8, work.head_dim)), plgpu.SwizzleTransform(work.head_dim))
    key_scales, value_scales = (plgpu.SMEM(tiles[:2], scale_dtype) for scale_dtype in scale_dtypes)
    widened = plgpu.SMEM(tiles[1:], jnp.bfloat16, transforms=_SWIZZLED)
    # The interpreter multiplies what lies in shared memory only.
    staged = {"widened_keys": widened} if _interpret.is_interpreted() else {}
    return staged | {
        "q": plgpu.SMEM((GROUP_ROWS, work.head_dim), jnp.bfloat16, transforms=_SWIZZLED),
        "keys": plgpu.SMEM(tiles, dtype, transforms=swizzled),
        "values": plgpu.SMEM(tiles, dtype, transforms=swizzled),
        "key_scales": key_scales,
        "value_scales": value_scales,
        "widened_values": widened,
        "weights": plgpu.SMEM((GROUP_ROWS, work.tile_len), jnp.bfloat16, transforms=_SWIZZLED),
        "out": plgpu.SMEM((GROUP_ROWS, work.head_dim), out_dtype),
        "lse": plgpu.SMEM((GROUP_ROWS,), jnp.float32),
    }


def start(work: Work) -> tuple:
    """Return a softmax over nothing: sum of weighted values [H, 8], largest logits [8], weights by token [T, 8]."""
    acc, total = (
        plgpu.layout_cast(jnp.full((rows, GROUP_ROWS), 0, jnp.float32), plgpu.Layout.WGMMA)
        for rows in (work.head_dim, work.tile_len)
    )
    peak = plgpu.layout_cast(jnp.full((GROUP_ROWS,), -jnp.inf, jnp.float32), plgpu.Layout.WGMMA.reduce(0))
    return acc, peak, total


def add(work: Work, shared: Any, slot: Any, num_left: Any, scale: float, carry: tuple) -> tuple:
    """Add one tile to the running softmax; logits are in base 2, and slots from `num_left` on hold nothing."""
    acc, peak, total = carry
    plgpu.barrier_wait(shared.keys_here.at[slot])
    keys = plgpu.layout_cast(_widened(shared.keys.at[slot]), plgpu.Layout.WGMMA)
    key_scale = _scales(shared.key_scales.at[slot]) * (scale * _LOG2_E)

    if shared.widened_keys is not None:
        shared.widened_keys[...] = keys
        plgpu.commit_smem()

    def logits_and_value_scale(acc_ref):
        operand = keys if shared.widened_keys is None else shared.widened_keys
        plgpu.wgmma(acc_ref, operand, shared.q.transpose((1, 0)))
        plgpu.barrier_wait(shared.values_here.at[slot])
        _widen_values(shared, slot, num_left)
        return acc_ref[...], _scales(shared.value_scales.at[slot])

    logits, value_scale = pl.run_scoped(logits_and_value_scale, plgpu.ACC((work.tile_len, GROUP_ROWS), jnp.float32))
    # Scales of slots that hold nothing may be NaN.
    is_held = plgpu.broadcasted_iota(jnp.int32, logits.shape, 0, layout=plgpu.Layout.WGMMA) < num_left
    logits = jnp.where(is_held, logits * _to_tokens(key_scale, logits), -jnp.inf)
    new_peak = jnp.maximum(peak, logits.max(axis=0))
    keep = jnp.exp2(peak - new_peak)
    weights = jnp.exp2(logits - _to_heads(new_peak, logits))
    total = total * _to_heads(keep, total) + weights
    scaled = jnp.where(is_held, weights * _to_tokens(value_scale, weights), 0.0)
    shared.weights.transpose((1, 0))[...] = plgpu.layout_cast(
        scaled.astype(jnp.bfloat16), plgpu.Layout.WGMMA_TRANSPOSED
    )
    plgpu.commit_smem()
    plgpu.barrier_arrive(shared.tile_free.at[slot])

    def product(acc_ref):
        plgpu.wgmma(acc_ref, shared.widened_values.transpose((1, 0)), shared.weights.transpose((1, 0)))
        return acc_ref[...]

    added = pl.run_scoped(product, plgpu.ACC(acc.shape, jnp.float32))
    plgpu.commit_smem()  # each warp awaits its own rows only, but reads the values and weights that all have written
    return acc * _to_heads(keep, acc) + added, new_peak, total


def store(shared: Any, carry: tuple) -> None:
    """Write output and log-sum-exp to shared memory, once those of the item before are on their way."""
    acc, peak, total = carry[0], carry[1], carry[2].sum(axis=0)
    some = total > 0
    inverse = jnp.where(some, 1.0 / jnp.where(some, total, 1.0), 0.0)
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
    out = (acc * _to_heads(inverse, acc)).astype(shared.out.dtype)
    store_element_wise(shared.out.transpose((1, 0)), plgpu.layout_cast(out, plgpu.Layout.WGMMA_TRANSPOSED))
    shared.lse[...] = jnp.where(some, peak / _LOG2_E + jnp.log(jnp.where(some, total, 1.0)), -jnp.inf)


def _widen_values(shared: Any, slot: Any, num_left: Any) -> None:
    """Write the values of a tile in bfloat16, those of slots that hold nothing as zeros where they may be NaN."""
    layout, tile = plgpu.Layout.WGMMA_UPCAST_2X, shared.values.at[slot]
    shared.widened_values[...] = _widened(tile)
    if tile.dtype == jnp.int8:
        return

    @pl.when(num_left < shared.widened_values.shape[0])
    def _():
        values = plgpu.load(shared.widened_values, layout=layout)
        token = plgpu.broadcasted_iota(jnp.int32, values.shape, 0, layout=layout)
        shared.widened_values[...] = jnp.where(token < num_left, values, jnp.zeros((), values.dtype))


def _widened(tile: Any) -> Any:
    """Load 8-bit entries, four to a lane, as bfloat16."""
    entries = plgpu.load(tile, layout=plgpu.Layout.WGMMA_UPCAST_2X)
    # Hopper converts float8 to float16 only, which Mosaic hides behind float32.
    return (entries if tile.dtype == jnp.int8 else entries.astype(jnp.float32)).astype(jnp.bfloat16)


def _scales(scales: Any) -> Any:
    return plgpu.load(scales, layout=plgpu.Layout.WGMMA.reduce(1)).astype(jnp.float32)


def _to_tokens(values: Any, like: Any) -> Any:
    return lax.broadcast_in_dim(values, like.shape, [0])


def _to_heads(values: Any, like: Any) -> Any:
    return lax.broadcast_in_dim(values, like.shape, [1])
