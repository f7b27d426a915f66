"""Accuracy and coverage at length limits, against counting by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kinetics_jax.accuracy import accuracy_at_len, coverage_at_len, num_solved_at_len

INF = np.inf
SOLVED_LEN = np.array([[3.0, 8.0, INF, 1.0], [INF, INF, INF, INF], [5.0, 5.0, 5.0, 2.0]])
LIMITS = np.array([0, 1, 4, 5, 8, 100])


def test_counts_by_hand():
    expected = [[0, 1, 2, 2, 3, 3], [0, 0, 0, 0, 0, 0], [0, 0, 1, 4, 4, 4]]
    np.testing.assert_array_equal(num_solved_at_len(SOLVED_LEN, LIMITS), expected)
    np.testing.assert_allclose(accuracy_at_len(SOLVED_LEN, LIMITS), np.array(expected) / 4, rtol=1e-6)


def test_missing_trials_do_not_count():
    mask = np.array([[True, True, False, False], [True, False, False, False], [True, True, True, True]])
    np.testing.assert_allclose(
        accuracy_at_len(SOLVED_LEN, np.array([4, 8]), mask), [[1 / 2, 1], [0, 0], [1 / 4, 1]], rtol=1e-6
    )


def test_an_ungraded_trial_may_be_left_out():
    solved_len, mask = SOLVED_LEN.copy(), np.ones((3, 4), bool)
    solved_len[0, 1], mask[0, 1] = np.nan, False
    np.testing.assert_allclose(accuracy_at_len(solved_len, np.array([4, 8]), mask)[0], [2 / 3, 2 / 3], rtol=1e-6)


def test_coverage_by_hand():
    # Two of four trials are right within 4 tokens: of the six pairs one holds neither.
    np.testing.assert_allclose(coverage_at_len(SOLVED_LEN[0], np.array([4]), 2), [5 / 6], rtol=1e-6)
    per_limit = coverage_at_len(SOLVED_LEN, np.array([4, 4]), np.array([1, 2]))
    np.testing.assert_allclose(per_limit, [[1 / 2, 5 / 6], [0, 0], [1 / 4, 1 / 2]], rtol=1e-6)


@settings(max_examples=20)  # of six rows each
@given(hnp.arrays(np.float64, (2, 3, 4), elements=st.sampled_from([1.0, 4.0, 9.0, INF])))
def test_never_falls_with_the_limit_or_with_k(solved_len):
    limits = np.array([0, 1, 5, 9])
    accuracy = np.asarray(accuracy_at_len(solved_len, limits))
    coverage = np.asarray(coverage_at_len(solved_len, limits, solved_len.shape[-1]))
    assert accuracy.shape == (*solved_len.shape[:-1], 4)
    assert (np.diff(accuracy) >= -1e-6).all()
    assert (coverage >= accuracy - 1e-6).all()
    np.testing.assert_allclose(coverage, (solved_len[..., None, :] <= limits[:, None]).any(-1), atol=1e-6)
    np.testing.assert_allclose(accuracy, (solved_len[..., None, :] <= limits[:, None]).mean(-1), rtol=1e-5)


def test_the_order_of_trials_does_not_matter():
    limits = np.array([2, 4])
    np.testing.assert_array_equal(
        accuracy_at_len(SOLVED_LEN, limits), accuracy_at_len(np.ascontiguousarray(SOLVED_LEN[:, ::-1]), limits)
    )


def test_refuses_what_has_no_answer():
    with pytest.raises(ValueError, match="solved_len must be a length or inf; got nan"):
        accuracy_at_len(np.array([1.0, np.nan]), LIMITS)
    with pytest.raises(ValueError, match="solved_len must be a length or inf; got -1"):
        accuracy_at_len(np.array([1.0, -1.0]), LIMITS)
    with pytest.raises(ValueError, match="limits must be numbers of tokens; got nan"):
        accuracy_at_len(SOLVED_LEN, np.array([1.0, np.nan]))
    with pytest.raises(ValueError, match="num_trials=0"):
        accuracy_at_len(SOLVED_LEN, LIMITS, np.zeros((3, 4), bool))
    with pytest.raises(ValueError, match="num_trials=4, k=5"):
        coverage_at_len(SOLVED_LEN, LIMITS, 5)


def test_under_jit_equals_outside_and_is_nan_without_trials():
    mask = np.ones((3, 4), bool)
    mask[1] = False
    inside = jax.jit(accuracy_at_len)(jnp.asarray(SOLVED_LEN), jnp.asarray(LIMITS), jnp.asarray(mask))
    assert jnp.isnan(inside[1]).all()
    outside = accuracy_at_len(SOLVED_LEN, LIMITS)
    np.testing.assert_allclose(np.asarray(inside)[[0, 2]], np.asarray(outside)[[0, 2]], rtol=1e-6)
