"""The staircase, the bands on it, the price of the wrong law, gaps and power laws."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinetics_jax.scaling import (
    Allocation,
    Candidate,
    cost_to_reach,
    fit_power_law,
    model_bands,
    pareto_frontier,
    widest_gap,
    wrong_law_cost,
)

POINTS = st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6)), min_size=1, max_size=12)


def curve(accuracy: list[float], *, price: str = "eflops", budgets: tuple[float, ...] = (1, 2, 4, 8)) -> Allocation:
    values = jnp.asarray(accuracy, jnp.float32)
    return Allocation(
        budgets=jnp.asarray(budgets, jnp.float32),
        accuracy=values,
        naive_accuracy=values,
        spent=jnp.asarray(budgets, jnp.float32),
        solved=jnp.stack([values, values], axis=1),
        paid=jnp.stack([jnp.asarray(budgets, jnp.float32)] * 2, axis=1),
        choice=jnp.zeros((len(accuracy), 2), jnp.int32),
        fold_choice=jnp.zeros((2, len(accuracy), 2), jnp.int32),
        candidates=(Candidate(model="m", attention="dense", gen_len=8, num_trials=1),),
        price=price,
    )


@given(points=POINTS)
def test_frontier_is_exactly_what_nothing_dominates(points: list[tuple[int, int]]):
    cost, accuracy = (np.array(column, dtype=float) for column in zip(*points, strict=True))
    stair = pareto_frontier(cost, accuracy)
    kept = {(cost[i], accuracy[i]) for i in stair}
    free = {
        (c, a)
        for c, a in zip(cost, accuracy, strict=True)
        if not any((x <= c and y >= a) and (x < c or y > a) for x, y in zip(cost, accuracy, strict=True))
    }
    assert kept == free
    assert len(stair) == len(kept)
    assert np.all(np.diff(cost[stair]) > 0)
    assert np.all(np.diff(accuracy[stair]) > 0)


@given(points=POINTS, seed=st.integers(0, 99))
def test_frontier_ignores_the_order_of_points(points: list[tuple[int, int]], seed: int):
    cost, accuracy = (np.array(column, dtype=float) for column in zip(*points, strict=True))
    shuffle = np.random.default_rng(seed).permutation(len(points))
    stair, shuffled = pareto_frontier(cost, accuracy), pareto_frontier(cost[shuffle], accuracy[shuffle])
    np.testing.assert_array_equal(cost[stair], cost[shuffle][shuffled])
    np.testing.assert_array_equal(accuracy[stair], accuracy[shuffle][shuffled])


def test_frontier_small_cases():
    assert pareto_frontier(np.array([2.0]), np.array([0.0])).tolist() == [0]
    assert pareto_frontier(np.array([2.0, 2.0]), np.array([0.5, 0.5])).tolist() == [0]
    assert pareto_frontier(np.array([]), np.array([])).tolist() == []
    with pytest.raises(ValueError, match="NaN"):
        pareto_frontier(np.array([np.nan]), np.array([0.5]))


def test_cost_to_reach_ignores_a_dip():
    cost = cost_to_reach(np.array([1.0, 2.0, 4.0]), np.array([0.5, 0.3, 0.6]), np.array([0.3, 0.55, 0.7]))
    np.testing.assert_array_equal(cost, [1, 4, np.inf])


def test_bands_by_hand():
    bands = model_bands({"small": curve([0.1, 0.2, 0.25, 0.3]), "large": curve([0.0, 0.1, 0.5, 0.9])})
    assert [band.model for band in bands] == ["small", "large"]
    np.testing.assert_allclose([bands[0].accuracy_from, bands[0].accuracy_to], [0, 0.2])
    np.testing.assert_allclose([bands[1].accuracy_from, bands[1].accuracy_to], [0.2, 0.9])
    assert [(band.cost_from, band.cost_to) for band in bands] == [(1, 4), (4, 8)]


def test_bands_start_where_something_is_solved():
    """Errata 9: the released labels shift where a cost is affordable for nobody."""
    (band,) = model_bands({"small": curve([0, 0, 0, 0]), "large": curve([0, 0, 0.4, 0.4])})
    assert (band.model, band.cost_from, band.cost_to) == ("large", 4, 8)
    assert model_bands({"small": curve([0, 0, 0, 0])}) == ()


def test_margin_keeps_a_leader_through_noise():
    frontiers = {"small": curve([0.1, 0.2, 0.3, 0.3]), "large": curve([0.0, 0.205, 0.295, 0.9])}
    assert [band.model for band in model_bands(frontiers, margin=0.0)] == ["small", "large", "small", "large"]
    assert [band.model for band in model_bands(frontiers)] == ["small", "large"]


def test_wrong_law_by_hand():
    flops = {
        "small": curve([0.3, 0.5, 0.5, 0.5], price="flops"),
        "large": curve([0.0, 0.3, 0.9, 0.9], price="flops"),
    }
    eflops = {"small": curve([0.0, 0.1, 0.3, 0.5]), "large": curve([0.2, 0.6, 0.8, 0.9])}
    rows = wrong_law_cost(flops, eflops, np.array([0.1, 0.5, 0.89, 0.95]))
    assert [row.flops_model for row in rows] == ["small", "small", "large", None]
    assert [row.eflops_model for row in rows] == ["large", "large", "large", None]
    np.testing.assert_allclose([row.cost_ratio for row in rows], [2, 4, 1, np.nan])
    with pytest.raises(ValueError, match="Swap them"):
        wrong_law_cost(eflops, flops, np.array([0.1]))


def test_gap_by_hand():
    gap = widest_gap(curve([0.0, 0.1, 0.2, 0.6]), curve([0.2, 0.6, 0.6, 0.6]))
    assert (gap.gain_spent, gap.cost_ratio, gap.base_cost, gap.other_cost) == (2, 4, 4, 1)
    np.testing.assert_allclose(
        [gap.gain, gap.gain_low, gap.gain_high, gap.ratio_accuracy], [0.5, 0.5, 0.5, 0.2], rtol=1e-6
    )
    nothing = widest_gap(curve([0.0, 0.0, 0.0, 0.05]), curve([0.0, 0.0, 0.0, 0.0]))
    assert np.isnan(nothing.cost_ratio)
    with pytest.raises(ValueError, match="in one price"):
        widest_gap(curve([0.1] * 4), curve([0.1] * 4, price="flops"))


def test_gap_is_read_at_equal_spending_not_at_equal_cap():
    """The other curve is ahead at every cap only because it spends more there: the two are one line of spending."""
    base = curve([0.1, 0.2, 0.4, 0.8])
    dearer = replace(curve([0.2, 0.4, 0.8, 0.8]), spent=2 * base.spent, paid=2 * base.paid)
    gap = widest_gap(base, dearer)
    np.testing.assert_allclose([gap.gain, gap.gain_low, gap.gain_high], 0, atol=1e-6)
    assert gap.cost_ratio == 1
    np.testing.assert_allclose(base.accuracy_at(np.array([0, 0.5, 3, 8, 99])), [0, 0.05, 0.3, 0.8, 0.8], rtol=1e-6)


def test_gap_interval_covers_a_gain_in_price():
    """Halved prices at equal accuracy: the gain at equal spending is the base's slope, the same in every resample."""
    base = curve([0.1, 0.2, 0.4, 0.8])
    cheap = replace(base, spent=base.spent / 2, paid=base.paid / 2)
    gap = widest_gap(base, cheap)
    assert (gap.gain_spent, gap.cost_ratio) == (4, 2)
    np.testing.assert_allclose([gap.gain, gap.gain_low, gap.gain_high], 0.4, rtol=1e-6)


