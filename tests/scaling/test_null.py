"""Whole studies in which sparse is dense exactly: what each comparison shows, and what it must not show."""

from functools import lru_cache
from typing import Literal

import numpy as np

from kinetics_jax.scaling import Allocation, allocate, allocate_average, widest_gap
from tests.scaling.studies import NUM_STUDIES, null_studies, rows_of, study_of

STUDIES = range(NUM_STUDIES)


@lru_cache(maxsize=1)
def null_curves() -> list[Allocation]:
    tradeoffs = null_studies()
    return [allocate(tradeoff, tradeoffs[0].budget_grid(24)) for tradeoff in tradeoffs]


def test_caps_show_no_gain_at_equal_spending():
    """One copy against six at every level of spending; the standard error of a mean gain is 0.3 points at most.

    At equal *cap* the paper's prices, from each problem's own trials, show a gain of several points from nothing.
    """
    tradeoffs = null_studies()
    dense, sparse = null_curves()
    spending = np.asarray(dense.budgets, np.float64)
    gains = [
        study_of(sparse, study).accuracy_at(spending) - study_of(dense, study).accuracy_at(spending)
        for study in STUDIES
    ]
    gain = np.mean(gains, axis=0)
    assert np.abs(gain).max() < 0.01
    assert np.abs(gain).mean() < 0.005
    assert abs(gain[-1]) < 0.005
    assert float(sparse.naive_accuracy[-1] - dense.naive_accuracy[-1]) > 0.03
    equal_cap = np.max(np.asarray(sparse.accuracy - dense.accuracy))
    assert 0.003 < equal_cap < 0.03
    paper = [allocate(tradeoff, dense.budgets, price_over="problem") for tradeoff in tradeoffs]
    assert np.max(np.asarray(paper[1].accuracy - paper[0].accuracy)) > 0.03


def test_the_widest_gap_is_lucky_and_its_held_out_gain_is_not():
    dense, sparse = null_curves()
    gaps = [widest_gap(study_of(dense, study), study_of(sparse, study), num_resamples=10) for study in STUDIES]
    assert np.mean([gap.gain for gap in gaps]) > 0.02
    assert abs(np.mean([gap.gain_held_out for gap in gaps])) < 0.01


def test_averages_show_no_gain_with_fitted_values_and_a_loss_with_those_of_single_problems():
    """16 studies; the standard error of a mean gain is 0.5 points at most."""
    tradeoffs = null_studies()
    gains: dict[Literal["fit", "problem"], list[np.ndarray]] = {"fit": [], "problem": []}
    spending = np.asarray(tradeoffs[0].budget_grid(12), np.float64)[:-2]
    for study in range(16):
        dense, sparse = (tradeoff.take(rows_of(study)) for tradeoff in tradeoffs)
        for value_from, found in gains.items():
            curves = [allocate_average(part, spending, value_from=value_from) for part in (dense, sparse)]
            found.append(curves[1].accuracy_at(spending) - curves[0].accuracy_at(spending))
            assert np.asarray(curves[1].bias).max() > 0.02
    assert np.abs(np.mean(gains["fit"], axis=0)).max() < 0.01
    loss = np.mean(gains["problem"], axis=0)
    assert loss.min() < -0.02
    assert loss.max() < 0.01
