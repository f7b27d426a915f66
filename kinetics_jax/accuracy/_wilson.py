"""An interval for a plain accuracy that keeps its width where every trial is right, or none."""

from statistics import NormalDist

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Num

from ._bootstrap import Interval
from ._require import require, require_level


def accuracy_interval(
    num_correct: Num[ArrayLike, "*batch Q"], num_trials: Num[ArrayLike, "*batch Q"], *, level: float = 0.95
) -> Interval:
    r"""Return the mean accuracy over problems like these and its score interval (Wilson), problems being clusters.

    $$ \frac{p + z^2/2n \pm z \sqrt{p (1 - p) / n + z^2 / 4 n^2}}{1 + z^2 / n}, \qquad
       n = \frac{p (1 - p)}{s^2 / Q} $$

    p averages c/r over the problems, each with equal weight, and s^2 is its variance between them, which holds the
    noise of the trials too: n is the number of independent trials that would know p as well, at most Q times the
    harmonic mean of r (all drawn, if problems have equally many). Where all are right or all wrong, s^2 = 0 shows
    nothing and n = Q: as if the trials of a problem always agreed.

    Args:
        num_correct: Right trials c of each problem.
        num_trials: Trials r of each problem, at least 1.
        level: Coverage of the interval, in (0, 1).

    Returns:
        The mean accuracy and the ends of its interval, for each entry of the batch; within [0, 1].

    Raises:
        ValueError: If there are fewer than two problems, or a count is out of range (outside `jit`).

    Example:
        >>> interval = accuracy_interval(jnp.full(30, 8), jnp.full(30, 8))
        >>> interval.estimate.item(), round(interval.low.item(), 2), interval.high.item()
        (1.0, 0.89, 1.0)

    References:
        Wilson 1927; Rao & Scott 1992 and Korn & Graubard 1998 on effective sample sizes of clustered shares.
    """
    require_level(level)
    require(
        lambda c, n: (c >= 0) & (c <= n) & (n >= 1),
        (num_correct, num_trials),
        "num_correct must lie in 0..num_trials and num_trials be at least 1; got num_correct={}, num_trials={}.",
    )
    num_problems = jnp.shape(num_correct)[-1]
    if num_problems < 2:
        raise ValueError(f"an interval over problems needs two or more; got {num_problems}. Give more problems.")
    counts = (jnp.asarray(count, float) for count in (num_correct, num_trials))
    mean, low, high = _wilson(*counts, jnp.asarray(NormalDist().inv_cdf((1 + level) / 2), float))
    return Interval(estimate=mean, low=low, high=high)


@jax.jit
def _wilson(num_correct: Array, num_trials: Array, z: Array) -> tuple[Array, Array, Array]:
    num_problems = num_correct.shape[-1]
    share = num_correct / num_trials
    # Equal shares have their value as mean and no variance, whatever the last bit of a sum says.
    is_equal = share.max(-1) == share.min(-1)
    mean = jnp.where(is_equal, share[..., 0], share.mean(-1))
    variance = jnp.where(is_equal, 0, share.var(-1, ddof=1) / num_problems)
    spread = mean * (1 - mean)
    known = spread / jnp.where(variance > 0, variance, 1)
    # As many independent trials as would know equal shares as well: Q times the harmonic mean of their numbers.
    most = num_problems**2 / (1 / num_trials).sum(-1)
    # Equal shares strictly between 0 and 1 have no variance either, but there it is the trials that disagree.
    num = jnp.where(variance > 0, jnp.minimum(known, most), jnp.where(spread > 0, most, num_problems))
    centre = (mean + z**2 / (2 * num)) / (1 + z**2 / num)
    half = z * jnp.sqrt(spread / num + z**2 / (4 * num**2)) / (1 + z**2 / num)
    return mean, jnp.clip(centre - half, 0, mean), jnp.clip(centre + half, mean, 1)
