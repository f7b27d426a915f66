"""Prefill, a token and a chunk at a time, in integers."""

from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinetics_jax.cost import prefill_cost, request_cost
from kinetics_jax.specs import MODELS, AttentionSpec, BlockTopK, Dense, ModelSpec, Quest, TopK

TIED, UNTIED, EXPERTS = MODELS["Qwen3-0.6B"], MODELS["Qwen3-8B"], MODELS["Qwen3-30B-A3B"]


def params_read(model: ModelSpec, num_tokens: int) -> Fraction:
    """Every parameter but the look-up, and of the experts those that some token is routed to."""
    if not model.num_experts:
        return Fraction(model.num_matmul_params)
    missed = (1 - Fraction(model.num_active_experts, model.num_experts)) ** num_tokens
    return model.num_matmul_params - model.num_layers * model.num_expert_params * model.num_experts * missed


def token_sum(
    model: ModelSpec, spec: AttentionSpec, prompt_len: int, chunk_len: int | None, batch_size: int
) -> dict[str, Any]:
    """The bill in integers, a token at a time; weights and cache are read a chunk at a time."""
    num_summaries = {BlockTopK: 1, Quest: 2}.get(type(spec), 0)
    sparse_layers = model.num_layers - (0 if isinstance(spec, Dense) else spec.dense_layers)
    heads = model.num_kv_heads * model.head_dim
    bill: dict[str, Any] = dict.fromkeys(("linear", "attention", "read", "write", "params"), 0)
    for position in range(prompt_len):
        bill["linear"] += 2 * (model.num_active_matmul_params - model.num_embedding_params)
        bill["attention"] += 4 * model.num_layers * model.num_heads * model.head_dim * (position + 1)
        bill["write"] += 2 * model.num_layers * heads
        if num_summaries and position % getattr(spec, "page_len", 1) == 0:
            bill["write"] += num_summaries * sparse_layers * heads
    bill["linear"] += 2 * model.num_embedding_params if prompt_len else 0
    for start in range(0, prompt_len, chunk_len or max(prompt_len, 1)):
        end = min(start + (chunk_len or prompt_len), prompt_len)
        bill["read"] += 2 * model.num_layers * heads * end
        bill["params"] += params_read(model, (end - start) * batch_size) / batch_size
    return bill


@given(
    st.sampled_from([TIED, UNTIED, EXPERTS]),
    st.sampled_from([Dense(), TopK(budget_len=8), BlockTopK(page_len=4, num_pages=2), Quest(page_len=3, num_pages=2)]),
    st.integers(0, 60),
    st.none() | st.integers(1, 70),
    st.integers(1, 9),
)
def test_bill_is_the_token_sum(
    model: ModelSpec, spec: AttentionSpec, prompt_len: int, chunk_len: int | None, batch_size: int
) -> None:
    cost = prefill_cost(model, spec, prompt_len=prompt_len, chunk_len=chunk_len, batch_size=batch_size)
    wanted = token_sum(model, spec, prompt_len, chunk_len, batch_size)
    assert cost.linear_flops == pytest.approx(wanted["linear"], rel=1e-12)
    assert cost.attention_flops == pytest.approx(wanted["attention"], rel=1e-12)
    assert cost.kv_read_bytes == pytest.approx(2 * wanted["read"], rel=1e-12)
    assert cost.kv_write_bytes == pytest.approx(2 * wanted["write"], rel=1e-12)
    assert cost.param_bytes == pytest.approx(float(2 * wanted["params"]), rel=1e-9)
    assert (cost.search_flops, cost.search_bytes) == (0, 0)


def test_dense_layers_write_no_summaries() -> None:
    every_layer = prefill_cost(TIED, Quest(page_len=16, num_pages=4), prompt_len=160)
    none = prefill_cost(TIED, Quest(page_len=16, num_pages=4, dense_layers=28), prompt_len=160)
    assert every_layer.kv_write_bytes - none.kv_write_bytes == 10 * 28 * 2 * 8 * 128 * 2
    assert none == prefill_cost(TIED, Dense(), prompt_len=160)


def test_prefill_does_the_arithmetic_of_decoding_with_fewer_bytes() -> None:
    """All products but the head's are those of decoding the same tokens from nothing."""
    prefill = prefill_cost(UNTIED, Dense(), prompt_len=1000, batch_size=1)
    decode = request_cost(UNTIED, Dense(), prompt_len=0, gen_len=1000, batch_size=1)
    assert prefill.attention_flops == decode.attention_flops
    assert decode.linear_flops - prefill.linear_flops == 2 * 999 * 151_936 * 4096
    assert prefill.kv_write_bytes == decode.kv_write_bytes
    assert prefill.bytes < decode.bytes / 500


def test_arrays_gradients_and_bad_values() -> None:
    def price(prompt_len: Any, chunk_len: Any) -> Any:
        spec = BlockTopK(page_len=16, num_pages=4)
        cost = prefill_cost(EXPERTS, spec, prompt_len=prompt_len, chunk_len=chunk_len, batch_size=2)
        return cost.flops + cost.bytes

    lengths = jnp.array([0.0, 1.0, 700.0, -1.0, jnp.nan])
    value, slope = jax.jit(jax.vmap(jax.value_and_grad(price), (0, None)))(lengths, 64.0)
    np.testing.assert_array_equal(np.isfinite(value), [True, True, True, False, False])
    assert np.isfinite(slope[:3]).all()
    np.testing.assert_allclose(value[:3], [price(n, 64) for n in (0, 1, 700)], rtol=1e-5)
    with pytest.raises(ValueError, match="prompt_len must be finite and at least 0; got -1"):
        prefill_cost(TIED, Dense(), prompt_len=-1)
    with pytest.raises(ValueError, match="chunk_len must be finite and at least 1; got 0"):
        prefill_cost(TIED, Dense(), prompt_len=5, chunk_len=0)
