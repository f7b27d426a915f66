"""The staircase, the bands on it, the price of the wrong law, and gaps."""

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
    frontier_band,
    gain_at,
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


def test_single_precision_misses_no_target():
    """0.7 in single precision is below 0.7; 0.7 less a thousandth is a miss."""
    cost = cost_to_reach(np.array([1.0]), np.array([0.7], np.float32), np.array([0.7, 0.701]))
    np.testing.assert_array_equal(cost, [1, np.inf])


def test_one_problem_has_no_interval():
    two = curve([0.1, 0.2, 0.3, 0.4])
    one = replace(
        two,
        solved=two.solved[:, :1],
        paid=two.paid[:, :1],
        choice=two.choice[:, :1],
        fold_choice=two.fold_choice[..., :1],
    )
    band, gain = frontier_band(one, num_resamples=4), gain_at(one, one, np.array([2.0]), num_resamples=4)
    np.testing.assert_allclose(band.accuracy, [0.1, 0.2, 0.3, 0.4], rtol=1e-6)
    gap = widest_gap(one, one, num_resamples=4)
    ends = [
        *one.interval(num_resamples=4),
        band.low,
        band.high,
        gain.low,
        gain.high,
        np.array([gap.gain_low, gap.gain_high]),
    ]
    assert np.isnan(np.concatenate(ends)).all()
    with pytest.raises(ValueError, match="level must lie"):
        two.interval(level=95.0)


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
        [gap.gain, gap.gain_held_out, gap.gain_low, gap.gain_high, gap.ratio_accuracy], [0.5] * 4 + [0.2], rtol=1e-6
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


def noisy_curve(seed: int) -> Allocation:
    """Draw 40 problems that differ in price and chance; on average, 8 budgets of 1..8 solve 0.1..0.8 of them."""
    rng = np.random.default_rng(seed)
    budgets = np.arange(1.0, 9.0)
    solved = rng.binomial(4, np.clip(budgets[:, None] / 10 + rng.uniform(-0.1, 0.1, 40), 0, 1)) / 4
    paid = budgets[:, None] * rng.uniform(0.8, 1.2, 40)
    return replace(
        curve([0.0] * 8, budgets=tuple(budgets)),
        accuracy=jnp.asarray(solved.mean(1), jnp.float32),
        spent=jnp.asarray(paid.mean(1), jnp.float32),
        solved=jnp.asarray(solved, jnp.float32),
        paid=jnp.asarray(paid, jnp.float32),
        choice=jnp.zeros((8, 40), jnp.int32),
        fold_choice=jnp.zeros((2, 8, 40), jnp.int32),
    )


def test_band_covers_the_true_staircase():
    """Between the steps, at 1.5, 2.5, ..., the truth is 0.1, 0.2, ...; 90% of the bands hold it."""
    spending = np.arange(1.5, 9.0)
    bands = [frontier_band(noisy_curve(seed), spending, num_resamples=200, seed=seed) for seed in range(60)]
    inside = [(band.low <= spending // 1 / 10) & (spending // 1 / 10 <= band.high) for band in bands]
    assert 0.84 < np.mean(inside) < 0.96
    for band in bands:
        assert (band.low <= band.accuracy + 1e-6).all()
        assert (band.accuracy <= band.high + 1e-6).all()
        assert (np.diff([band.low, band.accuracy, band.high], axis=1) >= 0).all()


def test_band_holds_its_own_staircase():
    """A far step that few resamples reach early lifts their mean above nearly all of them."""
    far = np.array([1.0, 1.15])[:, None] + np.array([0, 0.36])[:, None] * np.tile([-1, 1], 20)
    step = replace(
        curve([0.1, 0.9], budgets=(1, 1.15)),
        paid=jnp.asarray(far, jnp.float32),
        solved=jnp.full((2, 40), jnp.array([[0.1], [0.9]])),
        choice=jnp.zeros((2, 40), jnp.int32),
        fold_choice=jnp.zeros((2, 2, 40), jnp.int32),
    )
    band = frontier_band(step, np.array([1.05]))
    assert ((band.low <= band.accuracy) & (band.accuracy <= band.high)).all()


def test_band_by_hand():
    """Problems that all agree leave no width; curves together make one staircase; the dip at 4 is no step."""
    low, high = curve([0.1, 0.2, 0.15, 0.3]), curve([0.0, 0.25, 0.6, 0.6])
    band = frontier_band(low)
    np.testing.assert_allclose(band.spending, [1, 2, 8])
    np.testing.assert_allclose([band.accuracy, band.low, band.high], [[0.1, 0.2, 0.3]] * 3, rtol=1e-6)
    both = frontier_band({"low": low, "high": high}, np.array([0.5, 1.0, 3.0, 9.0]))
    np.testing.assert_allclose(both.accuracy, [0, 0.1, 0.25, 0.6], rtol=1e-6)
    with pytest.raises(ValueError, match="one price"):
        frontier_band({"low": low, "high": curve([0.1] * 4, price="flops")})
    with pytest.raises(ValueError, match="buys anything"):
        frontier_band(replace(low, spent=0 * low.spent, paid=0 * low.paid))


def test_gain_at_by_hand():
    gain = gain_at(curve([0.0, 0.1, 0.2, 0.6]), curve([0.2, 0.6, 0.6, 0.6]), np.array([1.0, 3.0, 8.0]))
    np.testing.assert_allclose([gain.gain, gain.low, gain.high], [[0.2, 0.45, 0.0]] * 3, rtol=1e-6, atol=1e-7)
    with pytest.raises(ValueError, match="same problems"):
        gain_at(curve([0.1] * 4), noisy_curve(0), np.array([1.0]))
