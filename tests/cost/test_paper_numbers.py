"""Numbers typed from PAPER.md sections 2, 6 and 7."""

import jax
import pytest

from kinetics_jax.cost import Cost, break_even_budget_len, eflops, entries_read, entries_searched, iso_cost_len, phi
from kinetics_jax.cost import request_cost as price
from kinetics_jax.specs import HARDWARE, MODELS, AttentionSpec, BlockTopK, Dense, Local, TopK

B200 = HARDWARE["PAPER_B200"]


@pytest.mark.parametrize(
    ("name", "gib"),
    [
        ("Qwen3-0.6B", 3.5),
        ("Qwen3-1.7B", 3.5),
        ("Qwen3-4B", 4.5),
        ("Qwen3-8B", 4.5),
        ("Qwen3-14B", 5.0),  # Printed as 6 (errata 1).
        ("Qwen3-32B", 8.0),
        ("DeepSeek-R1-Distill-Qwen-1.5B", 0.875),
        ("DeepSeek-R1-Distill-Qwen-7B", 1.75),
        ("DeepSeek-R1-Distill-Qwen-14B", 6.0),
        ("DeepSeek-R1-Distill-Qwen-32B", 8.0),
    ],
)
def test_kv_cache_of_32768_tokens(name: str, gib: float) -> None:
    assert price(MODELS[name], Dense(), prompt_len=0, gen_len=32_768).kv_write_bytes / 2**30 == gib


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("Qwen3-0.6B", 0.752),
        ("Qwen3-1.7B", 2.03),
        ("Qwen3-4B", 4.02),
        ("Qwen3-8B", 8.19),
        ("Qwen3-14B", 14.77),
        ("Qwen3-32B", 32.76),
    ],
)
def test_paper_convention_counts_published_parameters(name: str, billions: float) -> None:
    cost = price(MODELS[name], Dense(), prompt_len=0, gen_len=1, batch_size=1, convention="paper")
    assert cost.linear_flops / 2e9 == pytest.approx(billions, rel=1e-3)
    assert cost.param_bytes / 2e9 == pytest.approx(billions, rel=1e-3)
    assert cost.kv_write_bytes == 0


@pytest.mark.parametrize(("name", "ratio"), [("Qwen3-0.6B", 88.0), ("Qwen3-14B", 6.4), ("Qwen3-32B", 4.7)])
def test_phi_at_4096(name: str, ratio: float) -> None:
    assert phi(MODELS[name], B200, gen_len=4096, convention="paper") == pytest.approx(ratio, abs=0.5 * ratio / 50)


@pytest.mark.parametrize(
    ("name", "budget_len"),
    [
        ("Qwen3-0.6B", 23),
        ("Qwen3-1.7B", 63),
        ("Qwen3-4B", 96),
        ("Qwen3-8B", 196),
        ("Qwen3-14B", 318),
        ("Qwen3-32B", 438),
    ],
)
def test_break_even_budget(name: str, budget_len: int) -> None:
    assert round(break_even_budget_len(MODELS[name], B200, convention="paper")) == budget_len


def test_reading_the_break_even_budget_costs_as_much_as_the_weights() -> None:
    model = MODELS["Qwen3-8B"]
    budget_len = round(break_even_budget_len(model, B200))
    cost = price(model, TopK(budget_len=budget_len), prompt_len=5000, gen_len=1)
    assert cost.attention_flops + 562.5 * cost.kv_read_bytes == pytest.approx(cost.linear_flops, rel=3e-3)


def test_budget_above_the_context_reads_about_40000_entries() -> None:
    assert entries_read(TopK(budget_len=512), prompt_len=100, gen_len=200) == 40_100
    assert entries_read(Local(window_len=512), prompt_len=100, gen_len=200) == 40_100
    assert entries_read(BlockTopK(page_len=16, num_pages=32), prompt_len=100, gen_len=200) == 40_100
    cost = price(MODELS["Qwen3-0.6B"], TopK(budget_len=512), prompt_len=100, gen_len=200, convention="paper")
    assert cost.kv_read_bytes / (2 * 57_344) == 40_000


def test_the_released_sparse_counts_are_wrong_on_either_side() -> None:
    """Errata 3: B L_out + (B - L_in)^2 / 2 has the wrong sign, and neither sign is clamped to L_out < B - L_in."""
    budget_len, prompt_len, gen_len = 512, 100, 200
    correction = 0.5 * max(0, budget_len - prompt_len) ** 2
    assert (budget_len * gen_len + correction, budget_len * gen_len - correction) == (187_272, 17_528)
    exact = entries_read(TopK(budget_len=budget_len), prompt_len=prompt_len, gen_len=gen_len)
    assert exact == sum(range(prompt_len + 1, prompt_len + gen_len + 1))


