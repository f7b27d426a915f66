"""What quantised pages are: int8 or float8 numbers, and one scale for each key and each value vector.

An entry is page * scale. Called by `_pages`, `_validate` and the implementations. Left out: int4, float8_e5m2, scales
of larger groups.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, DTypeLike, Float, Real

# The dtypes of quantised pages, and the largest number of each that absmax scaling uses.
LARGEST = {"int8": 127.0, "float8_e4m3fn": 448.0}


def is_quantised(pages: Array) -> bool:
    """Return whether pages of this dtype need scales."""
    return pages.dtype.name in LARGEST


def operand_dtype(q: Array, key_pages: Array) -> jnp.dtype:
    """Return the dtype that the products of a decode take: that of the pages, or what holds quantised ones exactly."""
    if not is_quantised(key_pages):
        return key_pages.dtype
    return jnp.dtype(jnp.bfloat16 if q.dtype == jnp.bfloat16 else jnp.float32)  # both hold 8 bits


def quantise(
    entries: Float[Array, "*B H"], dtype: DTypeLike, scale_dtype: DTypeLike
) -> tuple[Real[Array, "*B H"], Float[Array, "*B"]]:
    """Divide each vector by absmax / largest, as rounded to `scale_dtype`, and round to nearest even."""
    largest, info = LARGEST[jnp.dtype(dtype).name], jnp.finfo(scale_dtype)
    entries = entries.astype(jnp.float32)
    # Times the reciprocal, as `jit` would divide: the same bits wherever a vector is rounded.
    scales = jnp.max(jnp.abs(entries), axis=-1) * (1 / largest)
    # XLA drops a conversion to a smaller float and back, on a GPU, but neither this rounding nor the barrier below.
    scales = lax.reduce_precision(scales, info.nexp, info.nmant)
    # Vectors of zeros, or of numbers too small for a scale, become zeros: 0 / 0 is NaN.
    scales = jnp.where(scales >= float(info.tiny), scales, 1.0)
    # The scale may have been rounded down; what is beyond the largest float8 would become NaN.
    steps = jnp.clip(entries / scales[..., None], -largest, largest)
    pages = (jnp.round(steps) if jnp.issubdtype(dtype, jnp.integer) else steps).astype(dtype)
    return lax.optimization_barrier(pages), scales.astype(scale_dtype)


def dequantise(pages: Real[Array, "*B H"], scales: Float[Array, "*B"]) -> Float[Array, "*B H"]:
    """Return page * scale in float32."""
    return pages.astype(jnp.float32) * scales.astype(jnp.float32)[..., None]
