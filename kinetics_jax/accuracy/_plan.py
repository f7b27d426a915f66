"""How many problems and how many trials of each for an interval of a wanted width, judged from a pilot."""

from dataclasses import dataclass
from math import inf, sqrt
from statistics import NormalDist

import numpy as np
from jaxtyping import Bool, Num

from ._require import existing, require_level


@dataclass(frozen=True, kw_only=True)
class VarianceComponents:
    """Hold where the noise of a mean over problems and trials comes from.

    Attributes:
        between: Variance of the problems' true means.
        within: Variance of the trials of one problem, averaged over problems.

    Raises:
        ValueError: If one is negative or not finite, or both are 0.
    """

    between: float
    within: float

    def __post_init__(self) -> None:
        if not (0 <= self.between < inf and 0 <= self.within < inf):
            raise ValueError(f"variances must be finite and at least 0; got {self.between} and {self.within}")
        if self.between == self.within == 0:
            raise ValueError(
                "both variances are 0: where all trials agree nothing can be planned. Take a pilot of problems "
                "that are not all solved or all missed, or the worst case of a share: between=0.25, within=0.0."
            )


@dataclass(frozen=True, kw_only=True)
class SamplePlan:
    """Hold how much to draw and how far that will reach.

    Attributes:
        num_problems: Problems Q.
        num_trials: Trials R of each problem.
        half_width: Half the width that the interval is expected to have.
        level: Coverage of the interval.
    """

    num_problems: int
    num_trials: int
    half_width: float
    level: float

    @property
    def num_samples(self) -> int:
        """Trials in all, Q R."""
        return self.num_problems * self.num_trials


def variance_components(
    values: Num[np.ndarray, "Q R"] | Bool[np.ndarray, "Q R"], mask: Bool[np.ndarray, "Q R"] | None = None
) -> VarianceComponents:
    r"""Split the variance of a pilot into that between problems and that within them, both without bias.

    $$ \sigma_w^2 = \frac{1}{Q} \sum_q s_q^2, \qquad
       \sigma_b^2 = \operatorname{var}_q(\bar v_q) - \frac{1}{Q} \sum_q s_q^2 / n_q $$

    s_q^2 is the variance of the n_q trials of problem q. A negative sigma_b^2 (chance alone makes one) becomes 0.

    Args:
        values: One number a trial: right or not; for the difference between two ways of solving the same problems,
            right under the first less right under the second.
        mask: Whether the trial exists; None for all. Every problem needs two.

    Returns:
        The two variances.

    Raises:
        ValueError: If there are fewer than two problems, or fewer than two trials of one, an existing value is not
            finite, or the pilot has no variance at all.

    Example:
        >>> variance_components(np.array([[1, 1, 1, 0], [0, 0, 0, 1], [1, 0, 1, 0]]))
        VarianceComponents(between=0.0, within=0.277...)

    References:
        Searle, Casella & McCulloch, Variance Components (1992), chapter 3 (one-way classification).
    """
    values = np.asarray(values).astype(float)
    mask = np.asarray(existing(mask, values.shape))
    if values.ndim != 2 or mask.shape != values.shape:
        raise ValueError(f"values and mask must both be [Q, R]; got shapes {values.shape} and {mask.shape}")
    if not np.isfinite(values[mask]).all():
        raise ValueError("values must be finite where mask is True. Leave out what was not graded by the mask.")
    count = mask.sum(1)
    if len(values) < 2 or (count < 2).any():
        raise ValueError(
            f"a pilot needs two problems and two trials of each; got {len(values)} problems, the least with "
            f"{min(count, default=0)} trials. Draw more, or leave out problems with one trial."
        )
    mean = values.sum(1, where=mask) / count
    square = ((values - mean[:, None]) ** 2).sum(1, where=mask) / (count - 1)
    between = max(mean.var(ddof=1) - (square / count).mean(), 0.0)
    return VarianceComponents(between=float(between), within=float(square.mean()))


def plan_samples(
    components: VarianceComponents,
    *,
    half_width: float,
    level: float = 0.95,
    problem_cost: float = 0.0,
    max_problems: int | None = None,
    max_trials: int = 1024,
) -> SamplePlan:
    r"""Find the cheapest numbers of problems and trials whose mean is known to a half-width.

    $$ \min_{Q, R} \; Q \, (c + R) \quad \text{s.t.} \quad z \sqrt{\sigma_b^2 / Q + \sigma_w^2 / (Q R)} \le h $$

    Without a cost of problems and a limit on them one trial each is best: a new problem tells more than a new trial.
    z is that of the normal law: with fewer than about 20 problems intervals come out somewhat wider. The pilot's
    variances are themselves uncertain, by about a share sqrt(2 / Q) of `between`.

    Args:
        components: Variances of a pilot, of `variance_components`.
        half_width: Wanted half of the interval's width, in units of the values (0.02 for 2 points).
        level: Coverage of the interval, in (0, 1).
        problem_cost: Cost of a problem beside its trials, in trials (writing it, reading its prompt).
        max_problems: Problems there are; None for any number.
        max_trials: Most trials of a problem.

    Returns:
        At least two problems, the trials of each, and the half-width that they give: the cheapest plan, of equals the
        one with the fewest trials a problem.

    Raises:
        ValueError: If an argument is out of range, or no number of trials is enough for the problems there are.

    Example:
        >>> pilot = VarianceComponents(between=0.10, within=0.15)
        >>> plan_samples(pilot, half_width=0.05, problem_cost=8.0).num_trials
        3
        >>> plan_samples(pilot, half_width=0.12, max_problems=30).num_trials
        13

    References:
        Cochran, Sampling Techniques (1977), section 10.6 (two-stage samples).
    """
    require_level(level)
    if not 0 < half_width < inf:
        raise ValueError(f"half_width must be positive; got {half_width}. Use 0.02 for 2 points of accuracy.")
    if not 0 <= problem_cost < inf:
        raise ValueError(f"problem_cost must be at least 0 trials; got {problem_cost}")
    if max_trials < 1 or (max_problems is not None and max_problems < 2):
        raise ValueError(f"max_trials must be at least 1, max_problems 2; got {max_trials} and {max_problems}")
    z = NormalDist().inv_cdf((1 + level) / 2)
    num_trials = np.arange(1, max_trials + 1)
    variance = components.between + components.within / num_trials
    # The tiny step down keeps a ratio that is whole but for rounding from costing a problem more.
    num_problems = np.maximum(np.ceil((z / half_width) ** 2 * variance * (1 - 1e-12)), 2)
    cost = num_problems * (problem_cost + num_trials)
    if max_problems is not None:
        cost = np.where(num_problems <= max_problems, cost, inf)
        if not (cost < inf).any():
            reach = z * sqrt(float(variance[-1]) / max_problems)
            raise ValueError(
                f"{max_problems} problems with {max_trials} trials each reach a half-width of {reach:.4g}; wanted "
                f"{half_width}. Add problems: the spread between them stays, however many trials each has."
            )
    best = int(np.argmin(cost))
    return SamplePlan(
        num_problems=int(num_problems[best]),
        num_trials=best + 1,
        half_width=z * sqrt(float(variance[best] / num_problems[best])),
        level=level,
    )