@pytest.mark.parametrize(
    ("name", "budget_len", "percent"),
    [("Qwen3-0.6B", 128, 190), ("Qwen3-0.6B", 1024, 24), ("Qwen3-32B", 128, 22), ("Qwen3-32B", 1024, 7.7)],
)
def test_a_dense_first_layer_is_not_cheap(name: str, budget_len: int, percent: float) -> None:
    """Errata 7: one of L layers dense over 16,384 tokens, beside a method that reads its whole budget at each step."""
    model, gen_len = MODELS[name], 16_384

    def total(spec: AttentionSpec, prompt_len: int = 0) -> float:
        return float(eflops(price(model, spec, prompt_len=prompt_len, gen_len=gen_len, convention="paper"), B200))

    # A prompt of the budget's length: the budget is full from the first step on.
    sparse, weights = total(TopK(budget_len=budget_len), budget_len), 2 * model.num_stored_params * gen_len
    extra = ((total(Dense()) - weights) - (sparse - weights)) / model.num_layers
    assert 100 * extra / sparse == pytest.approx(percent, rel=0.02)
    # From an empty prompt the budget fills up, so the sparse total is smaller and the layer weighs more.
    filling = total(TopK(budget_len=budget_len))
    assert total(TopK(budget_len=budget_len, dense_layers=1)) / filling - 1 > extra / sparse


def test_search_of_a_short_generation_is_not_free() -> None:
    """Errata 4: (2 L_in + T) // block floors to zero here."""
    spec = BlockTopK(page_len=1024, num_pages=1)
    assert entries_searched(spec, prompt_len=1024, gen_len=10) == 20
    cost = price(MODELS["Qwen3-0.6B"], spec, prompt_len=100, gen_len=10, convention="paper")
    assert cost.search_bytes == pytest.approx((2 * 100 * 57_344 * 10 + 57_344 * 10**2) / (2 * 1024), rel=1e-12)


def test_paper_formulas_of_qwen3_8b() -> None:
    """Section 2 with P = 8.190735360e9, D = 73728, r = 4, L_in = 500, L_out = 8000, N = 8, B = 256, block = 64."""

    def price_8b(attention: AttentionSpec) -> Cost:
        return price(MODELS["Qwen3-8B"], attention, prompt_len=500, gen_len=8000, num_trials=8, convention="paper")

    dense = price_8b(Dense())
    # 2 N P L_out = 1.04841412608e15; 2 r N L_in D L_out + r N D L_out^2 = 1.88743680e13 + 1.509949440e14.
    assert dense.flops == pytest.approx(1.04841412608e15 + 1.887436800e13 + 1.509949440e14, rel=1e-6)
    # 2 L_in D L_out + N D L_out^2 = 5.89824e11 + 3.7748736e13.
    assert dense.bytes == pytest.approx(5.89824e11 + 3.7748736e13, rel=1e-6)
    assert eflops(dense, B200) == pytest.approx(1.04841412608e15 + 1.69869312e14 + 562.5 * 3.8338560e13, rel=1e-6)
    sparse = price_8b(TopK(budget_len=256))
    assert sparse.attention_flops == pytest.approx(9.663676416e12, rel=1e-6)
    assert sparse.bytes == pytest.approx(2.415919104e12, rel=1e-6)
    block = price_8b(BlockTopK(page_len=64, num_pages=4))
    assert (block.attention_flops, block.kv_read_bytes) == (sparse.attention_flops, sparse.kv_read_bytes)
    assert block.search_flops == pytest.approx(1.69869312e14 / 128, rel=1e-6)
    assert block.search_bytes == pytest.approx(3.8338560e13 / 128, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "read_off_len", "solved_len"),
    [
        # Solved: the positive root of (r + I) D T^2 + 2 P T = 2e16, by hand from the published P.
        ("Qwen3-0.6B", 24_900, 24_833),
        ("Qwen3-1.7B", 24_900, 24_794),
        ("Qwen3-4B", 22_000, 21_786),
        ("Qwen3-8B", 22_000, 21_687),
        ("Qwen3-32B", 16_500, 15_922),
    ],
)
def test_iso_cost_length(name: str, read_off_len: int, solved_len: int) -> None:
    """The figure's read-offs leave out the weights, worth up to 438 tokens (32B); then all fit within 1%."""
    solve = jax.jit(lambda target: iso_cost_len(MODELS[name], Dense(), B200, target, prompt_len=0, convention="paper"))
    length = float(solve(2e16))
    assert length == pytest.approx(solved_len, abs=1)
    weights_len = break_even_budget_len(MODELS[name], B200, convention="paper")
    assert length + weights_len == pytest.approx(read_off_len, rel=0.01)


def test_iso_cost_length_of_14b_with_its_own_cache() -> None:
    """Errata 1: the figure was drawn with 6 GiB at 32,768 tokens, which would give 18,671; 40 layers hold 5.0."""
    length = iso_cost_len(MODELS["Qwen3-14B"], Dense(), B200, 2e16, prompt_len=0, convention="paper")
    assert float(length) == pytest.approx(20_426, abs=1)
