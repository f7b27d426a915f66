"""The optimum and its derivatives against closed forms, a grid and finite differences; what is refused."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinetics_jax.scaling import (
    Bounds,
    Optimum,
    Setting,
    _elasticities,
    elasticities,
    minimal_cost,
    optimal_allocation,
    request_price,
)
from kinetics_jax.specs import HARDWARE, MODELS
from tests.scaling.smooth import Housed, Linear, Powers, PowersAndParts, small_law

MINI, H100 = MODELS["Kinetics-Mini-1.7M"], HARDWARE["H100-SXM"]
POWERS = PowersAndParts(scale=1e-4, length=0.5, trials=0.2, budget=0.3)
WIDE = Bounds(gen_len=(1.0, 1e6), num_trials=(1.0, 1e6), budget_len=(1.0, 1e6))
# One shape for all requests to the small law, so that they share one compiled program.
BOX = Bounds(gen_len=(8.0, 256.0), num_trials=(1.0, 64.0), budget_len=(16.0, None))


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def numbers(optimum: Optimum) -> Any:
    setting = optimum.setting
    return jnp.stack([setting.gen_len, setting.num_trials, setting.budget_len, optimum.accuracy, optimum.shadow_price])


LINEAR = Housed(p=2.0, q=5.0, r=1.0)


@jax.jit
def powers_and_slopes(surface: Any, price: Any, budget: Any, highest: Any, room: Any, time: Any) -> tuple[Any, Optimum]:
    """Return the derivatives of (n, N, B, accuracy, shadow price) by everything, in reverse, and the optimum."""

    def solve(surface: Any, price: Any, budget: Any, highest: Any, room: Any, time: Any) -> tuple[Any, Optimum]:
        bounds = replace(WIDE, num_trials=(1.0, highest), cache_bytes=room, latency_s=time)
        best = optimal_allocation(surface, price, budget, bounds=bounds)
        return numbers(best), best

    return jax.jacrev(solve, (0, 1, 2, 3, 4, 5), has_aux=True)(surface, price, budget, highest, room, time)


BUDGET, LOOSE = 1e4, (1e6, 1e12, 1e9)


def test_interior_optimum_and_its_derivatives_by_hand():
    (by_surface, by_price, by_budget, *_), optimum = powers_and_slopes(POWERS, LINEAR, BUDGET, *LOOSE)
    # Each takes the share of the money that its exponent has of their sum, which is 1 here.
    wanted = np.array([0.5 * BUDGET / 2, 0.2 * BUDGET / 5, 0.3 * BUDGET / 1])
    accuracy = 1e-4 * wanted[0] ** 0.5 * wanted[1] ** 0.2 * wanted[2] ** 0.3
    np.testing.assert_allclose(numbers(optimum)[:3], wanted, rtol=1e-6)
    np.testing.assert_allclose(numbers(optimum)[3:], accuracy, rtol=1e-6)  # the shadow price is A (a + b + c)
    assert float(optimum.kkt_residual) < 1e-6
    np.testing.assert_allclose(by_budget, np.append(wanted, [accuracy, accuracy]) / BUDGET, rtol=1e-5)
    np.testing.assert_allclose(by_price.p[:3], [-wanted[0] / 2, 0, 0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(by_price.q[:3], [0, -wanted[1] / 5, 0], rtol=1e-5, atol=1e-5)
    # dn/da = C / p (1 - a); the others give way in proportion.
    np.testing.assert_allclose(by_surface.length[:3], [0.5 * BUDGET / 2, -wanted[1], -wanted[2]], rtol=1e-5)
    np.testing.assert_allclose(by_surface.scale[:4], [0, 0, 0, accuracy / 1e-4], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(by_surface.length[3], accuracy * np.log(wanted[0]), rtol=1e-5)


def test_a_tight_bound_does_not_move_and_has_a_price():
    highest = 100.0
    (_, _, by_budget, by_bound, *_), optimum = powers_and_slopes(POWERS, LINEAR, BUDGET, highest, *LOOSE[1:])
    left = BUDGET - 5 * highest
    wanted = np.array([0.5 / 0.8 * left / 2, highest, 0.3 / 0.8 * left])
    np.testing.assert_allclose(numbers(optimum)[:3], wanted, rtol=1e-6)
    assert optimum.tight() == [["num_trials at most", "cost"]]
    accuracy = float(1e-4 * wanted[0] ** 0.5 * wanted[1] ** 0.2 * wanted[2] ** 0.3)
    # 1% more money goes to what is left of it.
    np.testing.assert_allclose(optimum.shadow_price, accuracy * 0.8 * BUDGET / left, rtol=1e-6)
    price_of_bound = float(optimum.multipliers[optimum.limits.index("num_trials at most")])
    np.testing.assert_allclose(price_of_bound, accuracy * (0.2 - 0.8 * 500 / left), rtol=1e-6)
    np.testing.assert_allclose(by_budget[:3], [0.5 / 0.8 / 2, 0, 0.3 / 0.8], rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(by_bound[:3], [-5 * 0.5 / 0.8 / 2, 1, -5 * 0.3 / 0.8], rtol=1e-5)
    np.testing.assert_allclose(by_bound[3], price_of_bound / highest, rtol=1e-5)


def test_memory_and_latency_are_limits_with_a_price():
    room = 2e5  # half of what the interior optimum takes
    (*_, by_room, _), optimum = powers_and_slopes(POWERS, LINEAR, BUDGET, LOOSE[0], room, LOOSE[2])
    # n and N give up the share m of the money each, such that n N is the room: a quadratic in m.
    k = 2 * 5 * room / BUDGET**2
    m = np.roots([1 - 4 * k, -(0.7 - 4 * k), 0.1 - k]).min()
    wanted = np.array([(0.5 - m) / 2, (0.2 - m) / 5, 0.3]) * BUDGET / (1 - 2 * m)
    np.testing.assert_allclose(numbers(optimum)[:3], wanted, rtol=1e-6)
    assert optimum.tight() == [["cost", "memory"]]
    bought = float(optimum.multipliers[optimum.limits.index("memory")])
    np.testing.assert_allclose(bought, m * float(optimum.accuracy), rtol=1e-6)
    np.testing.assert_allclose(by_room[3], bought / room, rtol=1e-5)
    (*_, by_time), optimum = powers_and_slopes(POWERS, LINEAR, BUDGET, *LOOSE[:2], 1.0)
    left = BUDGET - 2 * 1000
    np.testing.assert_allclose(numbers(optimum)[:3], [1000, 0.4 * left / 5, 0.6 * left], rtol=1e-6)
    assert optimum.tight() == [["cost", "latency"]]
    np.testing.assert_allclose(by_time[:3], [1000, -0.4 * 2000 / 5, -0.6 * 2000], rtol=1e-5)


def test_the_largest_of_three_parts_has_its_optimum_at_the_kink():
    surface = PowersAndParts(scale=1e-4, length=0.0, trials=0.0, budget=0.3, share=1.0)
    price = Housed(p=1e-9, q=1e-9, r=1.0, a=1.0, b=4.0)
    _, best = powers_and_slopes(surface, price, 60.0, *LOOSE)
    np.testing.assert_allclose([*numbers(best)[:3], best.cost], [60, 15, 60, 60], rtol=1e-6)
    assert best.tight() == [["cost", "length", "trials"]]
    by_length, by_trials = 0.5 * 1.5 * np.exp(-1.5), 0.4 * 2.5 * np.exp(-2.5)  # u n / s exp(-n / s) and its like
    by_budget = 0.3 * 1e-4 * 60**0.3
    np.testing.assert_allclose(best.shadow_price, by_length + by_trials + by_budget, rtol=1e-6)


def test_what_saturates_by_hand():
    """The KV budget buys nothing, stays at its lower bound of 1 and costs 1."""

    def by_hand(u: Any, budget: Any) -> Any:
        s, v, t = 40.0, 0.4, 6.0  # slopes u / s exp(-n / s) and v / t exp(-N / t) are as the prices 1 and 4
        log_price = (s * jnp.log(u / s) + 4 * t * jnp.log(v / t / 4) - (budget - 1)) / (s + 4 * t)
        length, trials = s * (jnp.log(u / s) - log_price), t * (jnp.log(v / t / 4) - log_price)
        return jnp.stack([length, trials, 1 - u * jnp.exp(-length / s) - v * jnp.exp(-trials / t)])

    surface = PowersAndParts(scale=0.0, length=0.0, trials=0.0, budget=0.0, share=1.0, u=0.5)
    (by_surface, _, by_budget, *_), optimum = powers_and_slopes(surface, Housed(p=1.0, q=4.0, r=1.0), 200.0, *LOOSE)
    wanted = by_hand(0.5, 200.0)
    by_u, by_money = jax.jacfwd(by_hand, (0, 1))(0.5, 200.0)
    chosen = np.array([0, 1, 3])
    assert optimum.tight() == [["budget_len at least", "cost"]]
    np.testing.assert_allclose(numbers(optimum)[chosen], wanted, rtol=1e-6)
    np.testing.assert_allclose(by_surface.u[chosen], by_u, rtol=1e-5)
    np.testing.assert_allclose(by_budget[chosen], by_money, rtol=1e-5)
    np.testing.assert_allclose([numbers(optimum)[2], by_budget[2]], [1, 0], atol=1e-6)


# All that follows is one compiled program: 350 lanes of a law and a budget, with derivatives by three causes.
NUM_LANES, NUM_INSTANCES, STEP = 350, 50, 1e-4
# Ranges of the random laws; beyond them little but bounds is met.
RANGES = {
    "log_rate": (-2.5, -1.0),
    "length_slope": (1.2, 2.2),
    "keep_slope": (0.5, 2.0),
    "keep_log_len": (2.5, 4.0),
    "loss_slope": (1.0, 2.0),
    "loss_log_len": (1.5, 3.0),
}
USUAL = {
    "log_rate": -1.8,
    "length_slope": 1.2,
    "keep_slope": 1.1,
    "keep_log_len": 3.4,
    "loss_slope": 1.5,
    "loss_log_len": 2.4,
}


@jax.jit
@jax.vmap
def solve_lanes(changes: dict[str, Any], factors: Any) -> tuple[Any, Optimum]:
    """Return d (log n, log N, log B, accuracy) / d log (budget, intensity, cache) at three factors; the optimum."""

    def solve(log_factors: Any) -> tuple[Any, Optimum]:
        factors = jnp.exp(log_factors)
        price = request_price(MINI, "topk", H100, prompt_len=294.0)
        price = replace(
            price,
            flops_per_byte=price.flops_per_byte * factors[1],
            kv_elements_per_token=price.kv_elements_per_token * factors[2],
        )
        best = optimal_allocation(small_law(**changes), price, factors[0], bounds=BOX)
        return jnp.append(jnp.log(numbers(best)[:3]), best.accuracy), best

    return jax.jacfwd(solve, has_aux=True)(jnp.log(factors))


def solve_many(factors: Any, changes: dict[str, Any] = USUAL) -> tuple[np.ndarray, Optimum]:
    """Solve K budgets, or K triples of factors, for K laws or one."""
    factors = np.asarray(factors)
    factors = np.column_stack([factors, np.ones((len(factors), 2))]) if factors.ndim == 1 else factors
    row = np.minimum(np.arange(NUM_LANES), len(factors) - 1)
    each = {name: jnp.asarray(np.broadcast_to(value, (len(factors),))[row]) for name, value in changes.items()}
    slopes, optima = solve_lanes(each, jnp.asarray(factors[row]))
    return np.asarray(slopes)[: len(factors)], jax.tree.map(lambda leaf: np.asarray(leaf)[: len(factors)], optima)


@settings(max_examples=2)
@given(st.integers(0, 2**32 - 1))
def test_derivatives_are_those_of_solving_again(seed: int):
    """Central differences through a re-solve, at 50 random laws and budgets an example."""
    rng = np.random.default_rng(seed)
    changes = {name: np.repeat(rng.uniform(*ends, NUM_INSTANCES), 7) for name, ends in RANGES.items()}
    budgets = 10.0 ** rng.uniform(8.3, 11.0, NUM_INSTANCES)
    turns = np.exp(STEP * np.concatenate([np.zeros((1, 3)), np.eye(3), -np.eye(3)]))
    factors = turns[None] * np.column_stack([budgets, np.ones((NUM_INSTANCES, 2))])[:, None]
    slopes, optima = solve_many(factors.reshape(-1, 3), changes)
    assert optima.kkt_residual.max() < 1e-6
    slopes = slopes.reshape(NUM_INSTANCES, 7, 4, 3)[:, 0]
    tight = (optima.slack < 1e-5).reshape(NUM_INSTANCES, 7, -1)
    # Where a limit turns tight in between, the derivative is one of two.
    is_kink = (tight != tight[:, :1]).any((1, 2))
    held = tight[:, 0, :3] | tight[:, 0, 3:6]
    assert is_kink.sum() <= 5
    assert (~held.any(1)).sum() >= 5
    assert held.any(1).sum() >= 5
    chosen = np.log(np.stack([optima.setting.gen_len, optima.setting.num_trials, optima.setting.budget_len]))
    values = np.concatenate([chosen, optima.accuracy[None]]).reshape(4, NUM_INSTANCES, 7)
    differences = np.moveaxis(values[..., 1:4] - values[..., 4:], 0, 1) / (2 * STEP)
    np.testing.assert_allclose(slopes[~is_kink], differences[~is_kink], rtol=1e-3, atol=2e-4)
    # Zero where a bound is tight, and the envelope theorem: the shadow price is the slope of the accuracy.
    np.testing.assert_allclose(slopes[:, :3][held & ~is_kink[:, None]], 0, atol=1e-6)
    np.testing.assert_allclose(slopes[:, 3, 0], optima.shadow_price[::7], rtol=1e-5, atol=1e-8)


def test_never_worse_than_a_fine_grid_and_spends_all_there_is():
    price = request_price(MINI, "topk", H100, prompt_len=294.0)
    axes = np.meshgrid(np.geomspace(8, 256, 21), np.geomspace(1, 64, 25), np.geomspace(16, 550, 21), indexing="ij")
    length, trials, budget = (jnp.asarray(axis.ravel()) for axis in axes)
    grid = Setting(gen_len=length, num_trials=trials, budget_len=budget, page_len=jnp.ones_like(length))
    cost = np.where(budget <= price.context_len(grid), np.asarray(jax.vmap(price)(grid)), np.inf)
    caps = np.geomspace(2e8, 2e11, 100)
    for changes in (USUAL, {**USUAL, "length_slope": 0.8, "keep_slope": 0.2}, {**USUAL, "loss_log_len": 3.2}):
        accuracy = np.asarray(jax.vmap(small_law(**changes).accuracy)(grid))
        _, optima = solve_many(caps, changes)
        assert optima.kkt_residual.max() < 1e-6
        best = np.array([accuracy[cost <= cap].max() for cap in caps])
        assert (optima.accuracy >= best - 1e-9).all()
        np.testing.assert_allclose(optima.cost, caps, rtol=1e-6)


def test_money_that_buys_nothing_is_left():
    """From a little more than the dearest setting costs to far more."""
    price = request_price(MINI, "topk", H100, prompt_len=294.0)
    dearest = float(price(Setting(gen_len=256.0, num_trials=64.0, budget_len=550.0, page_len=1.0)))
    _, optima = solve_many(dearest * np.geomspace(1.1, 1e4, 40))
    assert optima.kkt_residual.max() < 1e-6
    for names in optima.tight():
        assert set(names) == {"gen_len at most", "num_trials at most", "whole context"}
    np.testing.assert_allclose(optima.shadow_price, 0, atol=1e-9)
    np.testing.assert_allclose(optima.setting.budget_len, 550.0, rtol=1e-6)  # the prompt and all that is generated


def test_elasticities_are_the_derivatives_by_logarithms(monkeypatch: pytest.MonkeyPatch):
    """Of a closed form, which stands in for the solver: shares of the money in proportion to the exponents."""

    def in_closed_form(surface: Powers, price: Any, budget: Any, *, bounds: Bounds, num_starts: int) -> Optimum:
        length, trials, read = 0.5 * budget / price.p, 0.2 * budget / price.q, 0.3 * budget / price.r
        at = Setting(gen_len=length, num_trials=trials, budget_len=read, page_len=jnp.ones_like(length))
        accuracy = surface.accuracy(at)
        return Optimum(
            setting=at,
            accuracy=accuracy,
            cost=budget,
            shadow_price=accuracy,
            multipliers=accuracy,
            slack=accuracy,
            kkt_residual=accuracy,
            limits=(),
        )

    monkeypatch.setattr(_elasticities, "optimal_allocation", in_closed_form)
    budgets = np.array([1e4, 2e4])
    grown = elasticities(POWERS, LINEAR, budgets, bounds=WIDE)
    for name, wanted in (("gen_len", 1.0), ("num_tokens", 2.0), ("budget_len", 1.0), ("page_len", 0.0)):
        np.testing.assert_allclose(getattr(grown, name), wanted, atol=1e-6)
    np.testing.assert_allclose(
        grown.accuracy, 1e-4 * (budgets / 4) ** 0.5 * (budgets / 25) ** 0.2 * (0.3 * budgets) ** 0.3
    )
    np.testing.assert_allclose(grown.per_doubling().num_tokens, 4.0, rtol=1e-6)
    with pytest.raises(ValueError, match="field of RequestPrice"):
        elasticities(POWERS, LINEAR, budgets, bounds=WIDE, cause="num_params")


@pytest.mark.parametrize(
    ("changes", "budget", "said"),
    [
        ({}, 10.0, "a budget must be above the cheapest setting's price"),
        ({}, float("nan"), "every number of the limit must be finite"),
        ({"gen_len": (100.0, 10.0)}, 1e9, "the bounds of gen_len contradict each other: at least 100, at most 10"),
        ({"gen_len": (0.0, 10.0)}, 1e9, "gen_len must be positive"),
        ({"num_trials": (1.0, None)}, 1e9, "num_trials must be a finite number"),
        ({"num_trials": (1.0, 2.0, 3.0)}, 1e9, "a number or a pair"),
        ({"gen_len": 8.0, "num_trials": 1.0, "budget_len": 64.0}, 1e9, "nothing is free"),
        ({"cache_bytes": 1.0}, 1e9, "the smallest setting needs"),
        ({"latency_s": 1e-12}, 1e9, "the smallest setting needs"),
    ],
)
def test_bad_input_is_one_sentence(changes: dict[str, Any], budget: float, said: str):
    price = request_price(MINI, "topk", H100, prompt_len=294.0)
    with pytest.raises(ValueError, match=said) as refused:
        optimal_allocation(small_law(), price, budget, bounds=replace(BOX, **changes))
    assert "\n" not in str(refused.value)


def test_other_bad_input():
    price = request_price(MINI, "topk", H100, prompt_len=294.0)
    lowest = float(price(Setting(gen_len=8.0, num_trials=1.0, budget_len=16.0, page_len=1.0)))
    with pytest.raises(ValueError, match=f"cheapest setting's price, {lowest:.4g}; got 6e".replace("+", r"\+")):
        optimal_allocation(small_law(), price, 6e7, bounds=BOX)
    with pytest.raises(ValueError, match="every number of the surface must be finite"):
        optimal_allocation(small_law(log_rate=float("nan")), price, 1e9, bounds=BOX)
    with pytest.raises(ValueError, match="every number of the price must be finite"):
        optimal_allocation(small_law(), replace(price, num_params=float("inf")), 1e9, bounds=BOX)
    with pytest.raises(ValueError, match="does not tell its bytes of cache"):
        optimal_allocation(POWERS, Linear(p=1.0, q=1.0, r=1.0), 1e4, bounds=replace(WIDE, cache_bytes=1e9))
    with pytest.raises(ValueError, match="accuracy must be below what the upper bounds reach"):
        minimal_cost(small_law(), price, 0.99999, bounds=BOX)
    with pytest.raises(ValueError, match="num_starts"):
        optimal_allocation(small_law(), price, 1e9, bounds=BOX, num_starts=9)
    with pytest.raises(ValueError, match="window that covers the prompt"):
        request_price(MINI, "local", H100, prompt_len=294.0)
    with pytest.raises(ValueError, match="Use a p-norm"):
        minimal_cost(small_law(), replace(price, combine="max"), 0.5, bounds=BOX)
