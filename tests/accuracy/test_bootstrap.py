"""The two-level bootstrap: does its interval hold the truth as often as it says?"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kinetics_jax.accuracy import bootstrap_interval, paired_difference, pass_at_k


def mean(values, mask):
    return jnp.where(mask, values, 0).sum() / mask.sum(dtype=values.dtype)


def mean_and_max(values, mask):
    return jnp.stack([jnp.where(mask, values, 0).mean(), values.max()])


def coverage(values, mask):
    return pass_at_k(jnp.where(mask, values, 0).sum(1), mask.sum(1), 4).mean()


# One shape and one number of resamples for all tests: each statistic compiles once.
SHAPE, NUM_RESAMPLES = (30, 8), 128


def test_constant_data_has_no_width(key):
    interval = bootstrap_interval(mean, jnp.asarray(np.ones(SHAPE, np.float32)), num_resamples=NUM_RESAMPLES, key=key)
    np.testing.assert_allclose([interval.estimate, interval.low, interval.high], 1.0, rtol=1e-6)


def test_same_key_same_interval_and_vector_statistics(key):
    values = jnp.asarray(np.random.default_rng(0).random(SHAPE, np.float32))
    both = [bootstrap_interval(mean_and_max, values, num_resamples=NUM_RESAMPLES, key=key) for _ in range(2)]
    assert both[0].estimate.shape == both[0].low.shape == both[0].high.shape == (2,)
    np.testing.assert_array_equal(both[0].low, both[1].low)
    np.testing.assert_array_equal(both[0].high, both[1].high)


def test_missing_trials_are_never_drawn(key):
    # Each problem has trials of 1 and 3 and a missing one of NaN; one has a single trial.
    values = np.tile(np.array([1, 3, np.nan, 1, 3, np.nan, 1, 3], np.float32), (SHAPE[0], 1))
    values[0, 1:] = np.nan
    interval = bootstrap_interval(
        mean, jnp.asarray(values), jnp.asarray(~np.isnan(values)), num_resamples=NUM_RESAMPLES, key=key
    )
    np.testing.assert_allclose(interval.estimate, np.nanmean(values), rtol=1e-6)
    assert 1.0 <= interval.low < interval.high <= 3.0


def test_width_matches_theory_when_problems_are_alike(key):
    # Trials of one problem all agree: 30 coin flips of estimated variance, so 2.045 is Student's t.
    values = jnp.asarray(np.tile(np.arange(30, dtype=np.float32)[:, None] % 2, (1, 8)))
    intervals = [
        bootstrap_interval(mean, values, num_resamples=NUM_RESAMPLES, key=draw) for draw in jax.random.split(key, 20)
    ]
    width = np.mean([interval.high - interval.low for interval in intervals])
    np.testing.assert_allclose(width, 2 * 2.045 * np.sqrt(0.25 / 29), rtol=0.07)


@pytest.mark.parametrize(("statistic", "k"), [(mean, 1), (coverage, 4)])
def test_holds_the_truth_about_as_often_as_it_says(statistic, k, key):
    # Problems of chance p ~ Beta(1, 1): E[1 - (1 - p)^k] = 1 - 1/(k + 1). The percentile interval of pass@4 of
    # 8 trials would sit too low; moved onto the estimate it holds.
    truth, num_studies = 1 - 1 / (k + 1), 60
    rng = np.random.default_rng(0)
    studies = (rng.random((num_studies, *SHAPE)) < rng.random((num_studies, SHAPE[0], 1))).astype(np.float32)
    holds = [
        interval.low <= truth <= interval.high
        for study, study_key in zip(studies, jax.random.split(key, num_studies), strict=True)
        for interval in [
            bootstrap_interval(statistic, jnp.asarray(study), level=0.9, num_resamples=NUM_RESAMPLES, key=study_key)
        ]
    ]
    assert np.mean(holds) >= 0.85  # 0.9 is promised; 60 studies have a standard error of 0.04


def studies_of_pairs(num_studies):
    """Draw right and wrong for a and b on shared problems: p ~ Beta(1, 1) and 0.8 p, so that a - b is 0.1."""
    rng = np.random.default_rng(1)
    chance = rng.random((num_studies, SHAPE[0], 1))
    right = [rng.random((num_studies, *SHAPE)) < share * chance for share in (1.0, 0.8)]
    return [jnp.asarray(values, jnp.float32) for values in right]


@pytest.mark.parametrize(("draw", "least", "most"), [("both", 0.9, 1.0), ("problems", 0.8, 0.98)])
def test_paired_difference_holds_the_truth(draw, least, most, key):
    num_studies = 40
    holds, widths = [], []
    for a, b, study_key in zip(*studies_of_pairs(num_studies), jax.random.split(key, num_studies), strict=True):
        interval = paired_difference(mean, a, b, level=0.9, num_resamples=NUM_RESAMPLES, draw=draw, key=study_key)
        holds.append(interval.low <= 0.1 <= interval.high)
        widths.append(interval.high - interval.low)
    assert least <= np.mean(holds) <= most  # 0.9 is promised; 40 studies have a standard error of 0.05
    # Unpaired, the spread of difficulty would stay: 2 * 1.645 * sqrt((1/12 + 1/12 * .64) / 30) without any trial noise.
    assert np.mean(widths) < 2 * 1.645 * np.sqrt((1 / 12 + 0.64 / 12) / 30)


def test_paired_difference_of_one_and_the_same_is_centred_on_nothing(key):
    values = jnp.asarray(np.tile(np.arange(30, dtype=np.float32)[:, None] % 2, (1, 8)))
    interval = paired_difference(mean, values, values, num_resamples=NUM_RESAMPLES, key=key)
    # Trials of one problem agree: all the spread is between problems, and it cancels.
    np.testing.assert_array_equal([interval.estimate, interval.low, interval.high], [0, 0, 0])


def test_paired_difference_takes_other_numbers_of_trials_and_vectors(key):
    few = jnp.asarray(np.random.default_rng(0).random((30, 3), np.float32))
    many = jnp.asarray(np.random.default_rng(1).random(SHAPE, np.float32)) - 1
    interval = paired_difference(mean_and_max, few, many, num_resamples=NUM_RESAMPLES, key=key)
    np.testing.assert_allclose(interval.estimate, [few.mean() - many.mean(), few.max() - many.max()], rtol=1e-5)
    other = paired_difference(mean_and_max, many, few, num_resamples=NUM_RESAMPLES, key=key)
    np.testing.assert_allclose(other.estimate, -interval.estimate, rtol=1e-5)
    assert (interval.low <= interval.estimate).all()
    assert (interval.estimate <= interval.high).all()


def test_fixed_problems_show_the_noise_of_trials_only(key):
    # 0, 1, 0, 1, ... in every problem: 240 coin flips, each problem with its own estimate of the variance.
    values = jnp.asarray(np.tile(np.arange(8, dtype=np.float32) % 2, (30, 1)))
    intervals = [
        bootstrap_interval(mean, values, num_resamples=NUM_RESAMPLES, draw="trials", key=draw)
        for draw in jax.random.split(key, 20)
    ]
    width = np.mean([interval.high - interval.low for interval in intervals])
    np.testing.assert_allclose(width, 2 * 1.96 * np.sqrt(0.25 * 8 / 7 / 240), rtol=0.07)
    whole = bootstrap_interval(mean, values, num_resamples=NUM_RESAMPLES, draw="problems", key=key)
    np.testing.assert_allclose([whole.low, whole.high], 0.5, rtol=1e-6)  # all problems have the same mean


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"level": 1.0}, "level must lie in"),
        ({"num_resamples": 1}, "num_resamples must be at least 2"),
        ({"mask": jnp.zeros((3, 2), bool)}, "every problem needs a trial"),
        ({"values": jnp.ones((1, 2))}, "needs two problems or more; got 1"),
        ({"values": jnp.ones((3, 1)), "draw": "trials"}, "needs two trials of every problem"),
        ({"values": jnp.full((3, 2), jnp.nan)}, "values must be numbers or inf where mask is True; got NaN"),
        ({"statistic": lambda values, mask: values.sum() * jnp.nan}, "the statistic must be finite"),
        # The data are finite enough; a resample may not be.
        ({"statistic": lambda values, mask: values[0, 0], "values": jnp.array([[1.0], [jnp.inf]])}, "must be finite"),
    ],
)
def test_refuses_bad_input(change, words, key):
    with pytest.raises(ValueError, match=words):
        bootstrap_interval(**{"statistic": mean, "values": jnp.ones((3, 2)), "key": key, **change})


def test_paired_difference_refuses_other_problems(key):
    # The type checker of the tests would stop the call before the function does.
    with pytest.raises(ValueError, match="the same problems; got 3 and 2"):
        inspect.unwrap(paired_difference)(mean, jnp.ones((3, 2)), jnp.ones((2, 2)), key=key)
