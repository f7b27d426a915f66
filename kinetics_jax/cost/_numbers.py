"""Lengths and counts as they arrive, made ready for arithmetic. Used by every function of the room.

Python numbers stay Python: they are checked at once and computed in NumPy double precision, so a price on the command
line neither compiles nor rounds. Anything else goes through `jax.numpy` in the widest floating dtype among the arrays
(at least float32; integers become JAX's default float), all broadcast to one shape.

Values inside arrays cannot be checked under `jit`. The contract there: one bad value (negative, not finite, a count
below one) makes that element NaN and no other.
"""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Num

from kinetics_jax.specs import DTYPE_BYTES

Number = int | float | np.number | Num[np.ndarray, "..."] | Num[Array, "..."]
Quantity = float | Num[Array, "..."]


def is_python(*numbers: Any) -> bool:
    """Tell whether all are plain numbers rather than arrays or tracers."""
    return all(isinstance(number, int | float | np.number) for number in numbers)


def namespace(*numbers: Any) -> Any:
    """Return `numpy` when all are plain numbers, else `jax.numpy`: one formula then serves both."""
    return np if is_python(*numbers) else jnp


def prepare(**numbers: Number) -> tuple[Any, ...]:
    """Check plain numbers and cast the rest: (a validity mask, then the numbers as given).

    Args:
        **numbers: Names that start with `num_` or equal `batch_size` are counts (at least 1), others at least 0.

    Returns:
        `True` and floats when all are plain numbers; else a boolean array and arrays of one dtype and shape.

    Raises:
        ValueError: If a plain number is out of range.
    """
    smallest = {name: 1 if name.startswith("num_") or name == "batch_size" else 0 for name in numbers}
    for name, number in numbers.items():
        if is_python(number) and not smallest[name] <= float(number) < math.inf:
            raise ValueError(f"{name} must be finite and at least {smallest[name]}; got {number}")
    if is_python(*numbers.values()):
        return True, *(float(number) for number in numbers.values())
    dtype = _common_dtype([jnp.asarray(number) for number in numbers.values() if not is_python(number)])
    arrays = jnp.broadcast_arrays(*(jnp.asarray(number).astype(dtype) for number in numbers.values()))
    valid = jnp.ones(arrays[0].shape, bool)
    for name, array in zip(numbers, arrays, strict=True):
        valid = valid & (array >= smallest[name]) & (array < jnp.inf)
    return valid, *arrays


def poison(number: Any, valid: Any) -> Any:
    """Put NaN where the input was out of range (never for plain numbers: `prepare` refused those)."""
    return as_quantity(number if valid is True else jnp.where(valid, number, jnp.nan))


def as_quantity(number: Any) -> Any:
    """Turn a NumPy scalar into a float; leave arrays alone."""
    return float(number) if is_python(number) else number


def dtype_bytes(argument: str, dtype: str) -> int:
    """Return the bytes of one element.

    Raises:
        ValueError: If the dtype has no known size; the message names the argument and lists the known ones.
    """
    if dtype not in DTYPE_BYTES:
        raise ValueError(f"unknown {argument} {dtype!r}. Known: {', '.join(DTYPE_BYTES)}")
    return DTYPE_BYTES[dtype]


def _common_dtype(arrays: list[Array]) -> Any:
    default = jnp.zeros(()).dtype
    dtypes = [array.dtype if jnp.issubdtype(array.dtype, jnp.floating) else default for array in arrays]
    return max(jnp.dtype(jnp.float32), *dtypes, key=lambda dtype: dtype.itemsize)
