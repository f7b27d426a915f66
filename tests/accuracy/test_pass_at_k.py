"""pass@k against the exhaustive average over all ways to draw k of n trials."""

from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinetics_jax.accuracy import pass_at_k


def enumerate_pass_at_k(num_correct: int, num_trials: int, k: int) -> float:
    """Draw every subset of k trials and count those that hold a right one."""
    subsets = list(combinations(range(num_trials), k))
    return sum(any(trial < num_correct for trial in subset) for subset in subsets) / len(subsets)


@pytest.mark.parametrize("num_trials", [1, 2, 5, 8])
def test_equals_exhaustive_enumeration(num_trials):
    c, k = np.meshgrid(np.arange(num_trials + 1), np.arange(1, num_trials + 1), indexing="ij")
    exact = np.vectorize(enumerate_pass_at_k)(c, num_trials, k)
    np.testing.assert_allclose(pass_at_k(c, num_trials, k), exact, rtol=2e-6)


@pytest.mark.parametrize("k", [1, 3, 4])
def test_is_unbiased(k):
    # Average over all 2^4 outcomes of four trials that are right with chance p: exactly 1 - (1 - p)^k.
    p, outcomes = 0.3, np.array(np.meshgrid(*[[0, 1]] * 4)).reshape(4, -1)
    chance = np.prod(np.where(outcomes == 1, p, 1 - p), axis=0)
    expected = (np.asarray(pass_at_k(outcomes.sum(0), 4, k)) * chance).sum()
    np.testing.assert_allclose(expected, 1 - (1 - p) ** k, rtol=1e-6)


def test_naive_estimate_would_be_biased():
    # The reason for the binomials: plugging c/n into 1 - (1 - p)^k is too low.
    assert pass_at_k(1, 4, 4).item() == 1.0
    assert 1 - (1 - 1 / 4) ** 4 < 0.7


def test_hand_worked_cases():
    assert pass_at_k(0, 32, 8).item() == 0.0
    assert pass_at_k(32, 32, 1).item() == 1.0
    np.testing.assert_allclose(pass_at_k(1, 32, 8), 8 / 32, rtol=1e-6)
    np.testing.assert_allclose(pass_at_k(2, 10, 3), 1 - (8 * 7 * 6) / (10 * 9 * 8), rtol=1e-6)


def test_keeps_its_digits_for_many_trials_in_float32():
    # 1 - prod_{i<512} (1 - 3/(100000 - i)) = 1 - (99488*99487*99486)/(100000*99999*99998)
    exact = 1 - 99488 * 99487 * 99486 / (100000 * 99999 * 99998)
    np.testing.assert_allclose(pass_at_k(3, 100_000, 512), exact, rtol=1e-5)


@given(st.integers(1, 64).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_grows_with_k_and_with_right_trials(counts):
    n, c, k = counts
    here = pass_at_k(c, n, k).item()
    assert 0.0 <= here <= 1.0
    if k < n:
        assert here <= pass_at_k(c, n, k + 1).item() + 1e-6
    if c < n:
        assert here <= pass_at_k(c + 1, n, k).item() + 1e-6


def test_broadcasts_and_vmaps_like_a_loop():
    c, k = np.array([[0], [3], [7]]), np.array([1, 4])
    table = pass_at_k(c, 8, k)
    assert table.shape == (3, 2)
    looped = jnp.stack([pass_at_k(row, 8, k) for row in c])
    np.testing.assert_array_equal(table, looped)
    mapped = jax.vmap(lambda right: pass_at_k(right, 8, k))(jnp.asarray(c[:, 0]))
    np.testing.assert_allclose(mapped, table, rtol=1e-6)


def test_no_entries_give_no_entries():
    assert pass_at_k(np.zeros((0, 3), int), 4, 2).shape == (0, 3)


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ((1, 4, 5), "k must lie in 1..num_trials; got num_correct=1, num_trials=4, k=5"),
        ((1, 4, 0), "k must lie in 1..num_trials"),
        ((5, 4, 2), "num_correct must lie in 0..num_trials; got num_correct=5"),
        ((-1, 4, 2), "num_correct must lie in 0..num_trials"),
        ((0, 0, 1), "k must lie in 1..num_trials"),
        ((np.array([1.0, np.nan]), 4, 2), "num_correct must lie in 0..num_trials; got num_correct=nan"),
        ((1, 4, np.array([2.0, 1.5])), "whole numbers; got num_correct=1, num_trials=4, k=1.5"),
        ((0.5, 4, 2), "whole numbers; got num_correct=0.5"),
    ],
)
def test_refuses_what_cannot_be_estimated(counts, words):
    with pytest.raises(ValueError, match=words):
        pass_at_k(*counts)


def test_is_nan_under_jit_where_it_would_refuse():
    c, k = jnp.array([1.0, 1, 5, -1, 1, 0.5]), jnp.array([2.0, 5, 2, 2, 1.5, 2])
    result = jax.jit(lambda c, k: pass_at_k(c, 4, k))(c, k)
    np.testing.assert_array_equal(jnp.isnan(result), [False, True, True, True, True, True])
    np.testing.assert_allclose(result[0], 0.5, rtol=1e-6)


def test_compiles_once_for_all_values_of_k():
    traced = []

    @jax.jit
    def count(c, k):
        traced.append(None)
        return pass_at_k(c, 16, k)

    for k in (1, 2, 16):
        count(jnp.arange(4), jnp.int32(k))
    assert len(traced) == 1
