"""What the Triton kernels share: how they are launched, and how rows are gathered by arrays of ids.

Called by `_triton` and `_triton_select`.
"""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt
from jaxtyping import Array

from ._interpret import triton_params


def launch(
    kernel: partial[None], *, grid: tuple[int, ...], out_shape: Any, num_warps: int, num_stages: int = 1
) -> Callable[..., Any]:
    # JAX warns when it lowers, which is after this returns and not in our hands: only a filter can keep the warning
    # from programs that turn warnings into errors. It is set here, since importing must change nothing.
    warnings.filterwarnings("ignore", "The Pallas Triton backend is deprecated", DeprecationWarning)
    return pl.pallas_call(
        kernel,
        grid=grid,
        out_shape=out_shape,
        compiler_params=plt.CompilerParams(num_warps=num_warps, num_stages=num_stages),
        interpret=triton_params(),
        name=f"triton{kernel.func.__name__}",
    )


def sequence_and_head(num_kv_heads: int) -> tuple[Array, Array]:
    row = pl.program_id(0)
    return lax.div(row, num_kv_heads), lax.rem(row, num_kv_heads)


def load_rows(ref: Any, index: tuple[Array | int, ...], mask: Array) -> Array:
    """Gather rows [T, H] of an array [..., H], zeros outside of the mask [T]."""
    return plt.load(ref.at[rows_of(ref, index)], mask=mask[:, None], other=0.0)


def rows_of(ref: Any, index: tuple[Array | int, ...]) -> tuple[Array | int, ...]:
    # Pallas' interpreter takes no slices beside arrays of ids: spell the columns out.
    rows = (part[:, None] if isinstance(part, Array) and part.ndim else part for part in index)
    return *rows, jnp.arange(ref.shape[-1], dtype=jnp.int32)[None, :]
