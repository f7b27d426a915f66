"""Where a rising curve crosses zero, differentiable: the solver behind `iso_cost_len` and `break_even_batch`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._numbers import as_quantity, namespace

# Halvings that bring any bracket to float64 resolution of its upper end, and on: small roots keep their digits.
_NUM_HALVINGS = 80


def rising_root(fn: Callable[..., Any], high: Any, *numbers: Any) -> Any:
    """Solve fn(x, *numbers) = 0 for x in [0, high], element by element.

    Bisect; in JAX then take two Newton steps. The derivative passes through the Newton steps only; there it is that of
    the implicit function theorem, dx/dn = -(df/dn) / (df/dx), and the second derivative is right as well.

    Args:
        fn: Changes its sign once, from minus to plus, with a positive slope there. Whatever a derivative is wanted for
            reaches it through `numbers`, not through a closure.
        high: Where `fn` is not negative; any such place, so no derivative is taken of it.
        *numbers: What `fn` depends on beside x, all of one shape, as `prepare` returns them.

    Returns:
        x, of the shape of `numbers`: a float for plain numbers, an array of NumPy or JAX as given.
    """
    if namespace(high, *numbers) is np:
        return as_quantity(_bisect(fn, high, *numbers))
    # A loop's carry must not be weakly typed.
    high, *given = (jnp.asarray(number, dtype=jnp.result_type(number)) for number in (high, *numbers))
    root = _bisect(fn, *jax.lax.stop_gradient((high, *given)))
    for _ in range(2):
        excess, slope = jax.jvp(lambda x: fn(x, *given), (root,), (jnp.ones_like(root),))
        root = root - excess / slope
        root = jnp.where(root < 0, jnp.zeros_like(root), root)
    return root


def _bisect(fn: Callable[..., Any], high: Any, *numbers: Any) -> Any:
    xp = namespace(high, *numbers)

    def halve(_: Any, bracket: tuple[Any, Any]) -> tuple[Any, Any]:
        low, high = bracket
        middle = low + (high - low) / 2
        is_above = fn(middle, *numbers) > 0
        # NumPy wraps a scalar in an array of no axes; the empty index takes it out.
        return xp.where(is_above, low, middle)[()], xp.where(is_above, middle, high)[()]

    bracket = (0.0 * high, high)
    if xp is jnp:
        return jax.lax.fori_loop(0, _NUM_HALVINGS, halve, bracket)[0]
    for step in range(_NUM_HALVINGS):
        bracket = halve(step, bracket)
    return bracket[0]
