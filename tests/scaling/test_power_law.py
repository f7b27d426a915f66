"""Power laws: recovered with the interval they should have, from points and from choices."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinetics_jax.scaling import Candidate, Tradeoff, choice_power_law, fit_power_law

X = np.array([1.0, 3.0, 10.0, 30.0])


@given(exponent=st.floats(-2, 2), coefficient=st.floats(0.1, 10))
def test_power_law_is_recovered(exponent: float, coefficient: float):
    law = fit_power_law(X, coefficient * X**exponent)
    np.testing.assert_allclose([law.exponent, law.coefficient], [exponent, coefficient], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(law.factor_per_doubling, 2**exponent, rtol=1e-6)
    np.testing.assert_allclose(law(X), coefficient * X**exponent, rtol=1e-6)
    assert law.exponent_stderr < 1e-6
    np.testing.assert_allclose([law.factor_low, law.factor_high], 2**exponent, rtol=1e-5)


@pytest.mark.parametrize(
    ("num_points", "level", "t"),
    # Student's t, from printed tables: 95% at 1, 2 and 10 degrees of freedom, 90% at 5, 99% at 3.
    [(3, 0.95, 12.7062), (4, 0.95, 4.30265), (12, 0.95, 2.22814), (7, 0.9, 2.01505), (5, 0.99, 5.84091)],
)
def test_interval_is_students(num_points: int, level: float, t: float):
    x = np.geomspace(1, 100, num_points)
    law = fit_power_law(x, x**0.5 * np.exp(np.random.default_rng(num_points).normal(0, 0.1, num_points)), level=level)
    half_widths = [law.exponent - law.exponent_low, law.exponent_high - law.exponent]
    np.testing.assert_allclose(half_widths, t * law.exponent_stderr, rtol=1e-5)
    np.testing.assert_allclose([law.factor_low, law.factor_high], [2**law.exponent_low, 2**law.exponent_high])


def test_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    laws = [fit_power_law(X, X**0.8 * np.exp(rng.normal(0, 0.2, 4))) for _ in range(400)]
    assert 0.92 < np.mean([law.exponent_low <= 0.8 <= law.exponent_high for law in laws]) < 0.98


def test_power_law_refuses_what_has_no_logarithm_or_slope():
    with pytest.raises(ValueError, match="positive"):
        fit_power_law(np.array([1.0, 2.0]), np.array([0.0, 1.0]))
    with pytest.raises(ValueError, match="two different"):
        fit_power_law(np.array([2.0, 2.0]), np.array([1.0, 1.0]))
    with pytest.raises(ValueError, match="level must lie"):
        fit_power_law(X, X, level=95.0)
    assert math.isnan(fit_power_law(X[:2], X[:2]).exponent_low)


def priced_by_length(seed: int, num_problems: int = 24) -> Tradeoff:
    """Draw problems whose price is length ** (1.25, more or less); a longer limit always solves more."""
    limits = np.round(np.geomspace(100, 10_000, 30))
    shape = (2, num_problems, len(limits))
    power = np.random.default_rng(seed).normal(1.25, 0.1, (num_problems, 1))
    return Tradeoff(
        cost=jnp.asarray(np.broadcast_to(1000 * (limits / 1000) ** power, shape), jnp.float32),
        num_correct=jnp.asarray(np.broadcast_to(np.arange(1.0, 31.0), shape), jnp.float32),
        num_trials=jnp.full(shape, 32.0),
        k=jnp.ones(len(limits)),
        difficulty=jnp.arange(num_problems, dtype=jnp.int32),
        candidates=tuple(
            Candidate(model="m", attention="topk:32", gen_len=int(limit), num_trials=1) for limit in limits
        ),
        problems=tuple(f"p{q}" for q in range(num_problems)),
        price="eflops",
    )


def test_law_of_choices_is_recovered_and_its_interval_is_as_wide_as_the_scatter():
    """Lengths grow as spending ** 0.8, since prices grow as length ** 1.25; the KV budget stays."""
    budgets = jnp.asarray(np.geomspace(150, 9_000, 8), jnp.float32)
    scatter = np.std(
        [choice_power_law(priced_by_length(seed), budgets, "gen_len", num_resamples=0).exponent for seed in range(12)]
    )
    law = choice_power_law(priced_by_length(99), budgets, "num_tokens", num_resamples=24)
    assert law.exponent_low < law.exponent < law.exponent_high
    np.testing.assert_allclose(law.exponent, 0.8, atol=0.05)
    assert 0.5 < law.exponent_stderr / scatter < 2
    budget_law = choice_power_law(priced_by_length(99), budgets, "budget_len", num_resamples=2)
    np.testing.assert_allclose([budget_law.exponent, budget_law.coefficient], [0, 32], atol=1e-4)
    with pytest.raises(ValueError, match="two budgets"):
        choice_power_law(priced_by_length(99), budgets[:1] / 100, "gen_len", num_resamples=2)