def test_a_cap_that_spends_less_than_a_smaller_one_is_left_out():
    noisy = replace(curve([0.1, 0.5, 0.3, 0.6]), spent=jnp.array([1.0, 3.0, 2.0, 4.0]))
    np.testing.assert_allclose(noisy.accuracy_at(np.array([2.0, 3.5])), [0.3, 0.55], rtol=1e-6)


def test_different_grids_are_refused():
    with pytest.raises(ValueError, match="one grid of caps"):
        model_bands({"a": curve([0.1], budgets=(1,)), "b": curve([0.1], budgets=(2,))})


@given(exponent=st.floats(-2, 2), coefficient=st.floats(0.1, 10))
def test_power_law_is_recovered(exponent: float, coefficient: float):
    x = np.array([1.0, 3.0, 10.0, 30.0])
    law = fit_power_law(x, coefficient * x**exponent)
    np.testing.assert_allclose([law.exponent, law.coefficient], [exponent, coefficient], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(law.factor_per_doubling, 2**exponent, rtol=1e-6)
    np.testing.assert_allclose(law(x), coefficient * x**exponent, rtol=1e-6)
    assert law.exponent_stderr < 1e-6


def test_power_law_refuses_what_has_no_logarithm_or_slope():
    with pytest.raises(ValueError, match="positive"):
        fit_power_law(np.array([1.0, 2.0]), np.array([0.0, 1.0]))
    with pytest.raises(ValueError, match="two different"):
        fit_power_law(np.array([2.0, 2.0]), np.array([1.0, 1.0]))
