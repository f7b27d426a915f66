"""Straight lines on log-log paper: how tokens, budgets or KV bytes grow with cost or size, and how surely."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Array, Float

from ._allocate import allocate
from ._allocation import Allocation, percentiles
from ._tradeoff import Tradeoff


@dataclass(frozen=True, kw_only=True)
class PowerLaw:
    """Describe value = coefficient * x ** exponent.

    Attributes:
        coefficient: Value at x = 1.
        exponent: Slope in log-log.
        exponent_stderr: Standard error of the slope; NaN where two points leave none.
        exponent_low: Lower end of the interval of the slope; NaN likewise.
        exponent_high: Upper end.
        level: Coverage of the interval.
    """

    coefficient: float
    exponent: float
    exponent_stderr: float
    exponent_low: float
    exponent_high: float
    level: float

    @property
    def factor_per_doubling(self) -> float:
        """Factor by which the value grows when x doubles."""
        return 2.0**self.exponent

    @property
    def factor_low(self) -> float:
        """Lower end of the interval of the factor per doubling."""
        return 2.0**self.exponent_low

    @property
    def factor_high(self) -> float:
        """Upper end of the interval of the factor per doubling."""
        return 2.0**self.exponent_high

    def __call__(self, x: Float[Array | np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """Return the law's value at x."""
        return self.coefficient * np.asarray(x) ** self.exponent


def fit_power_law(
    x: Float[Array | np.ndarray, " S"], value: Float[Array | np.ndarray, " S"], *, level: float = 0.95
) -> PowerLaw:
    """Fit value = a x^b by least squares in log-log, with Student's interval of b.

    The interval holds for independent points. Points of one frontier share their problems: `choice_power_law`.

    Args:
        x: Cost or size, positive.
        value: What grows with it, positive.
        level: Coverage of the interval, in (0, 1).

    Returns:
        The law.

    Raises:
        ValueError: If there are fewer than two different x, a number is not positive and finite, or the level is out
            of range.

    Example:
        >>> law = fit_power_law(np.array([1.0, 2.0, 4.0]), np.array([3.0, 6.0, 12.0]))
        >>> round(law.coefficient, 6), round(law.exponent, 6), round(law.factor_per_doubling, 6)
        (3.0, 1.0, 2.0)

    References:
        PAPER.md section 6 (1.74x tokens and 1.18x budget per doubling of cost); Figs. 5a, 7, 23.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1); got {level}. Use 0.95 for 95 %.")
    xs, values = np.asarray(x, dtype=np.float64), np.asarray(value, dtype=np.float64)
    numbers = np.concatenate([xs.ravel(), values.ravel()])
    if xs.shape != values.shape or not np.all(np.isfinite(numbers) & (numbers > 0)):
        raise ValueError("a power law needs pairs of positive finite numbers. Drop the points that are not.")
    if np.unique(xs).size < 2:
        raise ValueError(f"a slope needs at least two different x; got {np.unique(xs).size}")
    log_x, log_value = np.log(xs), np.log(values)
    exponent, intercept = _line(log_x, log_value)
    residual = log_value - intercept - exponent * log_x
    freedom = xs.size - 2
    spread = ((log_x - log_x.mean()) ** 2).sum()
    stderr = float(np.sqrt(residual @ residual / freedom / spread)) if freedom > 0 else float("nan")
    width = stderr * _student_quantile(level, freedom) if freedom > 0 else float("nan")
    return PowerLaw(
        coefficient=float(np.exp(intercept)),
        exponent=exponent,
        exponent_stderr=stderr,
        exponent_low=exponent - width,
        exponent_high=exponent + width,
        level=level,
    )


def choice_power_law(
    tradeoff: Tradeoff,
    budgets: Float[Array, " X"],
    what: Literal["gen_len", "num_trials", "budget_len", "num_tokens"],
    *,
    allocation: Callable[[Tradeoff, Float[Array, " X"]], Allocation] = allocate,
    level: float = 0.95,
    num_resamples: int = 200,
    seed: int = 0,
) -> PowerLaw:
    """Fit how a number of the chosen candidates grows with what is spent, with a bootstrap interval over problems.

    The points are the budgets that serve half of the requests or more and spend more than every smaller one. Each
    resample of the problems chooses anew at every budget and fits its own line; the interval is the percentiles of
    their slopes. Points of one frontier move together, and so do the choices of problems that share a price: an
    interval that takes the points for independent, or the choices for given, is wrong by a factor. Choices that the
    grid of candidates cuts off flatten the line: read it where there is room on both sides.

    Args:
        tradeoff: Prices and successes.
        budgets: Budgets to choose at [in the price of the tradeoff].
        what: "num_tokens" (trials times limit), "gen_len", "num_trials" or "budget_len" (dense choices do not count).
        allocation: `allocate` (caps) or `allocate_average`.
        level: Coverage of the interval, in (0, 1).
        num_resamples: Bootstrap draws; each is an allocation.
        seed: Seed of the bootstrap.

    Returns:
        The law of the number against the mean price of a request.

    Raises:
        ValueError: If fewer than two such budgets chose anything with that number.

    References:
        PAPER.md sections 5 and 6, Figs. 7 and 23; the paper fits a line and states no interval.
    """
    points = _choice_points(allocation(tradeoff, budgets), what)
    if np.unique(points[0]).size < 2:
        raise ValueError(f"a slope of {what} needs two budgets that choose one; got {points.shape[1]}. Raise them.")
    law = fit_power_law(*points, level=level)
    rng, num_problems, slopes = np.random.default_rng(seed), len(tradeoff.problems), []
    for _ in range(num_resamples):
        drawn = _choice_points(allocation(tradeoff.take(rng.integers(num_problems, size=num_problems)), budgets), what)
        if np.unique(drawn[0]).size >= 2:
            slopes.append(_line(*np.log(drawn))[0])
    if not slopes:
        return replace(law, exponent_stderr=math.nan, exponent_low=math.nan, exponent_high=math.nan)
    low, high = percentiles(np.array(slopes), level=level, num_problems=num_problems)
    stderr = float(np.std(slopes)) if num_problems > 1 else math.nan
    return replace(law, exponent_stderr=stderr, exponent_low=float(low), exponent_high=float(high))


def _choice_points(allocation: Allocation, what: str) -> np.ndarray:
    """Return spending and mean choice at each budget that serves and chose such a number, [2, points]."""
    points = np.stack([np.asarray(allocation.spent, dtype=np.float64), allocation.mean_choice(what)])
    return points[:, allocation.is_serving & np.isfinite(points[1])]


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Return slope and intercept of the least-squares line."""
    centred = x - x.mean()
    slope = float(centred @ y / (centred @ centred))
    return slope, float(y.mean() - slope * x.mean())


def _student_quantile(level: float, freedom: int) -> float:
    """Return t with P(|T| <= t) = level, by halving: no SciPy for one number."""
    low, high = 0.0, 1.0
    while _student_coverage(high, freedom) < level:
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_coverage(middle, freedom) < level else (low, middle)
    return (low + high) / 2


def _student_coverage(t: float, freedom: int) -> float:
    """Return P(|T| <= t) of Student's distribution: a finite sum for whole degrees (Abramowitz & Stegun 26.7.3-4)."""
    angle, odd = math.atan(t / math.sqrt(freedom)), freedom % 2
    term, total = (math.cos(angle) if odd else 1.0), 0.0
    for power in range(odd + 1, freedom, 2):
        total += term
        term *= power / (power + 1) * math.cos(angle) ** 2
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total
