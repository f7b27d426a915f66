"""The one way in which this room refuses an entry of an array; every estimator calls it."""

from collections.abc import Callable

import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike


def require(test: Callable[..., np.ndarray], arrays: tuple[ArrayLike, ...], message: str) -> None:
    """Raise ValueError with the first entry where `test` fails, unless an array is traced (values unknown)."""
    if any(isinstance(array, Tracer) for array in arrays):
        return
    values = np.broadcast_arrays(*map(np.asarray, arrays))
    wrong = ~test(*values)
    if wrong.any():
        first = np.unravel_index(np.argmax(wrong), wrong.shape)
        raise ValueError(message.format(*(value[first] for value in values)))


def require_drawn(k: ArrayLike, exists: ArrayLike) -> None:
    """Raise ValueError unless k is whole and 1 <= k <= the trials of every row, or either is traced."""
    if not isinstance(exists, Tracer):
        require(
            lambda k, n: (k >= 1) & (k <= n) & (k == np.floor(k)),
            (k, np.asarray(exists).sum(-1)),
            "k must be a whole number in 1..num_trials; got k={}, num_trials={}. Draw more trials, or lower k.",
        )


def existing(mask: ArrayLike | None, shape: tuple[int, ...]) -> ArrayLike:
    """Return the mask, or True everywhere if there is none."""
    return np.ones(shape, bool) if mask is None else mask


def require_level(level: float) -> None:
    """Raise ValueError unless `level` is a probability strictly between 0 and 1."""
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1); got {level}. Use 0.95 for 95 %.")
