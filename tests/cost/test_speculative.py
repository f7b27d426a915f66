"""Speculative decoding against rounds played out one by one."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kinetics_jax.cost import Cost, request_cost, speculative_cost
from kinetics_jax.specs import MODELS, BlockTopK, Dense, Local

MODEL, DRAFT = MODELS["Qwen3-8B"], BlockTopK(page_len=16, num_pages=8)
SIZES: dict[str, Any] = {"prompt_len": 1000, "gen_len": 6000}


def steps(spec: Any, batch_size: int) -> Cost:
    """The bill of one decode step at every context of up to 8,000 tokens."""
    return request_cost(MODEL, spec, prompt_len=np.arange(8000), gen_len=1, batch_size=batch_size)


@pytest.mark.parametrize(("rate", "draft_len"), [(0.0, 2), (0.7, 1), (0.9, 4), (1.0, 3)])
def test_bill_is_the_sum_over_played_rounds(rate: float, draft_len: int) -> None:
    """Play the rounds; the composition spreads them evenly, which the discrete rounds do to a percent here."""
    rng, context_len, batch_size = np.random.default_rng(0), 1000, 16
    draft, verify = steps(DRAFT, batch_size), steps(Dense(), batch_size)
    total = dict.fromkeys(("flops", "kv_read_bytes", "search_bytes", "param_bytes"), 0.0)
    while context_len < 7000:
        drafted, verified = (slice(context_len, context_len + num) for num in (draft_len, draft_len + 1))
        for term in total:
            total[term] += getattr(draft, term)[drafted].sum()
        total["flops"] += verify.flops[verified].sum()
        # One pass reads the longest context once, and the weights once.
        total["kv_read_bytes"] += verify.kv_read_bytes[verified][-1]
        total["param_bytes"] += verify.param_bytes[0]
        refused = np.flatnonzero(rng.random(draft_len) >= rate)
        context_len += (int(refused[0]) if refused.size else draft_len) + 1
    cost = speculative_cost(MODEL, DRAFT, draft_len=draft_len, acceptance_rate=rate, batch_size=batch_size, **SIZES)
    for term, wanted in total.items():
        assert getattr(cost, term) == pytest.approx(wanted, rel=0.015), term


def test_perfect_and_useless_drafts() -> None:
    dense = request_cost(MODEL, Dense(), batch_size=8, **SIZES)
    perfect = speculative_cost(MODEL, Local(window_len=32), draft_len=7, acceptance_rate=1.0, batch_size=8, **SIZES)
    useless = speculative_cost(MODEL, Local(window_len=32), draft_len=7, acceptance_rate=0.0, batch_size=8, **SIZES)
    local = request_cost(MODEL, Local(window_len=32), batch_size=8, **SIZES)
    assert perfect.kv_read_bytes == pytest.approx(dense.kv_read_bytes / 8 + local.kv_read_bytes * 7 / 8, rel=1e-12)
    assert perfect.param_bytes == pytest.approx(dense.param_bytes, rel=1e-12)  # 7/8 drafting + 1/8 verifying
    assert useless.kv_read_bytes == pytest.approx(dense.kv_read_bytes + 7 * local.kv_read_bytes, rel=1e-12)
    assert useless.linear_flops == pytest.approx(15 * dense.linear_flops, rel=1e-12)


def test_a_small_draft_model_costs_its_own() -> None:
    small = MODELS["Qwen3-0.6B"]
    cost = speculative_cost(MODEL, Dense(), draft_model=small, draft_len=1, acceptance_rate=0.0, **SIZES)
    own, verify = request_cost(small, Dense(), **SIZES), request_cost(MODEL, Dense(), **SIZES)
    assert cost.linear_flops == own.linear_flops + 2 * verify.linear_flops
    assert cost.kv_read_bytes == own.kv_read_bytes + verify.kv_read_bytes


def test_verifying_touches_more_experts_than_decoding() -> None:
    """g + 1 tokens a sequence are routed in one pass."""
    model = MODELS["Qwen3-30B-A3B"]
    cost = speculative_cost(model, Dense(), draft_len=3, acceptance_rate=0.0, batch_size=1, prompt_len=9, gen_len=1)
    draft, verify = (
        request_cost(model, Dense(), prompt_len=9, gen_len=1, batch_size=size).param_bytes for size in (1, 4)
    )
    assert cost.param_bytes == pytest.approx(3 * draft + 4 * verify, rel=1e-12)


def test_acceptance_is_differentiable_and_lowers_the_price() -> None:
    def price(rate: Any) -> Any:
        return speculative_cost(MODEL, DRAFT, draft_len=4, acceptance_rate=rate, batch_size=16, **SIZES).bytes

    rates = jnp.array([0.0, 0.5, 1.0, -0.1, 1.1])
    value, slope = jax.jit(jax.vmap(jax.value_and_grad(price)))(rates)
    np.testing.assert_array_equal(np.isfinite(value), [True, True, True, False, False])
    assert (slope[:3] < 0).all()
    assert price(0.5) == pytest.approx(float(value[1]), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draft_len": 0}, "draft_len must be at least 1; got 0"),
        ({"acceptance_rate": 1.2}, r"acceptance_rate must lie in \[0, 1\]; got 1.2"),
        ({"gen_len": -1}, "gen_len must be finite and at least 0; got -1"),
    ],
)
def test_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        speculative_cost(MODEL, DRAFT, **{"draft_len": 4, "acceptance_rate": 0.5, **SIZES, **options})
