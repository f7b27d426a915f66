"""best-of-k by a verifier against picking from every subset of k trials, one by one."""

from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kinetics_jax.accuracy import best_of_k, oracle_gap, pass_at_k

R = 6
KS = np.arange(1, R + 1)
JIT = jax.jit(best_of_k)


def enumerate_best(scores, is_right, k: int) -> float:
    picks = []
    for subset in map(list, combinations(range(len(scores)), k)):
        is_best = scores[subset] == scores[subset].max()
        picks.append(is_right[subset][is_best].mean())
    return float(np.mean(picks))


@given(
    hnp.arrays(np.float32, R, elements=st.sampled_from([-np.inf, -1.0, 0.0, 0.5, np.inf])),
    hnp.arrays(bool, R),
    hnp.arrays(bool, R),
)
def test_equals_picking_from_every_subset(scores, is_right, mask):
    estimate = JIT(jnp.asarray(scores)[None], jnp.asarray(is_right)[None], jnp.asarray(KS), jnp.asarray(mask)[None])
    num_trials = mask.sum()
    exact = [enumerate_best(scores[mask], is_right[mask], k) for k in range(1, num_trials + 1)]
    np.testing.assert_allclose(estimate[:num_trials], exact, atol=1e-6)
    assert jnp.isnan(estimate[num_trials:]).all()


def test_hand_worked_cases():
    # Of three pairs the best-scored, wrong trial is in two.
    scores, is_right = np.array([[0.9, 0.5, 0.1, 0, 0, 0]], np.float32), np.array([[False, True, True] + [False] * 3])
    mask = np.array([[True] * 3 + [False] * 3])
    achieved = JIT(*map(jnp.asarray, (scores, is_right, KS, mask)))
    np.testing.assert_allclose(achieved[:3], [2 / 3, 1 / 3, 0], atol=1e-6)
    np.testing.assert_allclose(oracle_gap(achieved[:3], is_right, np.arange(1, 4), mask), [0, 2 / 3, 1], atol=1e-6)


def test_perfect_blind_and_perverse_verifiers():
    is_right = np.random.default_rng(0).random((30, 1, 40)) < 0.3
    k = np.array([1, 2, 8, 40])
    scores = np.stack([is_right, 0 * is_right, -1 * is_right]).astype(np.float32)
    perfect, blind, perverse = best_of_k(scores, is_right[None], k)
    np.testing.assert_allclose(perfect, pass_at_k(is_right.sum(-1), 40, k), atol=1e-5)
    np.testing.assert_allclose(blind, is_right.mean(-1) + 0 * k, atol=1e-5)
    # The perverse one is right only where all k are: pass@k of being wrong.
    np.testing.assert_allclose(perverse, 1 - pass_at_k((~is_right).sum(-1), 40, k), atol=1e-5)


def test_keeps_its_digits_for_many_trials():
    # Scores rise with the index and only trial 900 is right: it is the best of 500 with chance C(900,499)/C(1000,500).
    exact = 500 / 1000 * np.prod([(500 - d) / (999 - d) for d in range(99)])
    np.testing.assert_allclose(best_of_k(np.arange(1000), np.arange(1000) == 900, 500), exact, rtol=1e-4)


def test_gap_is_never_negative_and_skips_missing_trials():
    rng = np.random.default_rng(1)
    is_right, mask = rng.random((100, R)) < 0.4, rng.random((100, R)) < 0.7
    mask[:, :3] = True
    rows = zip(rng.random((100, R), np.float32), is_right, mask, strict=True)
    achieved = [JIT(*map(jnp.asarray, (score[None], right[None], KS, there[None])))[2] for score, right, there in rows]
    gap = oracle_gap(jnp.stack(achieved), is_right, 3, mask)
    assert (gap > -1e-6).all()
    assert gap.max() > 0.1
    share = (is_right & mask).sum(1) / mask.sum(1)
    np.testing.assert_allclose(oracle_gap(np.zeros(100, np.float32), is_right, 1, mask), share, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"k": 4}, "k must be a whole number in 1..num_trials; got k=4, num_trials=3"),
        ({"k": 0}, "k must be a whole number in 1..num_trials"),
        ({"k": 1.5}, "whole number in 1..num_trials; got k=1.5"),
        ({"scores": np.array([0.1, np.nan, 0.2])}, "scores must be numbers; got nan"),
        ({"mask": np.zeros(3, bool)}, "num_trials=0"),
    ],
)
def test_refuses_bad_input(change, words):
    with pytest.raises(ValueError, match=words):
        best_of_k(**{"scores": np.zeros(3), "is_right": np.zeros(3, bool), "k": 2, **change})


def test_a_missing_score_counts_only_where_there_is_a_trial():
    scores, is_right = np.array([[0.1, np.nan, 0.2, 0, 0, 0]] * 2), np.array([[False, False, True] + 3 * [False]])
    mask = np.array([[True, False, True] + 3 * [False], [True] * 6])
    table = JIT(*map(jnp.asarray, (scores, is_right, 2, mask)))
    np.testing.assert_array_equal(table, [1, np.nan])
