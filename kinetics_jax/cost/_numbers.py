"""Lengths and counts as they arrive, made ready for arithmetic. Used by every function of the room.

Where the numbers live, the answer lives. Python numbers and NumPy arrays are computed in NumPy double precision, so a
price on the command line or of a whole trace table neither compiles nor rounds. As soon as one is a JAX array,
everything goes through `jax.numpy` in the widest floating dtype among the arrays (at least float32; integers become
JAX's default float). Arrays are broadcast to one shape.

Plain numbers are checked at once. Values inside arrays cannot be checked under `jit`, so the contract for arrays is:
one bad value (negative, not finite, a count below one) makes that element NaN and no other.
"""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Num

from kinetics_jax.specs import DTYPES, DTypeSpec

Number = int | float | np.number | Num[np.ndarray, "..."] | Num[Array, "..."]
Quantity = float | Num[np.ndarray, "..."] | Num[Array, "..."]


def is_python(*numbers: Any) -> bool:
    """Tell whether all are plain numbers rather than arrays or tracers."""
    return all(isinstance(number, int | float | np.number) for number in numbers)


def namespace(*numbers: Any) -> Any:
    """Return `numpy` for plain numbers and NumPy arrays, else `jax.numpy`: one formula then serves both."""
    return np if all(isinstance(number, int | float | np.number | np.ndarray) for number in numbers) else jnp


def prepare(**numbers: Number) -> tuple[Any, ...]:
    """Check plain numbers and cast the rest: (a validity mask, then the numbers as given).

    Args:
        **numbers: Names that start with `num_`, `batch_size` and `chunk_len` are at least 1, others at least 0.

    Returns:
        `True` and floats when all are plain numbers; else a boolean array and arrays of one dtype and shape, NumPy's
        if there is no JAX array.

    Raises:
        ValueError: If a plain number is out of range.
    """
    smallest = {name: int(name.startswith("num_") or name in ("batch_size", "chunk_len")) for name in numbers}
    for name, number in numbers.items():
        if is_python(number) and not smallest[name] <= float(number) < math.inf:
            raise ValueError(f"{name} must be finite and at least {smallest[name]}; got {number}")
    if is_python(*numbers.values()):
        return True, *(float(number) for number in numbers.values())
    if namespace(*numbers.values()) is np:
        wide = np.broadcast_arrays(*(np.asarray(number, dtype=np.float64) for number in numbers.values()))
        are_valid = [(array >= low) & (array < math.inf) for array, low in zip(wide, smallest.values(), strict=True)]
        # Bad values are masked in the end; until then a legal number keeps NumPy from warning.
        safe = [np.where(ok, array, low) for ok, array, low in zip(are_valid, wide, smallest.values(), strict=True)]
        return np.logical_and.reduce(are_valid), *safe
    dtype = _common_dtype([jnp.asarray(number) for number in numbers.values() if not is_python(number)])
    arrays = jnp.broadcast_arrays(*(jnp.asarray(number).astype(dtype) for number in numbers.values()))
    valid = jnp.ones(arrays[0].shape, bool)
    for name, array in zip(numbers, arrays, strict=True):
        valid = valid & (array >= smallest[name]) & (array < jnp.inf)
    return valid, *arrays


def poison(number: Any, valid: Any) -> Any:
    """Put NaN where the input was out of range (never for plain numbers: `prepare` refused those)."""
    return as_quantity(number if valid is True else namespace(number, valid).where(valid, number, np.nan))


def as_quantity(number: Any) -> Any:
    """Turn a NumPy scalar into a float; leave arrays alone."""
    return float(number) if is_python(number) else number


def as_floating(array: Any) -> Any:
    """Return an array of whole numbers as floats: NumPy's double, JAX's default; leave floats as they are."""
    if namespace(array) is np:
        return array.astype(np.float64)
    return array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(jnp.zeros(()).dtype)


def dtype_spec(argument: str, dtype: str) -> DTypeSpec:
    """Return the format of a name.

    Raises:
        ValueError: If the dtype is unknown; the message names the argument and lists the known ones.
    """
    if dtype not in DTYPES:
        raise ValueError(f"unknown {argument} {dtype!r}. Known: {', '.join(DTYPES)}")
    return DTYPES[dtype]


def _common_dtype(arrays: list[Array]) -> Any:
    default = jnp.zeros(()).dtype
    dtypes = [array.dtype if jnp.issubdtype(array.dtype, jnp.floating) else default for array in arrays]
    return max(jnp.dtype(jnp.float32), *dtypes, key=lambda dtype: dtype.itemsize)
