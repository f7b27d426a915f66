"""Average budgets: equal to a linear program, to every whole choice, and to the definition fold by fold."""

import itertools
import tracemalloc
from dataclasses import replace
from typing import Literal

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from kinetics_jax.scaling import Candidate, Tradeoff, _average, allocate, allocate_average
from kinetics_jax.scaling._hull import Spending, hull_vertices, spend_exactly


def linear_program(cost: np.ndarray, value: np.ndarray, total: float) -> float:
    """Return the most value of chances of each option in each row, with at most `total` spent."""
    num_rows, num_options = cost.shape
    rows = np.kron(np.eye(num_rows), np.ones(num_options))
    solved = linprog(
        -value.ravel(), A_ub=np.vstack([cost.ravel(), rows]), b_ub=np.append(total, np.ones(num_rows)), bounds=(0, None)
    )
    return -solved.fun


def best_whole_choice(cost: np.ndarray, value: np.ndarray, total: float) -> float:
    """Return the most value of one option or nothing in each row, tried one after the other."""
    cost, value = (np.append(np.zeros((len(cost), 1)), array, axis=1) for array in (cost, value))
    rows = np.arange(len(cost))
    choices = (list(choice) for choice in itertools.product(range(cost.shape[1]), repeat=len(cost)))
    return max(value[rows, choice].sum() for choice in choices if cost[rows, choice].sum() <= total + 1e-9)


