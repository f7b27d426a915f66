"""Elasticities of power laws are their exponents; of prices, the slopes of their logarithms."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kinetics_jax.cost import Cost, eflops, elasticity, request_cost
from kinetics_jax.specs import HARDWARE, MODELS, BlockTopK, Dense

MODEL, B200 = MODELS["Qwen3-1.7B"], HARDWARE["PAPER_B200"]


def power_law(scale: Any, x: Any, *, y: Any = 1.0) -> Any:
    return scale * x**1.5 / y**2


@pytest.mark.parametrize(("wrt", "exponent"), [(0, 1.0), (1, 1.5), ("y", -2.0)])
def test_a_power_law_has_its_exponent_everywhere(wrt: Any, exponent: float) -> None:
    slope = elasticity(power_law, wrt)(3.0, np.array([0.5, 2.0, 40.0], np.float32), y=5)
    assert slope.shape == (3,)
    np.testing.assert_allclose(slope, exponent, rtol=1e-6)


def test_elements_answer_for_themselves_and_a_sum_for_all() -> None:
    x = jnp.array([1.0, 2.0, 3.0])
    np.testing.assert_allclose(elasticity(lambda x: jnp.exp(x), 0)(x), x, rtol=1e-6)
    np.testing.assert_allclose(elasticity(lambda x: jnp.exp(x).sum(), 0)(x), (x * jnp.exp(x)).sum() / jnp.exp(x).sum())
    assert elasticity(lambda x, y: y + 0.0 * x, 0)(2.0, 7.0) == 0.0


@pytest.mark.parametrize("name", ["prompt_len", "gen_len", "num_trials", "batch_size"])
def test_price_against_differences_of_logarithms(name: str) -> None:
    spec = BlockTopK(page_len=16, num_pages=4, dense_layers=1)

    def price(**sizes: Any) -> Any:
        return eflops(request_cost(MODEL, spec, **sizes), B200)

    sizes: dict[str, Any] = {
        "prompt_len": 20.3,
        "gen_len": np.array([7.4, 300.4]),
        "num_trials": 2.6,
        "batch_size": 3.3,
    }
    with jax.enable_x64(True):
        slope = jax.jit(elasticity(price, name))(**sizes)
        assert slope.dtype == jnp.float64
    above, below = (np.log(price(**(sizes | {name: sizes[name] * np.exp(step)}))) for step in (1e-6, -1e-6))
    np.testing.assert_allclose(slope, (above - below) / 2e-6, rtol=1e-5, atol=1e-7)


def test_every_term_of_a_bill_at_once_and_free_terms_are_nan() -> None:
    bill = elasticity(request_cost, "gen_len")(MODEL, Dense(), prompt_len=0, gen_len=1000)
    assert isinstance(bill, Cost)
    assert bill.linear_flops.dtype == jnp.float32
    np.testing.assert_allclose(bill.linear_flops, 1.0, rtol=1e-6)
    np.testing.assert_allclose(bill.kv_read_bytes, (2 * 1000 + 1) / (1000 + 1), rtol=1e-6)
    assert bool(jnp.isnan(bill.search_bytes))  # Dense attention searches nothing.
    assert bool(jnp.isnan(elasticity(request_cost, "gen_len")(MODEL, Dense(), prompt_len=0, gen_len=0).linear_flops))


def test_vmap_and_grad_go_through() -> None:
    """f = 1 + x: elasticity x / (1 + x), whose slope is 1 / (1 + x)^2."""
    slope = elasticity(lambda x: 1.0 + x, 0)
    x = jnp.array([0.5, 3.0])
    np.testing.assert_allclose(jax.vmap(slope)(x), x / (1 + x), rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(jax.grad(slope))(x), 1 / (1 + x) ** 2, rtol=1e-6)


@pytest.mark.parametrize(("wrt", "said"), [(2, "position 2"), ("z", "keyword 'z'"), ("x", "keyword 'x'")])
def test_an_argument_that_the_call_lacks_is_refused(wrt: Any, said: str) -> None:
    with pytest.raises(ValueError, match=rf"wrt must name an argument of the call; got {said} in a call with 2 positi"):
        elasticity(power_law, wrt)(1.0, 2.0, y=3.0)
