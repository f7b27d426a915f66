"""The chance that at least one of k trials is right, estimated without bias from n >= k trials."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num

from ._require import require


def pass_at_k(
    num_correct: Num[ArrayLike, "*#shape"], num_trials: Num[ArrayLike, "*#shape"], k: Num[ArrayLike, "*#shape"]
) -> Float[Array, "*#shape"]:
    r"""Estimate Pass@k without bias from c right ones of n trials.

    $$ 1 - \binom{n-c}{k} / \binom{n}{k} = 1 - \exp \sum_{i<k} \log(1 - c / (n - i)) $$

    The sum of logarithms is exact to rounding in float32 for any n, where differences of log-gamma lose digits.

    Args:
        num_correct: Right trials c, 0 <= c <= n; broadcast with the others.
        num_trials: Trials n.
        k: Trials that are paid for, 1 <= k <= n. Beyond n there is no unbiased estimate.

    Returns:
        The estimate for every entry of the broadcast shape. Under `jit`, where values are unknown,
        entries that would be refused are NaN.

    Raises:
        ValueError: If an entry is out of range or no whole number (outside `jit`).

    Example:
        >>> pass_at_k(1, 4, 2).item()  # half of the six pairs hold the right one
        0.5

    References:
        PAPER.md section 3; Chen et al. 2021 (arXiv 2107.03374), eq. 1.
    """
    require(
        lambda c, n, k: (k >= 1) & (k <= n),
        (num_correct, num_trials, k),
        "k must lie in 1..num_trials; got num_correct={}, num_trials={}, k={}. Draw more trials, or lower k.",
    )
    require(
        lambda c, n, k: (c >= 0) & (c <= n),
        (num_correct, num_trials, k),
        "num_correct must lie in 0..num_trials; got num_correct={}, num_trials={}, k={}.",
    )
    require(
        lambda c, n, k: (c == np.floor(c)) & (n == np.floor(n)) & (k == np.floor(k)),
        (num_correct, num_trials, k),
        "counts must be whole numbers; got num_correct={}, num_trials={}, k={}. Grade each trial as right or wrong.",
    )
    dtype = jnp.result_type(float)
    c, n, k = jnp.broadcast_arrays(*(jnp.asarray(count, dtype) for count in (num_correct, num_trials, k)))
    return _pass_at_k(c, n, k)


@jax.jit  # one compiled loop a shape; without it every eager call would compile its own
def _pass_at_k(c: Array, n: Array, k: Array) -> Array:
    is_whole = (c == jnp.floor(c)) & (n == jnp.floor(n)) & (k == jnp.floor(k))
    is_valid = (k >= 1) & (k <= n) & (c >= 0) & (c <= n) & is_whole
    drawn = jnp.where(is_valid, k, 0)

    def add_draw(i: Array, log_none: Array) -> Array:
        # The share of right ones among the n - i left; 1 at most: then no draw can fail and the log is -inf.
        share = jnp.minimum(c / jnp.maximum(n - i.astype(c.dtype), 1), 1)
        return log_none + jnp.where(i < drawn, jnp.log1p(-share), 0)

    most = jnp.max(drawn, initial=0).astype(jnp.int32)
    log_none = lax.fori_loop(0, most, add_draw, jnp.zeros_like(c))
    return jnp.where(is_valid, jnp.abs(jnp.expm1(log_none)), jnp.nan)  # abs: no -0.0
