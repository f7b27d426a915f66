"""The batch at which weights and cache weigh the same: by hand, and by the bill at that batch."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kinetics_jax.cost import break_even_batch, request_cost
from kinetics_jax.specs import MODELS, AttentionSpec, BlockTopK, Dense, Quest, TopK

MOE = MODELS["Qwen3-30B-A3B"]


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        # 2 x 7,568,405,504 bytes of weights; an entry is 147,456 bytes, a page mean half of that.
        (Dense(), 15_136_811_008 / (16_384 * 147_456)),
        (TopK(budget_len=1024), 15_136_811_008 / (1024 * 147_456)),
        (BlockTopK(page_len=16, num_pages=64), 15_136_811_008 / ((1024 + 512) * 147_456)),
        (Quest(page_len=16, num_pages=64), 15_136_811_008 / ((1024 + 1024) * 147_456)),
        # 4 of 36 layers read everything.
        (TopK(budget_len=1024, dense_layers=4), 15_136_811_008 / ((1024 * 32 + 16_384 * 4) * 4096)),
    ],
    ids=str,
)
def test_dense_weights_by_hand(spec: AttentionSpec, wanted: float) -> None:
    assert break_even_batch(MODELS["Qwen3-8B"], spec, context_len=16_384) == pytest.approx(wanted, rel=1e-12)


def test_dtypes_by_hand() -> None:
    """int4 weights: P / 2 bytes; int8 cache: 128 + 2 bytes a vector."""
    batch = break_even_batch(MODELS["Qwen3-8B"], Dense(), context_len=1000, kv_dtype="int8", weight_dtype="int4")
    assert batch == pytest.approx(7_568_405_504 / 2 / (1000 * 2 * 36 * 8 * 130), rel=1e-12)


@pytest.mark.parametrize("context_len", [64, 3000, 40_000])
def test_experts_by_the_equation(context_len: int) -> None:
    """Half of 48 x 128 experts of 3 x 2048 x 768 stay unread by few tokens: B 98,304 S = 2 (P - untouched)."""
    batch = break_even_batch(MOE, Dense(), context_len=context_len)
    num_untouched = 48 * 128 * (1 - 8 / 128) ** batch
    weights = 2 * (MOE.num_matmul_params - num_untouched * 3 * 2048 * 768)
    assert batch * 98_304 * context_len == pytest.approx(weights, rel=1e-12)
    assert 0 < batch < 2 * MOE.num_matmul_params / (98_304 * context_len)


def test_the_bill_agrees() -> None:
    for model in (MODELS["Qwen3-0.6B"], MOE):
        batch = break_even_batch(model, BlockTopK(page_len=16, num_pages=8), context_len=2000)
        bill = request_cost(model, BlockTopK(page_len=16, num_pages=8), prompt_len=1999, gen_len=1, batch_size=batch)
        assert bill.param_bytes == pytest.approx(bill.kv_read_bytes + bill.search_bytes, rel=1e-12)


def test_below_one_where_a_single_cache_outweighs_the_weights() -> None:
    assert 0 < break_even_batch(MODELS["Qwen3-0.6B"], Dense(), context_len=40_000) < 1


@pytest.mark.parametrize("model", [MODELS["Qwen3-8B"], MOE], ids=lambda model: model.name)
def test_gradient_jit_vmap_and_float32(model: Any) -> None:
    def batch(context_len: Any) -> Any:
        return break_even_batch(model, BlockTopK(page_len=16, num_pages=8), context_len=context_len)

    contexts = np.array([40.3, 130.2, 5000.4])
    by_numpy = batch(contexts)
    assert isinstance(by_numpy, np.ndarray)
    wanted = (batch(contexts + 1e-4) - batch(contexts - 1e-4)) / 2e-4
    with jax.enable_x64(True):
        value, slope = jax.jit(jax.vmap(jax.value_and_grad(batch)))(contexts)
    np.testing.assert_allclose(value, by_numpy, rtol=1e-12)
    np.testing.assert_allclose(slope, wanted, rtol=1e-5)
    single = jax.jit(batch)(jnp.asarray(contexts, jnp.float32))
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, by_numpy, rtol=1e-5)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="context_len must be at least 1; got 0"):
        break_even_batch(MOE, Dense(), context_len=0)
    with pytest.raises(ValueError, match="context_len must be finite and at least 0; got nan"):
        break_even_batch(MOE, Dense(), context_len=float("nan"))
    with pytest.raises(ValueError, match="unknown weight_dtype 'int3'"):
        break_even_batch(MOE, Dense(), context_len=10, weight_dtype="int3")


def test_bad_values_in_arrays_give_nan_in_their_own_element() -> None:
    def batch(context_len: Any) -> Any:
        return break_even_batch(MOE, Dense(), context_len=context_len)

    bad = np.array([10.0, 0.0, -3.0, np.inf])
    for found in (batch(bad), jax.jit(batch)(jnp.asarray(bad))):
        np.testing.assert_array_equal(np.isfinite(found), [True, False, False, False])
