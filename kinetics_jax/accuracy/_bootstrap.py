"""How far to trust a number that was averaged over a few problems and a few trials of each."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

Statistic = Callable[[Float[Array, "Q R"], Bool[Array, "Q R"]], Float[Array, "*shape"]]
_RESAMPLES_AT_ONCE = 32


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Hold an estimate and its confidence interval.

    Attributes:
        estimate: The statistic of the data.
        low: Lower ends.
        high: Upper ends.
    """

    estimate: Float[Array, "*shape"]
    low: Float[Array, "*shape"]
    high: Float[Array, "*shape"]


def bootstrap_interval(
    statistic: Statistic,
    values: Float[Array, "Q R"],
    mask: Bool[Array, "Q R"] | None = None,
    *,
    level: float = 0.95,
    num_resamples: int = 1000,
    key: Key[Array, ""],
) -> Interval:
    """Bootstrap a statistic on two levels: draw problems with replacement, then trials of each drawn problem.

    The interval is the percentile one, moved so that the resamples centre on the estimate: drawing trials with
    replacement pulls Pass@k down (the same trial counts twice), and that bias belongs to the bootstrap, not to the
    estimate. With few trials a problem the interval is somewhat too wide, because the noise of trials is already
    in the spread of the problems; it is not too narrow.

    Args:
        statistic: Maps values [Q, R] and mask [Q, R] to an array; traced under `jit`, once
            a function object and shape.
        values: One number a trial, such as `solved_len`.
        mask: Whether the trial exists; None for all. Every problem needs one.
        level: Coverage of the interval, in (0, 1).
        num_resamples: Bootstrap draws.
        key: Random key; the same key gives the same interval.

    Returns:
        The statistic of the data and the ends of its interval, each of the statistic's shape.

    Raises:
        ValueError: If `level` or `num_resamples` is out of range, shapes differ, or a problem has no trial.

    Example:
        >>> solved_len = jnp.array([[3.0, jnp.inf], [2.0, 4.0], [jnp.inf, jnp.inf]])
        >>> mean = lambda lengths, mask: jnp.mean(lengths <= 4)
        >>> interval = bootstrap_interval(mean, solved_len, key=jax.random.key(0))
        >>> bool(interval.low < interval.estimate < interval.high)
        True

    References:
        Davison & Hinkley, Bootstrap Methods and Their Application (1997), section 3.8 (hierarchical data).
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1); got {level}. Use 0.95 for 95 %.")
    if num_resamples < 2:
        raise ValueError(f"num_resamples must be at least 2; got {num_resamples}")
    values = jnp.asarray(values)
    mask = jnp.asarray(np.ones(values.shape, bool)) if mask is None else jnp.asarray(mask)
    if values.ndim != 2 or mask.shape != values.shape:
        raise ValueError(f"values and mask must both be [Q, R]; got shapes {values.shape} and {mask.shape}")
    if not np.asarray(mask).any(1).all():
        raise ValueError("every problem needs a trial; leave out the problems that have none")

    # The key seeds NumPy: outside `jit` it draws as well, and JAX's generator takes seconds to compile on a CPU.
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    shape = (_RESAMPLES_AT_ONCE, values.shape[0], values.shape[1] + 1)
    rounds = [
        _resample(statistic, values, mask, jnp.asarray(rng.random(shape, np.float32)))
        for _ in range(-(-num_resamples // _RESAMPLES_AT_ONCE))
    ]
    estimate = np.asarray(rounds[0][0])
    resampled = np.concatenate([np.asarray(drawn) for _, drawn in rounds])[:num_resamples]
    tail = (1 - level) / 2
    ends = np.quantile(resampled, [tail, 1 - tail], axis=0) + (estimate - resampled.mean(0))
    low, high = jnp.asarray(ends.astype(estimate.dtype))
    return Interval(estimate=jnp.asarray(estimate), low=low, high=high)


@partial(jax.jit, static_argnums=0)
def _resample(statistic: Statistic, values: Array, mask: Array, share_SQR: Array) -> tuple[Array, Array]:
    """Return the statistic of the data, and that of one resample for each of the S draws of shares in [0, 1)."""
    # Existing trials first, so that a drawn position below the count is an existing trial.
    order = jnp.argsort(~mask, axis=1, stable=True)
    values, count = jnp.take_along_axis(values, order, 1), mask.sum(1)
    num_problems, num_trials = values.shape
    column = jnp.arange(num_trials)[None, :]

    def resample(share: Array) -> Array:
        q = _pick(share[:, 0], jnp.int32(num_problems))
        r = _pick(share[:, 1:], count[q][:, None])
        return statistic(values[q[:, None], r], column < count[q][:, None])

    return statistic(values, column < count[:, None]), jax.vmap(resample)(share_SQR)


def _pick(share: Array, count: Array) -> Array:
    """Turn shares in [0, 1) into whole numbers below `count`; the product may round up to it."""
    return jnp.minimum((share * count.astype(share.dtype)).astype(jnp.int32), count.astype(jnp.int32) - 1)
