"""What the Triton kernels share: how they are launched, how rows are gathered by arrays of ids and widened.

Called by `_triton`, `_triton_select` and `_triton_append`.
"""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt
from jaxtyping import Array, Float16, Int8

from ._interpret import triton_params


def launch(
    kernel: partial[None],
    *,
    grid: tuple[int, ...],
    out_shape: Any,
    num_warps: int,
    num_stages: int = 1,
    aliases: dict[int, int] | None = None,
) -> Callable[..., Any]:
    """Return the kernel as a function of arrays; `aliases` maps inputs to the outputs that lie in their memory."""
    # JAX warns when it lowers, which is after this returns and not in our hands: only a filter can keep the warning
    # from programs that turn warnings into errors. It is set here, since importing must change nothing.
    warnings.filterwarnings("ignore", "The Pallas Triton backend is deprecated", DeprecationWarning)
    return pl.pallas_call(
        kernel,
        grid=grid,
        out_shape=out_shape,
        compiler_params=plt.CompilerParams(num_warps=num_warps, num_stages=num_stages),
        input_output_aliases=aliases or {},
        interpret=triton_params(),
        name=f"triton{kernel.func.__name__}",
    )


def sequence_and_head(num_kv_heads: int) -> tuple[Array, Array]:
    """Return which sequence and which KV head this program works for."""
    row = pl.program_id(0)
    return lax.div(row, num_kv_heads), lax.rem(row, num_kv_heads)


def load_entries(
    ref: Any, scale_ref: Any, index: tuple[Array | int, ...], mask: Array, *, dtype: jnp.dtype
) -> tuple[Array, Array | float]:
    """Gather keys or values [T, H] as `dtype`, zeros outside of the mask [T], and the factor [1, T] of each.

    Without scales the factor is 1.0.
    """
    if scale_ref is None:
        return load_rows(ref, index, mask), 1.0
    scale = plt.load(scale_ref.at[index], mask=mask, other=0.0).astype(jnp.float32)
    if jnp.issubdtype(ref.dtype, jnp.integer):
        rows = load_rows(ref, index, mask)
    else:
        # Without `other`: even to make a zero of it, float8 would have to be converted to.
        loaded = plt.load(ref.at[rows_of(ref, index)], mask=mask[:, None])
        rows = float8_times_2_to_minus_8(jnp.where(mask[:, None], lax.bitcast_convert_type(loaded, jnp.int8), 0))
        scale *= 2.0**8
    return rows.astype(jnp.float32).astype(dtype), scale[None, :]


def float8_times_2_to_minus_8(bits: Int8[Array, "*B"]) -> Float16[Array, "*B"]:
    """Move s eeee mmm of float8_e4m3fn to where float16 has them; its exponents count from 2^8 lower."""
    bits = bits.astype(jnp.int16)
    return lax.bitcast_convert_type((bits & -0x8000) | ((bits & 0x7F) << 7), jnp.float16)


def load_rows(ref: Any, index: tuple[Array | int, ...], mask: Array) -> Array:
    """Gather rows [T, H] of an array [..., H], zeros outside of the mask [T]."""
    zero = 0 if jnp.issubdtype(ref.dtype, jnp.integer) else 0.0
    return plt.load(ref.at[rows_of(ref, index)], mask=mask[:, None], other=zero)


def rows_of(ref: Any, index: tuple[Array | int, ...]) -> tuple[Array | int, ...]:
    """Return the index of whole rows of an array [..., H], where parts of `index` are arrays of ids [T]."""
    # Pallas' interpreter takes no slices beside arrays of ids: spell the columns out.
    rows = (part[:, None] if isinstance(part, Array) and part.ndim else part for part in index)
    return *rows, jnp.arange(ref.shape[-1], dtype=jnp.int32)[None, :]
