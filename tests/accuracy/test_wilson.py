"""The interval of a plain accuracy: coverage by simulation, and its width where the bootstrap has none."""

import numpy as np
import pytest

from kinetics_jax.accuracy import accuracy_interval


@pytest.mark.parametrize(("alpha", "beta"), [(1, 1), (0.5, 20), (50, 1), (1e6, 1e6)])
def test_holds_the_truth_about_as_often_as_it_says(alpha, beta):
    # Problems of all difficulties, nearly all wrong, nearly all right, all alike.
    rng = np.random.default_rng(0)
    right = rng.binomial(8, rng.beta(alpha, beta, (2000, 30)))
    interval = accuracy_interval(right, np.full((2000, 30), 8))
    truth = alpha / (alpha + beta)
    assert 0.92 <= np.mean((interval.low <= truth) & (truth <= interval.high)) <= 0.99


def test_all_right_and_all_wrong_keep_a_width():
    # Wilson's interval of 30 of 30: from 30 / (30 + 1.96^2).
    for num_trials in (1, 8):
        right = np.array([np.full(30, num_trials), np.zeros(30, int)])
        interval = accuracy_interval(right, np.full((2, 30), num_trials))
        np.testing.assert_allclose(interval.low, [30 / (30 + 1.959964**2), 0], atol=1e-6)
        np.testing.assert_allclose(interval.high, [1, 1.959964**2 / (30 + 1.959964**2)], atol=1e-6)
        np.testing.assert_array_equal(interval.estimate, [1, 0])


def test_trials_of_alike_problems_all_count():
    # 5 of 10 right in each of 4 problems: Wilson's interval of 20 in 40.
    interval = accuracy_interval(np.full(4, 5), np.full(4, 10))
    z = 1.959964
    half = z * np.sqrt(0.25 / 40 + z**2 / (4 * 40**2)) / (1 + z**2 / 40)
    np.testing.assert_allclose([interval.low, interval.high], [0.5 - half, 0.5 + half], rtol=1e-5)


def test_no_last_bit_makes_all_right_problems_differ():
    """Summed in single precision, 41 ones over 41 are not 1, and 41 times 1/3 is not 41/3."""
    for num_problems in (41, 61):
        right = np.array([np.full(num_problems, 3), np.full(num_problems, 1)])
        interval = accuracy_interval(right, np.full((2, num_problems), 3))
        z2 = 1.959964**2
        np.testing.assert_array_equal(interval.estimate, np.array([1, 1 / 3], np.float32))
        np.testing.assert_allclose(interval.low[0], num_problems / (num_problems + z2), rtol=1e-6)


def test_a_problem_of_many_trials_does_not_speak_for_others():
    # Equal shares of 500 and 2 trials: the variance p(1 - p) (1/500 + 1/2) / 4 of their mean is that of 7.97 trials.
    interval = accuracy_interval(np.array([250, 1]), np.array([500, 2]))
    z, n = 1.959964, 4 / (1 / 500 + 1 / 2)
    half = z * np.sqrt(0.25 / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    np.testing.assert_allclose([interval.low, interval.high], [0.5 - half, 0.5 + half], rtol=1e-5)


@pytest.mark.parametrize(
    ("right", "trials", "words"),
    [
        ([1], [2], "needs two or more; got 1"),
        ([3, 1], [2, 2], "got num_correct=3, num_trials=2"),
        ([0, 1], [0, 2], "got num_correct=0, num_trials=0"),
    ],
)
def test_refuses_bad_counts(right, trials, words):
    with pytest.raises(ValueError, match=words):
        accuracy_interval(np.array(right), np.array(trials))
