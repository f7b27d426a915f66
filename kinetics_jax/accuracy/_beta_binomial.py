"""Pass@k beyond the trials that were drawn, by a model: chances of being right spread over problems as Beta(a, b).

An unbiased estimate ends at k = n trials. Beyond it something must be assumed about problems that no trial has solved;
here it is the shape of a Beta law, and what comes out says so (`Extrapolation.is_extrapolated`). Host code in float64.
"""

from dataclasses import dataclass
from math import lgamma
from statistics import NormalDist

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, Num

from ._require import require, require_level

_LOG_SPREAD = np.linspace(-14, 14, 29)
_lgamma = np.vectorize(lgamma, otypes=[float])


@dataclass(frozen=True, kw_only=True, eq=False)
class Extrapolation:
    """Hold Pass@k under a fitted model, and where it is more than the data say.

    Attributes:
        k: Trials that are paid for.
        estimate: Pass@k of the model.
        low: Lower ends of the interval.
        high: Upper ends of the interval.
        is_extrapolated: Whether k is above the trials of some problem: no unbiased estimate exists there, and neither
            estimate nor interval is held by data.
    """

    k: Int[np.ndarray, "*shape"]
    estimate: Float[np.ndarray, "*shape"]
    low: Float[np.ndarray, "*shape"]
    high: Float[np.ndarray, "*shape"]
    is_extrapolated: Bool[np.ndarray, "*shape"]


@dataclass(frozen=True, kw_only=True, eq=False)
class BetaBinomial:
    """Hold a Beta law of the chance that a trial of a problem is right, as fitted to counts.

    Attributes:
        alpha: First parameter; the mean is alpha / (alpha + beta).
        beta: Second parameter.
        log_likelihood: Of the counts, binomial coefficients included.
        num_problems: Problems Q of the fit.
        num_trials: Least trials of a problem; beyond them `pass_at_k` extrapolates.
        is_at_edge: Whether alpha + beta ran into a limit of the search, e^-14 or e^14: every problem is all right or
            all wrong, or problems differ no more than chance lets them. The estimate is then that of the extreme, and
            there is no interval.
        alpha_without: First parameter fitted without one problem, for each pair of counts that a problem has: what
            intervals are made of.
        beta_without: Second parameter, likewise.
        num_alike: Problems that have these counts.
    """

    alpha: float
    beta: float
    log_likelihood: float
    num_problems: int
    num_trials: int
    is_at_edge: bool
    alpha_without: Float[np.ndarray, " U"]
    beta_without: Float[np.ndarray, " U"]
    num_alike: Int[np.ndarray, " U"]

    def pass_at_k(self, k: Num[ArrayLike, "*shape"], *, level: float = 0.95) -> Extrapolation:
        r"""Return Pass@k of the model for any k, with an interval by leaving out one problem at a time.

        $$ 1 - E[(1 - p)^k] = 1 - \frac{B(\alpha, \beta + k)}{B(\alpha, \beta)} $$

        The interval takes the spread of the fit over problems (jackknife, on the scale of log odds; NaN where
        `is_at_edge`). It trusts the model: a share of problems that can never be solved, which a Beta law does not
        have, is not in it. Where k is at most the trials drawn, use `accuracy.pass_at_k`, and compare the two before
        believing this one beyond.

        Args:
            k: Trials that are paid for, at least 1.
            level: Coverage of the interval, in (0, 1).

        Returns:
            Estimate, interval and the mark of extrapolation for each k.

        Raises:
            ValueError: If a k is not a whole number of at least 1.

        Example:
            >>> fit = fit_beta_binomial(np.array([0, 1, 2, 4, 4]), np.full(5, 4))
            >>> fit.pass_at_k(np.array([4, 64])).is_extrapolated.tolist()
            [False, True]

        References:
            Schaeffer et al. 2025 (arXiv 2502.17578): how pass@k scales with k is the law near p = 0;
            Brown et al. 2024 (arXiv 2407.21787).
        """
        require_level(level)
        require(
            lambda k: (k >= 1) & (k == np.floor(k)) & (k < 2**53),
            (k,),
            "k must be a whole number of at least 1 (and below 2**53); got {}.",
        )
        k = np.asarray(k).astype(int)
        log_none = _log_none(np.array(self.alpha), np.array(self.beta), k)
        without = _log_odds(_log_none(self.alpha_without, self.beta_without, k[..., None]))
        share = self.num_alike / self.num_problems
        variance = (without - (without @ share)[..., None]) ** 2 @ share
        error = np.sqrt((self.num_problems - 1) * variance)
        centre, half = _log_odds(log_none), NormalDist().inv_cdf((1 + level) / 2) * error
        known = np.nan if self.is_at_edge else 1.0
        return Extrapolation(
            k=k,
            estimate=np.asarray(-np.expm1(log_none)),
            low=np.asarray(known * np.exp(-np.logaddexp(0, half - centre))),
            high=np.asarray(known * np.exp(-np.logaddexp(0, -half - centre))),
            is_extrapolated=np.asarray(k > self.num_trials),
        )


