"""The fitted law on recorded traces and on draws of a known one: left-out points, calibration, spread, bad input."""

from dataclasses import replace
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kinetics_jax.scaling import (
    AccuracySurface,
    Setting,
    bootstrap_surface,
    fit_accuracy_surface,
    grid_points,
    score_left_out,
)
from kinetics_jax.scaling._fit_surface import fit_outcomes
from kinetics_jax.scaling._outcomes import count_outcomes
from kinetics_jax.scaling._surface_fit import predict
from kinetics_jax.traces import TraceTable
from kinetics_jax.zoo import recorded_tables
from tests.scaling.synthetic import synthetic_tables

NUM_STEPS = 60
# Of one model, for messages: 4 problems, dense and two budgets.
FEW = synthetic_tables(attentions=("dense", "topk:16", "topk:64"), num_problems=4, num_trials=4)[:3]


@lru_cache(maxsize=1)
def topk_tables() -> list[TraceTable]:
    return [table for table in recorded_tables() if table.attention.startswith(("dense", "topk"))]


@lru_cache(maxsize=1)
def topk_surface() -> AccuracySurface:
    return fit_accuracy_surface(topk_tables(), num_steps=NUM_STEPS)


def test_left_out_points_are_told_better_than_by_means():
    """A budget and a limit that the fit has not seen; the trials' own shares of each problem are hard to beat."""
    score = score_left_out(topk_tables(), num_steps=NUM_STEPS)
    assert score.num_points == 80  # 4 budgets x 5 limits x 4 models
    assert score.surface > score.grid_mean + 0.1 > score.constant + 0.15
    assert score.surface > score.problem_mean - 0.02
    # Calibration: each tenth of the predictions came true as often as it said, within seven points.
    assert score.num_trials.min() > 1000
    np.testing.assert_allclose(score.measured, score.predicted, atol=0.08)
    assert abs(np.average(score.measured - score.predicted, weights=score.num_trials)) < 0.02


def test_every_grid_point_beside_the_measurement():
    points = grid_points(topk_surface(), topk_tables())
    assert len(points) == 4 * 6 * 11
    errors = np.array([point.fitted - point.measured for point in points])
    assert np.abs(errors).mean() < 0.03
    assert np.abs(errors).max() < 0.15
    assert np.mean([point.low <= point.fitted <= point.high for point in points]) > 0.7


def test_the_law_rises_with_length_and_budget_and_falls_with_the_page():
    law = topk_surface()
    assert law.models == tuple(dict.fromkeys(table.model for table in topk_tables()))
    one = replace(law.of_model(law.models[-1]), page_slope=0.5)
    rising = jnp.geomspace(16.0, 256.0, 9)
    ones = jnp.ones(9)

    def solved(length: jax.Array, budget: jax.Array, page: jax.Array) -> np.ndarray:
        at = Setting(gen_len=length, num_trials=ones, budget_len=budget, page_len=page)
        return np.asarray(jax.vmap(one.solved)(at))

    assert (np.diff(solved(rising, 64 * ones, ones), axis=0) >= 0).all()
    assert (np.diff(solved(64 * ones, rising, ones), axis=0) >= 0).all()
    assert (np.diff(solved(64 * ones, 64 * ones, rising / 16), axis=0) <= 0).all()
    assert solved(rising * 1e6, rising * 1e6, ones).max() <= float(one.ceiling)
    with pytest.raises(ValueError, match="the surface has no model 'nobody'"):
        law.of_model("nobody")


def test_draws_of_a_known_law_give_it_back(key: jax.Array):
    """3,200 trials a point, so that what is left is the error of the fit."""
    truth, outcomes = topk_surface(), count_outcomes(topk_tables(), None)
    within = predict(truth, outcomes)
    chances = np.concatenate([np.diff(within, axis=-1, prepend=0.0), 1 - within[..., -1:]], axis=-1).clip(0)
    rng = np.random.default_rng(int(jax.random.bits(key)))
    counts = rng.multinomial(3200, chances / chances.sum(-1, keepdims=True)).astype(float)
    drawn = replace(outcomes, solved=counts[..., :-1], unsolved=counts[..., -1])
    again = predict(fit_outcomes(drawn, num_steps=NUM_STEPS), outcomes)
    assert np.abs(again - within).mean() < 0.003
    assert np.abs(again - within).max() < 0.06


def test_the_bootstrap_spreads_about_the_fit():
    model = topk_surface().models[-1]
    # As many lanes as there are models: the same compiled program.
    drawn = bootstrap_surface(
        [table for table in topk_tables() if table.model == model], num_resamples=4, num_steps=NUM_STEPS
    )
    assert drawn.difficulty.shape == (4, 1, 80)
    at = Setting(gen_len=128.0, num_trials=1.0, budget_len=64.0, page_len=1.0)
    whole = float(topk_surface().of_model(model).accuracy(at))
    each = np.asarray(jax.vmap(lambda law: law.accuracy(at))(jax.tree.map(lambda leaf: leaf[:, 0], drawn)))
    # 80 problems of 16 trials: a standard error of one point.
    assert 1e-4 < each.std() < 0.03
    assert abs(each.mean() - whole) < 0.03
    with pytest.raises(ValueError, match="two resamples or more; got num_resamples=1"):
        bootstrap_surface(FEW, num_resamples=1)


def test_bad_input_is_one_sentence():
    never = [replace(table, solved_len=np.full(table.mask.shape, np.inf)) for table in FEW]
    cases: list[tuple[list[TraceTable], list[float] | None, str]] = [
        ([], None, "a surface needs at least one trace table"),
        (FEW, [64.0], "a surface needs two lengths or more; got the one limit"),
        (never, None, "no trial of Kinetics-Mini-0.1M is solved"),
        (FEW, [16.0, float("nan")], "limits must be finite"),
        (FEW, [16.0, 512.0], "limits must be finite and lie within 1..256"),
        (FEW, [64.0, 16.0], "limits must rise"),
        ([*FEW, FEW[1]], None, "has two tables"),
        ([FEW[1], replace(FEW[2], attention="local:64")], None, "one attention method beside dense"),
        ([FEW[1], replace(FEW[2], task="other")], None, "one task and the same problems"),
    ]
    for tables, limits, said in cases:
        with pytest.raises(ValueError, match=said):
            fit_accuracy_surface(tables, limits=limits)
    with pytest.raises(ValueError, match="interpolation needs three KV budgets"):
        score_left_out(FEW[:2])
