"""Whole settings beside an optimum, and which model at which budget."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kinetics_jax.scaling import (
    Bounds,
    Elasticities,
    ModelChoice,
    Optimum,
    Setting,
    compare_models,
    mix_models,
    request_bill,
    request_price,
    round_allocation,
)
from kinetics_jax.specs import HARDWARE, MODELS
from tests.scaling.smooth import Linear, Powers, small_law

MINI, H100 = MODELS["Kinetics-Mini-1.7M"], HARDWARE["H100-SXM"]
POWERS, LINEAR = Powers(scale=1e-2, length=0.5, trials=0.2, budget=0.3), Linear(p=2.0, q=5.0, r=1.0)
BOX = Bounds(gen_len=(1.0, 500.0), num_trials=(1.0, 50.0), budget_len=(1.0, 500.0))


def optimum_at(accuracy: Any, cost: Any, **setting: Any) -> Optimum:
    nothing = np.zeros_like(np.asarray(cost))
    return Optimum(
        setting=Setting(**setting),
        accuracy=np.asarray(accuracy),
        cost=np.asarray(cost),
        shadow_price=nothing,
        multipliers=nothing,
        slack=nothing,
        kkt_residual=nothing,
        limits=(),
    )


def in_closed_form(budgets: np.ndarray) -> Optimum:
    """Return the optima of `POWERS` and `LINEAR`: shares of the money in proportion to the exponents."""
    length, trials, budget = 0.5 * budgets / 2, 0.2 * budgets / 5, 0.3 * budgets
    at = Setting(gen_len=length, num_trials=trials, budget_len=budget, page_len=np.ones_like(length))
    return optimum_at(np.asarray(POWERS.accuracy(at)), budgets, **vars(at))


def test_the_best_whole_setting_next_to_the_optimum():
    budgets = np.array([137.0, 333.0, 911.0])
    best = in_closed_form(budgets)
    whole = round_allocation(best, POWERS, LINEAR, budgets, bounds=BOX)
    for name, value in vars(whole.setting).items():
        np.testing.assert_array_equal(value, np.round(value), err_msg=name)
    assert (whole.cost <= budgets).all()
    assert (whole.loss >= 0).all()
    assert (whole.loss < 0.03 * best.accuracy).all()
    # Nothing whole within the budget is better, of everything there is at the first one.
    axes = np.meshgrid(np.arange(1, 70), np.arange(1, 28), np.arange(1, 138), indexing="ij")
    length, trials, budget = (axis.astype(float) for axis in axes)
    everything = Setting(gen_len=length, num_trials=trials, budget_len=budget, page_len=1.0)
    cost, accuracy = (np.asarray(law(everything)) for law in (LINEAR, POWERS.accuracy))
    assert whole.accuracy[0] >= 0.999 * accuracy[cost <= budgets[0]].max()


def test_what_is_allowed_and_what_nobody_can_pay():
    budgets = np.array([137.0, 911.0, 20.0])
    best = in_closed_form(budgets)
    whole = round_allocation(
        best, POWERS, LINEAR, budgets, bounds=BOX, num_trials=(1, 8, 32), budget_lens=(16, 64, 256)
    )
    assert set(whole.setting.num_trials[:2]) <= {1.0, 8.0, 32.0}
    assert set(whole.setting.budget_len[:2]) <= {16.0, 64.0, 256.0}
    assert np.isnan([whole.accuracy[2], whole.cost[2], whole.setting.gen_len[2]]).all()  # 7 + 16 is more than 20


def test_pages_are_powers_of_two_and_bills_are_exact():
    bounds = Bounds(gen_len=(8.0, 256.0), num_trials=(1.0, 64.0), budget_len=(16.0, None), page_len=(1.0, 64.0))
    price = request_price(MINI, "block_topk", H100, prompt_len=294)
    bill = request_bill(MINI, "block_topk", H100, prompt_len=294)
    at = Setting(gen_len=60.3, num_trials=3.4, budget_len=70.5, page_len=5.2)
    budgets = np.array([float(price(at))])
    best = optimum_at([float(small_law().accuracy(at))], budgets, **{k: np.array([v]) for k, v in vars(at).items()})
    whole = round_allocation(best, small_law(), price, budgets, bounds=bounds, bill=bill)
    page, budget = float(whole.setting.page_len[0]), float(whole.setting.budget_len[0])
    assert page in (2.0, 4.0, 8.0, 16.0)
    assert budget % page == 0
    np.testing.assert_allclose(bill(whole.setting), whole.cost)
    assert whole.cost[0] <= budgets[0]
    more = Setting(**{**vars(whole.setting), "gen_len": whole.setting.gen_len + 1})
    assert bill(more)[0] > budgets[0]  # the length is the longest that is paid for


def test_a_mixture_of_models_lies_on_the_hull_of_their_optima():
    """Two models with one optimum a budget: between them, requests are shared out in proportion."""
    cost, accuracy = np.array([[1.0, 2.0], [3.0, 5.0]]), np.array([[0.4, 0.5], [0.5, 0.9]])
    each = optimum_at(accuracy, cost, gen_len=cost, num_trials=cost, budget_len=cost, page_len=cost)
    names = ("gen_len", "num_trials", "num_tokens", "budget_len", "page_len", "accuracy")
    growth = Elasticities(**dict.fromkeys(names, cost))
    choice = ModelChoice(each=each, model=np.zeros(2, int), optimum=each, growth=growth, models=("small", "large"))
    mixture = mix_models(choice, np.array([0.5, 1.0, 3.0, 5.0, 9.0]))
    np.testing.assert_allclose(mixture.accuracy, [0.2, 0.4, 0.65, 0.9, 0.9])
    np.testing.assert_allclose(mixture.weights, [[0.5, 0], [1, 0], [0.5, 0.5], [0, 1], [0, 1]])


def test_models_are_compared_at_prices_that_can_be_paid():
    """The command's tests compare models; here is what is refused before anything is solved."""
    names = ("Kinetics-Mini-0.1M", "Kinetics-Mini-7M")
    laws = [small_law(log_rate=rate) for rate in (-2.5, -1.0)]
    both = jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *laws)
    surface = replace(both, models=("small", "large"))
    prices = [request_price(MODELS[name], "topk", H100, prompt_len=294.0) for name in names]
    bounds = Bounds(gen_len=(8.0, 256.0), num_trials=1.0, budget_len=128.0)
    with pytest.raises(ValueError, match="every model needs a price; got 1 for small, large"):
        compare_models(surface, prices[:1], np.array([1e9]), bounds=bounds)
    least = float(prices[0](Setting(gen_len=8.0, num_trials=1.0, budget_len=128.0, page_len=1.0)))
    with pytest.raises(ValueError, match=f"above the cheapest setting's price, {least:.4g}".replace("+", r"\+")):
        compare_models(surface, prices, np.array([0.5, 2.0]) * least, bounds=bounds)
