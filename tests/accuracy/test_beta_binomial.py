"""Beta-binomial: the right law is found, agrees with the unbiased estimate within n, and says where it goes beyond."""

from math import comb, lgamma

import numpy as np
import pytest

from kinetics_jax.accuracy import fit_beta_binomial, pass_at_k


def log_beta(a, b):
    return lgamma(a) + lgamma(b) - lgamma(a + b)


def true_coverage(alpha, beta, k):
    """E[1 - (1 - p)^k] by the product of (beta + i) / (alpha + beta + i)."""
    return 1 - np.prod([(beta + i) / (alpha + beta + i) for i in range(k)])


def log_likelihood(alpha, beta, right, trials):
    return sum(
        np.log(comb(n, c)) + log_beta(c + alpha, n - c + beta) - log_beta(alpha, beta)
        for c, n in zip(right.tolist(), trials.tolist(), strict=True)
    )


@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 2.0), (6.0, 3.0)])
def test_recovers_the_law_it_was_drawn_from(alpha, beta):
    rng = np.random.default_rng(0)
    trials = rng.choice([8, 20], 20_000)
    fit = fit_beta_binomial(rng.binomial(trials, rng.beta(alpha, beta, 20_000)), trials)
    np.testing.assert_allclose([fit.alpha, fit.beta], [alpha, beta], rtol=0.05)
    assert (fit.num_problems, fit.num_trials, fit.is_at_edge) == (20_000, 8, False)
    far = fit.pass_at_k(np.array([1, 8, 64, 512]))
    np.testing.assert_allclose(far.estimate, [true_coverage(alpha, beta, k) for k in (1, 8, 64, 512)], rtol=0.01)
    np.testing.assert_array_equal(far.is_extrapolated, [False, False, True, True])


@pytest.mark.parametrize(("alpha", "beta", "num_trials"), [(0.5, 2.0, 8), (3.0, 1.0, 5)])
def test_the_unbiased_estimate_has_the_models_coverage_as_its_mean(alpha, beta, num_trials):
    right = np.arange(num_trials + 1)
    chance = [np.exp(log_likelihood(alpha, beta, right[c : c + 1], np.array([num_trials]))) for c in right]
    # Counts in these proportions: the fit is the law itself, and its coverage is the mean of the unbiased estimates.
    counts = np.repeat(right, np.round(np.array(chance) * 200_000).astype(int))
    fit = fit_beta_binomial(counts, np.full(len(counts), num_trials))
    np.testing.assert_allclose([fit.alpha, fit.beta], [alpha, beta], rtol=1e-3)
    k = np.arange(1, num_trials + 1)
    unbiased = np.asarray(pass_at_k(right[:, None], num_trials, k)).T @ np.array(chance)
    inside = fit.pass_at_k(k)
    np.testing.assert_allclose(inside.estimate, unbiased, rtol=1e-3)
    assert not inside.is_extrapolated.any()


def test_no_other_law_is_more_likely():
    rng = np.random.default_rng(3)
    for _ in range(10):
        trials = rng.integers(2, 9, 12)
        right = rng.binomial(trials, rng.beta(0.8, 1.2, 12))
        fit = fit_beta_binomial(right, trials)
        here = log_likelihood(fit.alpha, fit.beta, right, trials)
        np.testing.assert_allclose(fit.log_likelihood, here, rtol=1e-6)
        others = np.exp(rng.normal(0, 1, (100, 2)))
        nearby = np.array([[fit.alpha, fit.beta]]) * np.exp(rng.normal(0, 0.05, (20, 2)))
        assert all(log_likelihood(a, b, right, trials) <= here + 1e-6 for a, b in [*others, *nearby] if a + b < 1e5)


