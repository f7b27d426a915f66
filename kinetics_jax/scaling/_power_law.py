"""Straight lines on log-log paper: how tokens, budgets or KV bytes grow with cost or size."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Array, Float


@dataclass(frozen=True, kw_only=True)
class PowerLaw:
    """Describe value = coefficient * x ** exponent.

    Attributes:
        coefficient: Value at x = 1.
        exponent: Slope in log-log.
        exponent_stderr: Standard error of the slope (least squares); NaN from two points.
    """

    coefficient: float
    exponent: float
    exponent_stderr: float

    @property
    def factor_per_doubling(self) -> float:
        """Factor by which the value grows when x doubles."""
        return 2.0**self.exponent

    def __call__(self, x: Float[Array | np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """Return the law's value at x."""
        return self.coefficient * np.asarray(x) ** self.exponent


def fit_power_law(x: Float[Array | np.ndarray, " S"], value: Float[Array | np.ndarray, " S"]) -> PowerLaw:
    """Fit value = a x^b by least squares in log-log.

    Args:
        x: Cost or size, positive.
        value: What grows with it, positive.

    Returns:
        The law.

    Raises:
        ValueError: If there are fewer than two different x, or a number is not positive and finite.

    Example:
        >>> law = fit_power_law(np.array([1.0, 2.0, 4.0]), np.array([3.0, 6.0, 12.0]))
        >>> round(law.coefficient, 6), round(law.exponent, 6), round(law.factor_per_doubling, 6)
        (3.0, 1.0, 2.0)

    References:
        PAPER.md section 6 (1.74x tokens and 1.18x budget per doubling of cost); Figs. 5a, 7, 23.
    """
    xs, values = np.asarray(x, dtype=np.float64), np.asarray(value, dtype=np.float64)
    numbers = np.concatenate([xs.ravel(), values.ravel()])
    if xs.shape != values.shape or not np.all(np.isfinite(numbers) & (numbers > 0)):
        raise ValueError("a power law needs pairs of positive finite numbers. Drop the points that are not.")
    if np.unique(xs).size < 2:
        raise ValueError(f"a slope needs at least two different x; got {np.unique(xs).size}")
    log_x, log_value = np.log(xs), np.log(values)
    centred = log_x - log_x.mean()
    exponent = float(centred @ log_value / (centred @ centred))
    intercept = log_value.mean() - exponent * log_x.mean()
    residual = log_value - intercept - exponent * log_x
    freedom = xs.size - 2
    stderr = float(np.sqrt(residual @ residual / freedom / (centred @ centred))) if freedom > 0 else float("nan")
    return PowerLaw(coefficient=float(np.exp(intercept)), exponent=exponent, exponent_stderr=stderr)