def draw(seed: int, num_rows: int, num_options: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw small whole numbers, so that ties in cost, value and slope are common."""
    rng = np.random.default_rng(seed)
    shape = (num_rows, num_options)
    return rng.integers(1, 6, size=shape).astype(float), rng.integers(0, 5, size=shape).astype(float)


@settings(max_examples=25)  # of six totals each
@given(seed=st.integers(0, 10_000), num_rows=st.integers(1, 3), num_options=st.integers(1, 4))
def test_equals_the_linear_program_and_bounds_whole_choices(seed: int, num_rows: int, num_options: int):
    cost, value = draw(seed, num_rows, num_options)
    totals = np.array([0.0, 0.5, 2.0, 3.7, 5.0, 40.0])
    spending = spend_exactly(cost, value, totals)
    bought, paid = spending.at_choice(value).sum(1), spending.at_choice(cost).sum(1)
    whole = [best_whole_choice(cost, value, total) for total in totals]
    np.testing.assert_allclose(bought, [linear_program(cost, value, total) for total in totals], atol=1e-9)
    assert (paid <= totals + 1e-9).all()
    assert (bought >= np.array(whole) - 1e-9).all()
    is_mixed = spending.mixed_row >= 0
    np.testing.assert_allclose(bought[~is_mixed], np.array(whole)[~is_mixed], atol=1e-9)
    np.testing.assert_allclose(paid[is_mixed], totals[is_mixed])
    chances = spending.weights(num_options)
    np.testing.assert_allclose(spending.at_choice(value), (chances * value).sum(-1), atol=1e-12)
    assert chances.min() >= 0
    assert chances.sum(-1).max() <= 1 + 1e-12
    assert ((chances > 0) & (chances < 1)).any(-1).sum(-1).max() <= 1


@given(seed=st.integers(0, 10_000), num_options=st.integers(1, 6))
def test_hull_is_what_no_coin_beats(seed: int, num_options: int):
    cost, value = draw(seed, 1, num_options)
    hull = [option for option in hull_vertices(cost, value)[0] if option >= 0]
    corners = [(0.0, 0.0), *((cost[0, option], value[0, option]) for option in hull)]
    xs, ys = np.array(corners).T
    assert (np.diff(xs) > 0).all()
    assert (np.diff(np.diff(ys) / np.diff(xs)) < 0).all()
    assert (np.interp(cost[0], xs, ys) >= value[0] - 1e-12).all()


def tradeoff_of(seed: int, num_folds: int, num_candidates: int) -> Tradeoff:
    rng = np.random.default_rng(seed)
    shape = (num_folds, 5, num_candidates)
    k = rng.integers(1, 4, size=num_candidates)
    return Tradeoff(
        cost=jnp.asarray(rng.integers(1, 6, size=shape), jnp.float32),
        num_correct=jnp.asarray(rng.integers(0, 5, size=shape), jnp.float32),
        num_trials=jnp.full(shape, 4.0),
        k=jnp.asarray(k, jnp.float32),
        difficulty=jnp.asarray([0, 1, 0, 1, 2], jnp.int32),
        candidates=tuple(
            Candidate(model="m", attention=f"topk:{c + 1}", gen_len=8, num_trials=int(k[c]))
            for c in range(num_candidates)
        ),
        problems=tuple(f"p{q}" for q in range(5)),
        price="eflops",
    )


def pass_at_k_by_draws(num_correct: float, num_trials: float, k: int) -> float:
    trials = [1] * int(num_correct) + [0] * int(num_trials - num_correct)
    return float(np.mean([max(drawn) for drawn in itertools.combinations(trials, k)]))


@pytest.mark.parametrize("price_over", ["difficulty", "problem"])
@pytest.mark.parametrize("value_from", ["fit", "problem"])
@pytest.mark.parametrize("num_folds", [2, 3])
def test_equals_its_definition(
    num_folds: int,
    value_from: Literal["fit", "problem"],
    price_over: Literal["difficulty", "problem"],
    monkeypatch: pytest.MonkeyPatch,
):
    """The choice of each fold is the linear program's optimum on the other folds; the score is the fold's own."""
    solved = []

    def spy(price: np.ndarray, value: np.ndarray, totals: np.ndarray) -> Spending:
        solved.append((price, value, spend_exactly(price, value, totals)))
        return solved[-1][-1]

    monkeypatch.setattr(_average, "spend_exactly", spy)
    tradeoff = tradeoff_of(num_folds, num_folds, 3)
    cost, correct = np.asarray(tradeoff.cost, float), np.asarray(tradeoff.num_correct, float)
    budgets = np.array([0.4, 1.3, 2.0, 4.9])
    bought = allocate_average(tradeoff, budgets, value_from=value_from, price_over=price_over)
    grades = np.asarray(tradeoff.difficulty)
    level = grades if price_over == "difficulty" else np.arange(5)
    counts = [candidate.num_trials for candidate in tradeoff.candidates]
    accuracy, spent = np.zeros((2, len(budgets)))
    for held_out in range(num_folds):
        price, value, spending = solved[1 + held_out]  # the first is of all folds
        others = [fold for fold in range(num_folds) if fold != held_out]
        share, expected_price, own = np.empty((3, 5, 3))
        for q, c in np.ndindex(5, 3):
            share[q, c] = pass_at_k_by_draws(correct[others, q, c].sum(), 4 * len(others), counts[c])
            own[q, c] = pass_at_k_by_draws(correct[held_out, q, c], 4, counts[c])
            expected_price[q, c] = cost[others][:, level == level[q], c].mean()
        expected_value = share
        if value_from == "fit":
            mean = np.array([share[grades == grade].mean(0) for grade in grades])
            easier = [np.mean(share[q] - mean[q]) for q in range(5)]
            slope = sum(easier[q] * (share[q] - mean[q]) for q in range(5)) / sum(e * e for e in easier)
            expected_value = np.clip([mean[q] + easier[q] * slope for q in range(5)], 1e-9, 1)
        np.testing.assert_allclose(value, expected_value + 1e-4 * share.mean(0), atol=1e-5)
        np.testing.assert_allclose(price, expected_price, rtol=1e-6)
        chances = spending.weights(3)
        optimum = [linear_program(price, value, 5 * budget) for budget in budgets]
        np.testing.assert_allclose((chances * value).sum((1, 2)), optimum, atol=1e-9)
        accuracy += (chances * own).sum((1, 2)) / num_folds / 5
        spent += (chances * cost[held_out]).sum((1, 2)) / num_folds / 5
        np.testing.assert_array_equal(bought.fold_choice[held_out], spending.choice)
    np.testing.assert_allclose(bought.accuracy, accuracy, atol=1e-5)
    np.testing.assert_allclose(bought.spent, spent, rtol=1e-5)
    np.testing.assert_allclose(np.asarray(bought.solved).mean(1), bought.accuracy, atol=1e-6)
    np.testing.assert_allclose(np.asarray(bought.paid).mean(1), bought.spent, rtol=1e-6)


def test_naive_is_the_optimum_on_all_trials():
    tradeoff = tradeoff_of(3, 2, 3)
    cost, correct = np.asarray(tradeoff.cost, float), np.asarray(tradeoff.num_correct)
    value = np.empty((5, 3))
    for q, c in np.ndindex(5, 3):
        value[q, c] = pass_at_k_by_draws(correct[:, q, c].sum(), 8, tradeoff.candidates[c].num_trials)
    budgets = np.array([0.4, 1.3, 4.9])
    bought = allocate_average(tradeoff, budgets, price_over="problem")
    optimum = [linear_program(cost.mean(0), value, 5 * budget) / 5 for budget in budgets]
    np.testing.assert_allclose(bought.naive_accuracy, optimum, atol=1e-6)


def test_an_average_buys_what_a_cap_cannot():
    """By hand: an easy problem for 1, a hard one for 9. A mean of 5 solves both, a cap of 5 only the easy one."""
    tradeoff = tradeoff_of(0, 2, 2)
    shape = (2, 2, 2)
    tradeoff = Tradeoff(
        cost=jnp.broadcast_to(jnp.array([1.0, 9.0]), shape),
        num_correct=jnp.broadcast_to(jnp.array([[4.0, 4.0], [0.0, 4.0]]), shape),
        num_trials=jnp.full(shape, 4.0),
        k=jnp.ones(2),
        difficulty=jnp.array([0, 1]),
        candidates=tradeoff.candidates[:2],
        problems=("easy", "hard"),
        price="eflops",
    )
    budgets = np.array([0.0, 0.25, 0.5, 2.75, 5.0, 99.0])
    average, cap = allocate_average(tradeoff, budgets), allocate(tradeoff, jnp.array([0.5, 5.0, 99.0]))
    np.testing.assert_allclose(average.accuracy, [0, 0.25, 0.5, 0.75, 1, 1], rtol=1e-6)
    np.testing.assert_allclose(average.spent, [0, 0.25, 0.5, 2.75, 5, 9], rtol=1e-6)
    np.testing.assert_allclose(cap.accuracy, [0, 0.5, 1])
    assert average.is_average
    assert average.is_mixed.tolist() == [False, True, False, True, False, False]
    assert average.mixture is not None
    assert average.mixture.problem.tolist()[:4] == [-1, 0, -1, 1]
    assert average.mixture.choice.tolist()[:4] == [-1, 0, -1, 1]
    np.testing.assert_allclose(average.mixture.share[:4], [0, 0.5, 0, 0.5], rtol=1e-6)
    assert average.choice.tolist()[-2] == [0, 1]


def test_many_problems_need_no_square_table():
    shape, rng = (2, 10_000, 3), np.random.default_rng(0)
    small = tradeoff_of(0, 2, 3)
    tradeoff = replace(
        small,
        cost=jnp.asarray(rng.integers(1, 6, size=shape), jnp.float32),
        num_correct=jnp.asarray(rng.integers(0, 5, size=shape), jnp.float32),
        num_trials=jnp.full(shape, 4.0),
        difficulty=jnp.asarray(np.arange(10_000) % 5, jnp.int32),
        problems=tuple(map(str, range(10_000))),
    )
    tracemalloc.start()
    bought = allocate_average(tradeoff, np.array([0.5, 1.5]))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 100e6  # one table of 10,000 x 10,000 numbers has 800e6 bytes
    np.testing.assert_allclose(bought.spent, [0.5, 1.5], rtol=0.05)


def test_bad_input():
    tradeoff = tradeoff_of(0, 2, 2)
    with pytest.raises(ValueError, match="0 or more; got -1"):
        allocate_average(tradeoff, np.array([-1.0]))
    for budgets in ([2.0, 1.0], [np.nan]):
        with pytest.raises(ValueError, match="budgets must be finite and rise"):
            allocate_average(tradeoff, np.array(budgets))
    fields = {name: getattr(tradeoff, name) for name in tradeoff.__dataclass_fields__}
    with pytest.raises(ValueError, match="prices must be positive"):
        allocate_average(Tradeoff(**{**fields, "cost": 0 * tradeoff.cost}), np.array([1.0]))
    with pytest.raises(ValueError, match="candidates of 9"):
        allocate_average(Tradeoff(**{**fields, "k": jnp.full(2, 9.0)}), np.array([1.0]))
