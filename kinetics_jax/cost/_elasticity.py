"""By how many percent does a price move when an input moves by one? For any differentiable function."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def elasticity(fn: Callable[..., Any], wrt: int | str) -> Callable[..., Any]:
    """Return the function that gives d log fn / d log x = x fn'(x) / fn(x) for one argument x of `fn`.

    Works under `jit`, `vmap` and `grad`, in the dtype of x. Where x is an array, all its elements grow by the same
    percentage: for a function that works element by element, as all of this room do, that is each element's own
    elasticity; for a sum, that of the sum.

    Args:
        fn: Any differentiable function that returns an array, a number or a pytree of them, such as a `Cost`.
        wrt: Which argument x is: the position of a positional argument or the name of a keyword argument, as `fn` is
            then called.

    Returns:
        A function with the signature of `fn`; its result has the structure of fn's, in JAX arrays [-]. +1 is
            proportional to x, 0 independent of it. NaN where fn is 0, since log 0 has no slope: in the terms of a
            `Cost` that are free, for example.

    Raises:
        ValueError: When the result is called without the argument that `wrt` names.

    Example:
        >>> from kinetics_jax.cost import request_cost
        >>> from kinetics_jax.specs import MODELS, Dense
        >>> slope = elasticity(request_cost, "gen_len")
        >>> for gen_len in (10, 500, 50_000):  # From linear to quadratic in the length.
        ...     cost = slope(MODELS["Qwen3-8B"], Dense(), prompt_len=500, gen_len=gen_len)
        ...     print(f"{cost.linear_flops:.2f} {cost.kv_read_bytes:.2f}")
        1.00 1.01
        1.00 1.33
        1.00 1.98
    """

    def slope(*args: Any, **kwargs: Any) -> Any:
        given = dict(enumerate(args)) | kwargs
        if wrt not in given:
            kind = "position" if isinstance(wrt, int) else "keyword"
            raise ValueError(
                f"wrt must name an argument of the call; got {kind} {wrt!r} in a call with {len(args)} positional "
                f"arguments and the keywords {', '.join(kwargs) or 'none'}. Pass that argument, or name another."
            )

        def fn_of_x(x: Any) -> Any:
            changed = given | {wrt: x}
            return fn(*(changed[i] for i in range(len(args))), **{name: changed[name] for name in kwargs})

        x = jnp.asarray(given[wrt])
        x = x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(float)  # Integers have no slope.
        value, slope_of_log = jax.jvp(fn_of_x, (x,), (x,))
        return jax.tree.map(lambda value, slope: slope / value, value, slope_of_log)

    return slope
