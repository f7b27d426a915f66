"""The two-level bootstrap: does its interval hold the truth as often as it says?"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kinetics_jax.accuracy import bootstrap_interval, pass_at_k


def mean(values, mask):
    return jnp.where(mask, values, 0).sum() / mask.sum(dtype=values.dtype)


def mean_and_max(values, mask):
    return jnp.stack([jnp.where(mask, values, 0).mean(), values.max()])


def coverage(values, mask):
    return pass_at_k(jnp.where(mask, values, 0).sum(1), mask.sum(1), 4).mean()


# One shape and one number of resamples for all tests: each statistic compiles once.
SHAPE, NUM_RESAMPLES = (30, 8), 200


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
    # Trials of one problem all agree, so the error is that of 30 coin flips: sqrt(.25 / 30) * 1.96 to each side.
    values = jnp.asarray(np.tile(np.arange(30, dtype=np.float32)[:, None] % 2, (1, 8)))
    intervals = [
        bootstrap_interval(mean, values, num_resamples=NUM_RESAMPLES, key=draw) for draw in jax.random.split(key, 20)
    ]
    width = np.mean([interval.high - interval.low for interval in intervals])
    np.testing.assert_allclose(width, 2 * 1.96 * np.sqrt(0.25 / 30), rtol=0.1)


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


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"level": 1.0}, "level must lie in"),
        ({"num_resamples": 1}, "num_resamples must be at least 2"),
        ({"mask": jnp.zeros((3, 2), bool)}, "every problem needs a trial"),
    ],
)
def test_refuses_bad_input(change, words, key):
    with pytest.raises(ValueError, match=words):
        bootstrap_interval(mean, jnp.ones((3, 2)), **{"key": key, **change})