def test_leaves_out_one_problem_at_a_time():
    right, trials = np.array([0, 1, 2, 4, 4, 3]), np.array([4, 4, 4, 4, 4, 6])
    fit = fit_beta_binomial(right, trials)
    without = [fit_beta_binomial(np.delete(right, q), np.delete(trials, q)) for q in range(6)]
    # Two problems have the same counts; the others come once.
    assert sorted(fit.num_alike) == [1, 1, 1, 1, 2]
    np.testing.assert_allclose(
        sorted(np.repeat(fit.alpha_without, fit.num_alike)), sorted(other.alpha for other in without), rtol=1e-5
    )
    # The jackknife by hand, on the scale of log odds.
    log_odds = np.array([np.log(1 / (1 - share) - 1) for share in (other.pass_at_k(20).estimate for other in without)])
    error = np.sqrt(5 / 6 * ((log_odds - log_odds.mean()) ** 2).sum())
    far = fit.pass_at_k(20)
    centre = np.log(far.estimate / (1 - far.estimate))
    np.testing.assert_allclose(far.high, 1 / (1 + np.exp(-centre - 1.959964 * error)), rtol=1e-5)
    np.testing.assert_allclose(far.low, 1 / (1 + np.exp(-centre + 1.959964 * error)), rtol=1e-5)


def test_intervals_beyond_the_data_hold_the_truth_if_the_model_does():
    rng, truth, num_studies = np.random.default_rng(0), [true_coverage(0.5, 2.0, k) for k in (64, 512)], 40
    holds = []
    for _ in range(num_studies):
        fit = fit_beta_binomial(rng.binomial(8, rng.beta(0.5, 2.0, 30)), np.full(30, 8))
        far = fit.pass_at_k(np.array([64, 512]), level=0.9)
        assert ((far.low < far.estimate) & (far.estimate < far.high)).all()
        holds.append((far.low <= truth) & (truth <= far.high))
    assert (np.mean(holds, 0) >= 0.8).all()  # 0.9 is promised; 40 studies have a standard error of 0.05


def test_far_beyond_the_data_the_interval_still_holds_the_estimate():
    fit = fit_beta_binomial(np.array([3, 5, 6, 7, 4, 2]), np.full(6, 8))
    far = fit.pass_at_k(np.array([10, 10**4, 10**7]))
    assert ((far.low <= far.estimate) & (far.estimate <= far.high) & (far.high <= 1)).all()
    assert (np.diff(far.estimate) >= 0).all()


def test_problems_that_cannot_be_solved_fool_the_model():
    # Half of the problems are hopeless. The law does not know: beyond the data it promises far more than one half.
    rng = np.random.default_rng(0)
    right = np.concatenate([np.zeros(100, int), rng.binomial(8, 0.3, 100)])
    far = fit_beta_binomial(right, np.full(200, 8)).pass_at_k(np.array([4096]))
    assert far.is_extrapolated.all()
    assert far.low[0] > 0.6


def test_edges_are_named_and_have_no_interval():
    decided = fit_beta_binomial(np.array([0, 0, 4, 4, 4]), np.full(5, 4))
    far = decided.pass_at_k(np.array([1, 4, 1000]))
    assert decided.is_at_edge
    assert np.isnan([far.low, far.high]).all()
    np.testing.assert_allclose(far.estimate, 0.6, rtol=1e-4)
    alike = fit_beta_binomial(np.full(4, 2), np.full(4, 4))
    assert alike.is_at_edge
    np.testing.assert_allclose(alike.pass_at_k(np.array([1, 3])).estimate, [1 / 2, 7 / 8], rtol=1e-4)


@pytest.mark.parametrize(
    ("right", "trials", "words"),
    [
        ([0, 0, 0], [4, 4, 4], "two problems must be right; got 0"),
        ([4, 4, 4], [4, 4, 4], "two problems must be wrong; got 0"),
        ([1, 0, 0], [4, 4, 4], "two problems must be right; got 1"),
        ([1, 2], [4, 4], "got 2 problems"),
        ([1, 0, 1], [1, 1, 1], "at most 1 trials"),
        ([5, 0, 1], [4, 4, 4], "got 5.0 of 4.0"),
        ([1, 0, np.nan], [4, 4, 4], "got nan of 4.0"),
        ([1, 0.5, 1], [4, 4, 4], "got 0.5 of 4.0"),
        ([0, 1, 0], [0, 4, 4], "got 0.0 of 0.0"),
    ],
)
def test_refuses_counts_that_leave_the_law_open(right, trials, words):
    with pytest.raises(ValueError, match=words):
        fit_beta_binomial(np.array(right, float), np.array(trials, float))


def test_refuses_a_k_that_is_no_number_of_trials():
    fit = fit_beta_binomial(np.array([0, 1, 2]), np.full(3, 4))
    for k in (0, 1.5, np.nan, np.inf):
        with pytest.raises(ValueError, match="k must be a whole number of at least 1"):
            fit.pass_at_k(k)
