"""Algorithms 1 and 2: equal to brute force, honest where the naive estimate is not, compiled once."""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinetics_jax.accuracy import pass_at_k
from kinetics_jax.scaling import Candidate, Tradeoff, _allocate, allocate, gain_at, model_frontiers


def tradeoff_of(cost: np.ndarray, num_correct: np.ndarray, num_trials: np.ndarray, k: np.ndarray) -> Tradeoff:
    num_problems, num_candidates = cost.shape[1:]
    return Tradeoff(
        cost=jnp.asarray(cost, jnp.float32),
        num_correct=jnp.asarray(num_correct, jnp.float32),
        num_trials=jnp.asarray(num_trials, jnp.float32),
        k=jnp.asarray(k, jnp.float32),
        difficulty=jnp.asarray(np.arange(num_problems) % 3, jnp.int32),
        candidates=tuple(
            Candidate(model=f"m{c % 2}", attention=f"topk:{c + 1}", gen_len=8, num_trials=int(k[c]))
            for c in range(num_candidates)
        ),
        problems=tuple(f"p{q}" for q in range(num_problems)),
        price="eflops",
    )


def brute_force(tradeoff: Tradeoff, budgets: np.ndarray, price_over: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (cross-fitted accuracy, naive accuracy, held-out spending) with one loop a definition."""
    cost, correct, trials = (np.asarray(a) for a in (tradeoff.cost, tradeoff.num_correct, tradeoff.num_trials))
    num_folds, num_problems, num_candidates = cost.shape
    level = tradeoff.difficulty.tolist() if price_over == "difficulty" else list(range(num_problems))

    def value(folds: list[int], q: int, c: int) -> float:
        n, right, k = int(trials[folds, q, c].sum()), int(correct[folds, q, c].sum()), tradeoff.candidates[c].num_trials
        return 1 - math.comb(n - right, k) / math.comb(n, k)

    def choose(folds: list[int], q: int, budget: float) -> int | None:
        best, best_key = None, None
        for c in range(num_candidates):
            alike = np.ix_(folds, [other for other in range(num_problems) if level[other] == level[q]], [c])
            price = (cost[alike] * trials[alike]).sum() / trials[alike].sum()
            if price <= budget:
                pooled = np.mean([value(folds, other, c) for other in range(num_problems)])
                key = (round(value(folds, q, c), 9), round(float(pooled), 9), -price, -c)
                if best_key is None or key > best_key:
                    best, best_key = c, key
        return best

    everything = list(range(num_folds))
    fair, naive, spent = np.zeros((3, len(budgets)))
    for x, budget in enumerate(budgets):
        for q in range(num_problems):
            c = choose(everything, q, budget)
            naive[x] += 0 if c is None else value(everything, q, c) / num_problems
            for fold in everything:
                c = choose([f for f in everything if f != fold], q, budget)
                fair[x] += 0 if c is None else value([fold], q, c) / num_problems / num_folds
                spent[x] += 0 if c is None else cost[fold, q, c] / num_problems / num_folds
    return fair, naive, spent


@settings(max_examples=8)
@given(
    seed=st.integers(0, 10_000),
    num_folds=st.integers(2, 3),
    num_candidates=st.integers(1, 5),
    price_over=st.sampled_from(["difficulty", "problem"]),
)
def test_equals_brute_force(
    seed: int, num_folds: int, num_candidates: int, price_over: Literal["difficulty", "problem"]
):
    rng = np.random.default_rng(seed)
    shape = (num_folds, 5, num_candidates)  # difficulties 0 and 1 twice, 2 once
    cost = rng.integers(1, 6, size=shape).astype(float)  # ties in cost are common
    trials = np.full(shape, 4.0)
    tradeoff = tradeoff_of(cost, rng.integers(0, 5, size=shape), trials, rng.integers(1, 4, size=num_candidates))
    budgets = np.array([0.5, 1.0, 2.51, 4.1, 9.0])
    allocation = allocate(tradeoff, jnp.asarray(budgets, jnp.float32), price_over=price_over)
    fair, naive, spent = brute_force(tradeoff, budgets, price_over)
    np.testing.assert_allclose(allocation.accuracy, fair, atol=1e-5)
    np.testing.assert_allclose(allocation.naive_accuracy, naive, atol=1e-5)
    np.testing.assert_allclose(allocation.spent, spent, atol=1e-5)
    np.testing.assert_allclose(np.asarray(allocation.bias), naive - fair, atol=1e-5)
    np.testing.assert_allclose(np.asarray(allocation.solved).mean(1), allocation.accuracy, atol=1e-6)
    np.testing.assert_allclose(np.asarray(allocation.paid).mean(1), allocation.spent, rtol=1e-6)
    assert np.diff(np.asarray(allocation.naive_accuracy, np.float64)).min() >= -1e-6


def test_by_hand():
    # Two candidates; the dear one looks better on fold 1 (4 of 4), the cheap one on fold 0 (2 of 4). Two such problems.
    tradeoff = tradeoff_of(
        cost=np.array([[[1.0, 4.0]] * 2, [[1.0, 4.0]] * 2]),
        num_correct=np.array([[[2, 1]] * 2, [[1, 4]] * 2]),
        num_trials=np.full((2, 2, 2), 4),
        k=np.array([1, 1]),
    )
    allocation = allocate(tradeoff, jnp.array([0.9, 1.0, 4.0]))
    # Cap 4: fold 1 chooses the dear one, scored 1/4 on fold 0; fold 0 chooses the cheap one, scored 1/4 on fold 1.
    np.testing.assert_allclose(allocation.accuracy, [0, 3 / 8, 1 / 4], rtol=1e-6)
    np.testing.assert_allclose(allocation.naive_accuracy, [0, 3 / 8, 5 / 8], rtol=1e-6)
    np.testing.assert_allclose(allocation.spent, [0, 1, 2.5])
    assert allocation.choice.tolist() == [[-1] * 2, [0] * 2, [1] * 2]
    assert allocation.fold_choice.tolist() == [[[-1] * 2, [0] * 2, [1] * 2], [[-1] * 2, [0] * 2, [0] * 2]]
    assert not allocation.is_average
    assert not allocation.is_mixed.any()


def test_ties_go_to_what_all_problems_favour_then_to_the_cheaper():
    cost = np.broadcast_to(np.array([2.0, 3.0, 1.0, 1.0]), (2, 2, 4))
    correct = np.broadcast_to(np.array([[4, 4, 4, 4], [1, 3, 1, 1]]), (2, 2, 4))
    tradeoff = tradeoff_of(cost, correct, np.full((2, 2, 4), 4), np.ones(4))
    choice = allocate(tradeoff, jnp.array([0.5, 2.0, 3.0])).choice
    assert choice.tolist() == [[-1, -1], [2, 2], [1, 1]]


def test_a_half_is_a_tie_whatever_its_last_bit():
    """1 right of 52 drawn 26 times, and 26 of 52 drawn once: the first comes out one bit above a half."""
    shape = (2, 2, 2)
    correct, k = np.broadcast_to(np.array([1.0, 26.0]), shape), np.array([26, 1])
    value = np.asarray(pass_at_k(correct[0, 0], 52, k))
    assert value[0] > value[1] == 0.5
    tradeoff = tradeoff_of(np.broadcast_to(np.array([2.0, 1.0]), shape), correct, np.full(shape, 52.0), k)
    assert np.all(np.asarray(allocate(tradeoff, jnp.array([1.0, 2.0, 3.0])).fold_choice) == 1)


def test_products_are_in_full_precision():
    """By default GPUs and TPUs round the factors of a product; counts and prices must not be rounded."""
    tradeoff = null_tradeoff(np.random.default_rng(0), 16)
    text = str(jax.make_jaxpr(lambda t: allocate(t, jnp.array([1.0, 2.0])).accuracy)(tradeoff))
    assert 0 < text.count("dot_general") <= text.count("Precision.HIGHEST")


def null_tradeoff(rng: np.random.Generator, num_trials: int, num_problems: int = 64) -> Tradeoff:
    """Draw a dense candidate and six "sparse" ones that are dense under other names: equal price, equal chance."""
    chance = rng.beta(0.35, 0.35, size=(1, num_problems, 1))  # many problems easy or hopeless, as in AIME
    shape = (2, num_problems, 7)
    correct = rng.binomial(num_trials // 2, np.broadcast_to(chance, shape))
    tradeoff = tradeoff_of(np.ones(shape), correct, np.full(shape, num_trials // 2), np.ones(7))
    names = ["dense", *(f"topk:{2**power}" for power in range(9, 15))]
    labels = tuple(Candidate(model="m", attention=name, gen_len=256, num_trials=1) for name in names)
    return Tradeoff(
        **{**{name: getattr(tradeoff, name) for name in tradeoff.__dataclass_fields__}, "candidates": labels}
    )


@pytest.mark.parametrize(("num_trials", "naive_gain"), [(8, 0.09), (16, 0.07), (32, 0.05)])
def test_null_sparse_shows_no_gain(num_trials: int, naive_gain: float):
    """PAPER errata 10: sparse equals dense exactly, yet the naive estimate shows 11 points at 8 trials and 6 at 32.

    128 studies of 64 problems side by side: the standard error of a gain is at most
    sqrt(2 * 0.103 / 8 / 8192) = 0.18 points, so that half a point is more than two of them.
    """
    tradeoff = null_tradeoff(np.random.default_rng(0), num_trials, num_problems=128 * 64)
    dense, sparse = (allocate(tradeoff.select(methods=[name]), jnp.array([2.0])) for name in ("dense", "topk"))
    assert float(sparse.naive_accuracy[0] - dense.naive_accuracy[0]) > naive_gain
    assert abs(float(sparse.accuracy[0] - dense.accuracy[0])) < 0.005
    assert float(sparse.bias[0]) > 0.03
    assert abs(float(dense.bias[0])) < 1e-5


def test_power_a_true_gain_is_recovered_within_its_interval():
    """A sparse method that is right 10 points more often shows 10 points at equal spending, within the interval."""
    inside, gains, spending = 0, [], np.array([1.0])
    for seed in range(20):
        rng = np.random.default_rng(seed)
        shape = (2, 64, 2)
        chance = np.broadcast_to(rng.uniform(0.1, 0.8, size=(1, 64, 1)) + np.array([0.0, 0.1]), shape)
        tradeoff = tradeoff_of(np.ones(shape), rng.binomial(8, chance), np.full(shape, 8), np.ones(2))
        dense, sparse = (allocate(tradeoff.select(models=[model]), jnp.array([0.5, 2.0])) for model in ("m0", "m1"))
        gain = gain_at(dense, sparse, spending, num_resamples=300)
        gains.append(gain.gain[0])
        inside += gain.low[0] <= 0.1 <= gain.high[0]
        assert gain.low[0] > 0
    assert abs(np.mean(gains) - 0.1) < 0.01
    assert 16 <= inside <= 20


def test_one_compilation_serves_all_models_and_methods():
    tradeoff = null_tradeoff(np.random.default_rng(0), 16)
    budgets = jnp.array([1.0, 2.0])
    jitted = jax.jit(lambda t, b: allocate(t, b).accuracy)
    np.testing.assert_allclose(jitted(tradeoff, budgets), allocate(tradeoff, budgets).accuracy, atol=1e-6)
    compiled: Any = _allocate._allocate
    before = compiled._cache_size()
    for method in ("dense", "topk"):
        allocate(tradeoff.select(methods=[method]), budgets)
    assert compiled._cache_size() == before


def test_model_frontiers_and_choice_numbers():
    tradeoff = null_tradeoff(np.random.default_rng(1), 16)
    frontiers = model_frontiers(tradeoff, jnp.array([0.5, 2.0]))
    assert list(frontiers) == ["m"]
    gen_len = frontiers["m"].mean_choice("gen_len")
    assert np.isnan(gen_len[0])
    assert gen_len[1] == 256
    dense = allocate(tradeoff.select(methods=["dense"]), jnp.array([0.5, 2.0]))
    assert dense.mean_choice("gen_len")[1] == 256
    assert np.isnan(dense.mean_choice("budget_len")[1])
    assert frontiers["m"].mean_choice("num_tokens")[1] == 256
    with pytest.raises(ValueError, match="gen_len, num_trials, budget_len"):
        dense.mean_choice("price")


def test_bad_input():
    tradeoff = null_tradeoff(np.random.default_rng(0), 16, num_problems=3)
    folds = {name: getattr(tradeoff, name)[:1] for name in ("cost", "num_correct", "num_trials")}
    fields = {name: getattr(tradeoff, name) for name in tradeoff.__dataclass_fields__}
    with pytest.raises(ValueError, match="at least 2"):
        allocate(Tradeoff(**{**fields, **folds}), jnp.array([1.0]))
    with pytest.raises(ValueError, match="folds of 8 and candidates of 9"):
        allocate(Tradeoff(**{**fields, "k": jnp.full(7, 9.0)}), jnp.array([1.0]))
    with pytest.raises(ValueError, match="unknown models"):
        tradeoff.select(models=["other"])
    with pytest.raises(ValueError, match="unknown methods"):
        tradeoff.select(methods=["local"])
    with pytest.raises(ValueError, match="no difficulties; got an empty list"):
        tradeoff.select(difficulties=[])
    with pytest.raises(ValueError, match="num_budgets"):
        tradeoff.budget_grid(1)
    with pytest.raises(ValueError, match="positive prices; got 0"):
        Tradeoff(**{**fields, "cost": 0 * tradeoff.cost}).budget_grid()
    for budgets in ([2.0, 1.0], [np.nan], [1.0, np.inf]):  # falling ones would be dropped when the curve is read
        with pytest.raises(ValueError, match="budgets must be finite and rise"):
            allocate(tradeoff, jnp.array(budgets))


def test_select_by_difficulty():
    tradeoff = null_tradeoff(np.random.default_rng(0), 16, num_problems=7)
    part = tradeoff.select(difficulties=[1])
    assert part.problems == ("p1", "p4")
    np.testing.assert_array_equal(part.num_correct, np.asarray(tradeoff.num_correct)[:, [1, 4]])


def test_take_repeats_problems():
    tradeoff = null_tradeoff(np.random.default_rng(0), 16, num_problems=7)
    part = tradeoff.take(np.array([4, 4, 0]))
    assert part.problems == ("p4", "p4", "p0")
    np.testing.assert_array_equal(part.num_correct, np.asarray(tradeoff.num_correct)[:, [4, 4, 0]])
    assert part.candidates == tradeoff.candidates
