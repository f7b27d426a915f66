"""The planner: does a study of the planned size know its mean as well as promised?"""

import numpy as np
import pytest

from kinetics_jax.accuracy import VarianceComponents, plan_samples, variance_components


def test_components_by_hand():
    # Means 3/4, 1/4, 1/2 (variance 1/16), variances within 1/4, 1/4, 1/3: their mean is 5/18, over 4 trials 5/72.
    # 1/16 is less than 5/72, so chance explains the spread.
    pilot = variance_components(np.array([[1, 1, 1, 0], [0, 0, 0, 1], [1, 0, 1, 0]]))
    np.testing.assert_allclose([pilot.between, pilot.within], [0, 5 / 18])
    pilot = variance_components(np.array([[True, True], [False, False], [True, False]]))
    np.testing.assert_allclose([pilot.between, pilot.within], [1 / 4 - 1 / 12, 1 / 6])


def test_components_are_unbiased_with_missing_trials():
    # p ~ Beta(1, 1): var p = 1/12, E p(1 - p) = 1/6.
    rng = np.random.default_rng(0)
    mask = np.arange(6) < rng.integers(2, 7, (20_000, 1))
    values = np.where(mask, (rng.random((20_000, 6)) < rng.random((20_000, 1))).astype(float), np.nan)
    pilot = variance_components(values, mask)
    np.testing.assert_allclose([pilot.between, pilot.within], [1 / 12, 1 / 6], rtol=0.03)


@pytest.mark.parametrize("paired", [False, True])
def test_a_planned_study_is_as_wide_as_promised(paired):
    rng = np.random.default_rng(1)

    def study(*shape):
        # A difference of two ways of equal difficulty has less spread between problems and twice the noise within.
        chance = rng.beta(1, 2, (*shape[:-1], 1))
        right = (rng.random(shape) < chance).astype(float)
        return right - (rng.random(shape) < chance * 0.7) if paired else right

    plan = plan_samples(variance_components(study(4000, 8)), half_width=0.08, problem_cost=4.0)
    assert plan.num_trials > 1
    means = study(2000, plan.num_problems, plan.num_trials).mean((1, 2))
    np.testing.assert_allclose(1.96 * means.std(), plan.half_width, rtol=0.06)
    assert 0.07 < plan.half_width <= 0.08


@pytest.mark.parametrize(
    ("problem_cost", "max_problems"), [(0.0, None), (8.0, None), (30.0, None), (0.0, 40), (8.0, 40)]
)
def test_no_cheaper_plan_is_enough(problem_cost, max_problems):
    pilot = VarianceComponents(between=0.05, within=0.2)
    plan = plan_samples(pilot, half_width=0.1, level=0.9, problem_cost=problem_cost, max_problems=max_problems)
    q, r = np.meshgrid(np.arange(2, max_problems or 200), np.arange(1, 200), indexing="ij")
    is_enough = 1.6448536 * np.sqrt(0.05 / q + 0.2 / (q * r)) <= 0.1
    cost = q * (problem_cost + r)
    assert plan.num_problems * (problem_cost + plan.num_trials) == cost[is_enough].min()
    assert plan.num_samples == plan.num_problems * plan.num_trials
    np.testing.assert_allclose(
        plan.half_width, 1.6448536 * np.sqrt(0.05 / plan.num_problems + 0.2 / plan.num_samples), rtol=1e-6
    )


def test_new_problems_beat_new_trials_unless_they_cost():
    pilot = VarianceComponents(between=0.1, within=0.15)
    assert plan_samples(pilot, half_width=0.05).num_trials == 1
    # The optimum is sqrt(c within / between): sqrt(54 * 1.5) = 9.
    assert abs(plan_samples(pilot, half_width=0.01, problem_cost=54.0).num_trials - 9) <= 1


def test_a_worst_case_of_a_share():
    # 1.96^2 * 0.25 / 0.05^2 = 384.1
    assert plan_samples(VarianceComponents(between=0.25, within=0.0), half_width=0.05).num_problems == 385


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.ones((3, 4)), "both variances are 0"),
        (np.zeros((3, 4)), "both variances are 0"),
        (np.array([[1.0, 0.0]]), "two problems and two trials of each; got 1 problems"),
        (np.array([[1.0], [0.0]]), "the least with 1 trials"),
        (np.array([[1.0, np.nan], [0.0, 1.0]]), "values must be finite"),
    ],
)
def test_refuses_a_pilot_that_says_nothing(values, words):
    with pytest.raises(ValueError, match=words):
        variance_components(values)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"half_width": 0.0}, "half_width must be positive"),
        ({"half_width": np.nan}, "half_width must be positive"),
        ({"level": 1.0}, "level must lie in"),
        ({"problem_cost": -1.0}, "problem_cost must be at least 0"),
        ({"max_problems": 1}, "max_problems 2; got 1024 and 1"),
        ({"max_problems": 30}, "30 problems with 1024 trials each reach a half-width of 0.1132"),
    ],
)
def test_refuses_what_no_plan_meets(change, words):
    with pytest.raises(ValueError, match=words):
        plan_samples(VarianceComponents(between=0.1, within=0.1), **{"half_width": 0.1, **change})


def test_refuses_impossible_variances():
    with pytest.raises(ValueError, match="finite and at least 0; got -0"):
        VarianceComponents(between=-0.1, within=0.1)
