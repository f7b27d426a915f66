"""Strata of difficulty, and the rank correlation of length and best number of trials (Fig. 24)."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from kinetics_jax.scaling import allocate, allocate_average, by_difficulty, length_trials_correlation, tradeoff_table
from kinetics_jax.specs import HARDWARE, MODELS
from kinetics_jax.traces import TraceTable
from tests.scaling.synthetic import MODEL_NAMES, synthetic_tables

H100 = HARDWARE["H100-SXM"]
TABLES = synthetic_tables(models=MODEL_NAMES[:1], attentions=("dense", "topk:64"), num_problems=20, num_trials=8)


def test_strata_are_allocations_of_their_problems():
    tradeoff = tradeoff_table(TABLES, models=MODELS, hardware=H100, limits=[32, 256])
    budgets = tradeoff.budget_grid(5)
    curves = by_difficulty(tradeoff, budgets, strata={"easy": [2, 3], "hard": [5, 6]})
    assert list(curves) == ["easy", "hard"]
    assert curves["hard"].solved.shape == (5, 8)
    alone = allocate(tradeoff.select(difficulties=[5, 6]), budgets)
    np.testing.assert_array_equal(curves["hard"].accuracy, alone.accuracy)
    grades = by_difficulty(tradeoff, budgets, allocation=allocate_average)
    assert list(grades) == ["2", "3", "4", "5", "6"]
    assert all(curve.is_average for curve in grades.values())
    assert float(grades["2"].accuracy[-1]) > float(grades["6"].accuracy[-1])
    with pytest.raises(ValueError, match="one stratum"):
        by_difficulty(tradeoff, budgets, strata={"a": [2, 3], "b": [3]})
    with pytest.raises(ValueError, match=r"stratum 'b' \(\[9\]\)"):
        by_difficulty(tradeoff, budgets, strata={"a": [2], "b": [9]})


def coin_table(length_QR: np.ndarray, seed: int) -> TraceTable:
    """Draw a table in which every trial is right by the toss of a coin, whatever its length."""
    right = np.random.default_rng(seed).random(length_QR.shape) < 0.5
    num_problems = len(length_QR)
    return TraceTable(
        model=MODEL_NAMES[0],
        attention="dense",
        task="coins",
        max_gen_len=1000,
        problems=tuple(f"p{q:02d}" for q in range(num_problems)),
        difficulty=np.zeros(num_problems, np.int32),
        prompt_len=np.full(num_problems, 200, np.int32),
        gen_len=length_QR.astype(np.int32),
        solved_len=np.where(right, length_QR, np.inf),
        mask=np.ones(length_QR.shape, bool),
    )


def cap_for(table: TraceTable) -> float:
    """Return the price of three mean trials."""
    tradeoff = tradeoff_table([table], models=MODELS, hardware=H100, strategy="best_of_n", trial_counts=[1])
    return 3 * float(jnp.mean(tradeoff.mean_cost))


def test_short_problems_get_more_trials_under_a_cap():
    length = np.broadcast_to(np.linspace(50, 900, 24)[:, None], (24, 16))
    table = coin_table(length, 0)
    found = length_trials_correlation([table], cap_for(table), models=MODELS, hardware=H100, num_resamples=200)
    assert found.rho < -0.9
    assert found.interval[0] <= found.rho <= found.interval[1] < -0.8
    num_kept = len(found.points) // 2  # a point a fold
    np.testing.assert_array_equal(found.points[:, 0].astype(int), np.tile(length[-num_kept:, 0].astype(int), 2))
    points, rho, interval = found
    assert (points.shape[1], rho, interval) == (2, found.rho, found.interval)


def test_no_correlation_where_problems_do_not_differ():
    """Lengths are pure noise. Read off one set of trials they would rank with the number of trials all the same."""
    rhos, same_trials = [], []
    for seed in range(8):
        length = np.random.default_rng(seed).integers(50, 900, (24, 16))
        table = coin_table(length, 100 + seed)
        cap = cap_for(table)
        rhos.append(length_trials_correlation([table], cap, models=MODELS, hardware=H100, num_resamples=2).rho)
        tradeoff = tradeoff_table([table], models=MODELS, hardware=H100, strategy="best_of_n")
        choice = np.asarray(allocate(tradeoff, jnp.asarray([cap], jnp.float32), price_over="problem").fold_choice)[0, 0]
        count = np.array([candidate.num_trials for candidate in tradeoff.candidates])[choice]
        same_trials.append(np.corrcoef(length[:, 1::2].mean(1), count)[0, 1])
    assert abs(np.mean(rhos)) < 0.2
    assert np.mean(same_trials) < -0.3


def test_too_few_problems_are_refused():
    table = coin_table(np.full((24, 16), 100), 0)
    with pytest.raises(ValueError, match="three problems"):
        length_trials_correlation([table], 1.0, models=MODELS, hardware=H100)
    other = replace(table, task="other", attention="topk:64")
    with pytest.raises(ValueError, match="share one task"):
        length_trials_correlation([table, other], 1.0, models=MODELS, hardware=H100)