def fit_beta_binomial(num_correct: Num[ArrayLike, " Q"], num_trials: Num[ArrayLike, " Q"]) -> BetaBinomial:
    r"""Fit a Beta law of the chance of being right to the counts of Q problems, by maximum likelihood.

    $$ \sum_q \log \binom{n_q}{c_q} + \log \frac{B(c_q + \alpha, n_q - c_q + \beta)}{B(\alpha, \beta)} $$

    With mean m and spread r = 1 / (alpha + beta) it is a sum of log(m + i r), log(1 - m + i r) and -log(1 + i r) over
    whole i, without gamma functions, and concave in m. m is found by halving; r on a grid, then by halving between the
    neighbours of the best.

    Args:
        num_correct: Right trials c of each problem.
        num_trials: Trials n of each problem.

    Returns:
        The fitted law.

    Raises:
        ValueError: If counts are out of range, or leave the law open: fewer than three problems, no problem with two
            trials, all trials right, all trials wrong, or only one problem with a right (or a wrong) trial.

    Example:
        >>> fit = fit_beta_binomial(np.array([0, 1, 2, 4, 4]), np.full(5, 4))
        >>> bool(0.5 < fit.alpha / (fit.alpha + fit.beta) < 0.6)
        True

    References:
        Griffiths 1973, Biometrics 29, on the fit; Skellam 1948 on the law.
    """
    require(
        lambda c, n: (c >= 0) & (c <= n) & (n >= 1) & (c == np.floor(c)) & (n == np.floor(n)),
        (num_correct, num_trials),
        "num_correct must be a whole number in 0..num_trials, num_trials at least 1; got {} of {}.",
    )
    right, trials = (np.asarray(count).astype(int) for count in (num_correct, num_trials))
    num = len(right)
    if num < 3 or trials.max() < 2:
        raise ValueError(
            f"a law over problems needs three of them, and two trials of one; got {num} problems, at most "
            f"{trials.max(initial=0)} trials. Draw more."
        )
    for name, count in (("right", right), ("wrong", trials - right)):
        if (count > 0).sum() < 2:
            raise ValueError(
                f"trials of two problems must be {name}; got {(count > 0).sum()}. The law is open: draw more, or "
                "take problems that are neither all solved nor all missed."
            )
    # Leaving out one problem or another with the same counts gives the same fit.
    (right, trials), num_alike = np.unique(np.stack([right, trials]), axis=1, return_counts=True)
    more_UR = np.stack([right, trials - right, trials])[..., None] > np.arange(trials.max())
    total = (more_UR * num_alike[:, None]).sum(1, keepdims=True)
    alpha, beta, spread = _fit(np.concatenate([total, total - more_UR], 1).astype(float))
    log_ways = num_alike * (_lgamma(trials + 1) - _lgamma(right + 1) - _lgamma(trials - right + 1))
    likelihood = _log_likelihood(total.astype(float), alpha[:1, None] * spread[0], spread[:1, None])
    return BetaBinomial(
        alpha=float(alpha[0]),
        beta=float(beta[0]),
        log_likelihood=float(log_ways.sum() + likelihood[0]),
        num_problems=num,
        num_trials=int(trials.min()),
        is_at_edge=bool(abs(np.log(spread[0])) > _LOG_SPREAD[-1] - 1e-3),
        alpha_without=alpha[1:],
        beta_without=beta[1:],
        num_alike=num_alike,
    )


def _fit(counts: Float[np.ndarray, "3 S R"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return alpha, beta and 1 / (alpha + beta) for S data sets that count problems with over i right, wrong, both."""
    right, wrong, both = counts
    i = np.arange(counts.shape[-1])

    def best_mean(r: np.ndarray) -> np.ndarray:
        """Return m where the slope of the likelihood in m, right / (m + i r) - wrong / (1 - m + i r), falls to 0."""
        low, high = np.zeros_like(r), np.ones_like(r)
        for _ in range(48):
            m = (low + high) / 2
            rises = (right / (m + i * r)).sum(-1, keepdims=True) > (wrong / (1 - m + i * r)).sum(-1, keepdims=True)
            low, high = np.where(rises, m, low), np.where(rises, high, m)
        return (low + high) / 2

    r = np.exp(_LOG_SPREAD)[:, None, None].repeat(counts.shape[1], 1)
    best = np.argmax(_log_likelihood(counts, best_mean(r), r), 0)
    low, high = _LOG_SPREAD[np.maximum(best - 1, 0)], _LOG_SPREAD[np.minimum(best + 1, len(_LOG_SPREAD) - 1)]
    for _ in range(10):
        # Halve four times at once: where along 17 points does the profile stop rising? At the best mean its slope is
        # the slope at that mean held still.
        points = low + (high - low) * np.linspace(0, 1, 17)[:, None]
        r = np.exp(points)[..., None]
        m = best_mean(r)
        rises = (right * i / (m + i * r) + wrong * i / (1 - m + i * r) - both * i / (1 + i * r)).sum(-1) > 0
        first = np.clip(np.logical_and.accumulate(rises).sum(0) - 1, 0, 15)
        low, high = points[first, np.arange(len(first))], points[first + 1, np.arange(len(first))]
    r = np.exp((low + high) / 2)[:, None]
    m = best_mean(r)
    return (m / r)[:, 0], ((1 - m) / r)[:, 0], r[:, 0]


def _log_likelihood(counts: np.ndarray, m: np.ndarray, r: np.ndarray) -> np.ndarray:
    right, wrong, both = counts
    i = np.arange(counts.shape[-1])
    return (right * np.log(m + i * r) + wrong * np.log(1 - m + i * r) - both * np.log(1 + i * r)).sum(-1)


def _log_none(alpha: np.ndarray, beta: np.ndarray, k: np.ndarray) -> np.ndarray:
    """Return log E[(1 - p)^k], the logarithm of B(alpha, beta + k) / B(alpha, beta)."""
    return np.asarray(_lgamma(beta + k) - _lgamma(beta) - _lgamma(alpha + beta + k) + _lgamma(alpha + beta))


def _log_odds(log_none: np.ndarray) -> np.ndarray:
    """Return the log odds of 1 - exp(log_none)."""
    return np.asarray(np.log(-np.expm1(log_none)) - log_none)
