"""majority@k against voting in every subset of k trials, one by one."""

from collections import Counter
from itertools import combinations, product
from math import comb

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinetics_jax.accuracy import majority_at_k, pass_at_k

R, RIGHT = 6, [0, 2, 4]
KS = np.arange(1, R + 1)
JIT = jax.jit(majority_at_k)


def vote(answers) -> float:
    """Return the chance that the vote of these trials is right."""
    votes = Counter(answer for answer in answers if answer >= 0)
    winners = [answer for answer in votes if votes[answer] == max(votes.values())]
    return sum(answer in RIGHT for answer in winners) / len(winners) if winners else 0.0


def enumerate_majority(answers, k: int) -> float:
    return sum(map(vote, combinations(answers, k))) / comb(len(answers), k)


def estimate(rows) -> np.ndarray:
    """Return majority@1..6 of up to 20 rows of at most six answers, of which 0, 2 and 4 are right: one compilation."""
    answer, mask = np.full((20, R), -1), np.zeros((20, R), bool)
    for row, answers in enumerate(rows):
        answer[row, : len(answers)], mask[row, : len(answers)] = answers, True
    is_right = np.isin(answer, RIGHT)
    table = JIT(*(jnp.asarray(array)[:, None] for array in (answer, is_right)), KS, jnp.asarray(mask)[:, None])
    return np.asarray(table)[: len(rows)]


def exhaustive(answers) -> list[float]:
    return [enumerate_majority(answers, k) if k <= len(answers) else np.nan for k in range(1, R + 1)]


@settings(max_examples=20)  # of 20 rows each
@given(st.lists(st.lists(st.integers(-1, 4), max_size=R), min_size=20, max_size=20))
def test_equals_voting_in_every_subset(rows):
    # More trials than there are come back as NaN.
    np.testing.assert_allclose(estimate(rows), [exhaustive(answers) for answers in rows], atol=2e-6)


def test_is_unbiased():
    # All 4^4 outcomes of four trials against all 4^k outcomes of k.
    chance = np.array([0.3, 0.15, 0.4, 0.15])
    outcomes = np.array(list(product(range(-1, 3), repeat=4)))
    weight = chance[outcomes + 1].prod(1)
    each = np.concatenate([estimate(outcomes[first : first + 20]) for first in range(0, len(outcomes), 20)])[:, :4]
    truth = [
        sum(vote(fresh) * chance[np.array(fresh) + 1].prod() for fresh in product(range(-1, 3), repeat=k))
        for k in range(1, 5)
    ]
    np.testing.assert_allclose(weight @ each, truth, atol=2e-6)


def test_hand_worked_cases():
    none, right, wrong = -1, 0, 1
    table = estimate(
        [
            # Pairs: 00 wins, 0- wins twice, 01 ties twice, 1- loses: (1 + 2 + 2/2) / 6.
            [right, right, wrong, none],
            # All six tie three ways; two of the three answers are right.
            [0, 1, 2, 0, 1, 2],
            # Where no answer comes twice a vote is a blind choice, however many vote.
            [0, 1, 3, 5],
            [right] * 6,
            [wrong] * 6,
            [none] * 6,
            [right],
        ]
    )
    np.testing.assert_allclose(table[0, [0, 1, 3]], [2 / 4, 4 / 6, 1], atol=2e-6)
    np.testing.assert_allclose(table[1, [0, 5]], [2 / 3, 2 / 3], atol=2e-6)
    np.testing.assert_allclose(table[2, :4], 1 / 4, atol=2e-6)
    np.testing.assert_allclose(table[3:6], [[1] * 6, [0] * 6, [0] * 6], atol=2e-6)
    np.testing.assert_allclose(table[6, 0], 1, atol=2e-6)


def test_two_answers_are_a_hypergeometric_tail():
    num_trials, num_right, k = 301, 160, 102

    def ways(right):
        return comb(num_right, right) * comb(num_trials - num_right, k - right)

    # Out of 102 votes 52 win and 51 tie.
    wins = sum(ways(right) * (1 if right == 51 else 2) for right in range(51, k + 1))
    is_right = np.arange(num_trials) < num_right
    outside = majority_at_k(np.where(is_right, 0, 1), is_right, k)
    np.testing.assert_allclose(outside, wins / (2 * comb(num_trials, k)), atol=2e-5)


def test_never_beats_the_oracle_and_is_plain_accuracy_at_one():
    rows = np.random.default_rng(0).integers(-1, 4, (20, R))
    num_right = np.isin(rows, RIGHT).sum(1)
    table = estimate(rows)
    assert (table <= np.asarray(pass_at_k(num_right[:, None], R, np.arange(1, R + 1))) + 1e-6).all()
    np.testing.assert_allclose(table[:, 0], num_right / R, atol=2e-6)


def test_many_entries_go_in_parts_and_a_contradiction_is_found(monkeypatch):
    rows = np.random.default_rng(1).integers(-1, 3, (20, R))
    monkeypatch.setattr("kinetics_jax.accuracy._majority._VALUES_AT_ONCE", 150)
    in_parts = majority_at_k(rows, np.isin(rows, RIGHT), 4)
    np.testing.assert_allclose(in_parts, estimate(rows)[:, 3], atol=2e-6)
    with pytest.raises(ValueError, match="must all be right or all wrong; some are both"):
        majority_at_k(np.zeros((20, R), int), np.arange(R)[None] == np.zeros((20, 1)), 4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"k": 4}, "k must be a whole number in 1..num_trials; got k=4, num_trials=3"),
        ({"k": 0}, "k must be a whole number in 1..num_trials"),
        ({"k": 2.5}, "whole number in 1..num_trials; got k=2.5"),
        ({"mask": np.zeros(3, bool)}, "num_trials=0"),
        ({"answer": np.array([0, 1, -2])}, "answer must be -1 .none. or an index below .*; got -2"),
        ({"answer": np.array([0, 2**32, 1])}, "answer must be -1 .none. or an index below .*; got 4294967296"),
        ({"answer": np.array([-1, 1, 2])}, "a trial that is right must have an answer; got answer=-1"),
    ],
)
def test_refuses_bad_input(change, words):
    with pytest.raises(ValueError, match=words):
        majority_at_k(**{"answer": np.arange(3), "is_right": np.array([True, False, False]), "k": 2, **change})


def test_is_nan_under_jit_where_it_would_refuse():
    # The first two trials gave one answer, and only the first is right.
    answer, is_right = np.array([[0, 0, 1, 1, 1, 1]] * 20), np.array([[True] + [False] * 5] * 20)
    mask = np.ones((20, R), bool)
    mask[1, 1] = False
    table = JIT(*(jnp.asarray(array)[:, None] for array in (answer, is_right)), KS, jnp.asarray(mask)[:, None])
    np.testing.assert_array_equal(jnp.isnan(table[:2]), [[True] * 6, [False] * 5 + [True]])
