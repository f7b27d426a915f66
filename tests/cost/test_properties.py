"""What must hold for every request: bounds, monotony, sharing, and how the bill combines."""

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinetics_jax.cost import Cost, eflops, entries_read, expected_cost, phi, request_cost
from kinetics_jax.specs import HARDWARE, MODELS, AttentionSpec, BlockTopK, Dense, Local, TopK

MODEL = MODELS["Qwen3-4B"]
HARDWARES = [HARDWARE["PAPER_B200"], HARDWARE["H100-SXM"]]
LENGTHS = st.integers(0, 5000)
TRIALS = st.integers(1, 64)
SPARSE = st.one_of(
    st.builds(TopK, budget_len=st.integers(1, 3000)),
    st.builds(Local, window_len=st.integers(1, 3000)),
    st.builds(BlockTopK, page_len=st.integers(1, 64), num_pages=st.integers(1, 64)),
)
TERMS = [term.name for term in fields(Cost)]


@given(SPARSE, LENGTHS, LENGTHS)
def test_entries_lie_between_budget_and_context(spec: AttentionSpec, prompt_len: int, gen_len: int) -> None:
    assert not isinstance(spec, Dense)
    # The newest page of block top-k may hold a single token.
    surely_read = spec.budget_len - (spec.page_len - 1 if isinstance(spec, BlockTopK) else 0)
    entries = entries_read(spec, prompt_len=prompt_len, gen_len=gen_len)
    assert min(prompt_len, surely_read) * gen_len <= entries <= spec.budget_len * gen_len
    assert entries <= entries_read(Dense(), prompt_len=prompt_len, gen_len=gen_len)


@given(SPARSE, LENGTHS, LENGTHS, TRIALS)
def test_sparse_traffic_is_at_most_dense_and_sharing_helps(
    spec: AttentionSpec, prompt_len: int, gen_len: int, num_trials: int
) -> None:
    def bill(spec: AttentionSpec, share_prompt: bool) -> Cost:
        return request_cost(
            MODEL, spec, prompt_len=prompt_len, gen_len=gen_len, num_trials=num_trials, share_prompt=share_prompt
        )

    dense, shared, alone = bill(Dense(), True), bill(spec, True), bill(spec, False)
    assert shared.kv_read_bytes <= dense.kv_read_bytes * (1 + 1e-12)
    assert shared.kv_read_bytes <= alone.kv_read_bytes * (1 + 1e-12)
    assert shared.search_bytes <= alone.search_bytes * (1 + 1e-12)
    assert shared.flops == alone.flops


@given(SPARSE | st.builds(Dense), LENGTHS, LENGTHS, TRIALS, st.integers(0, 300), st.integers(0, 20))
def test_more_tokens_and_more_trials_cost_more(
    spec: AttentionSpec, prompt_len: int, gen_len: int, num_trials: int, more_len: int, more_trials: int
) -> None:
    bill = request_cost(MODEL, spec, prompt_len=prompt_len, gen_len=gen_len, num_trials=num_trials, batch_size=3)
    more = request_cost(
        MODEL,
        spec,
        prompt_len=prompt_len,
        gen_len=gen_len + more_len,
        num_trials=num_trials + more_trials,
        batch_size=3,
    )
    for term in TERMS:
        assert getattr(more, term) >= getattr(bill, term) * (1 - 1e-12), term


@given(SPARSE | st.builds(Dense), LENGTHS, LENGTHS, TRIALS, st.integers(0, 300))
def test_longer_prompts_are_read_more(
    spec: AttentionSpec, prompt_len: int, gen_len: int, num_trials: int, more_len: int
) -> None:
    """Block top-k in whole pages only: a context that opens a page reads less of its newest page."""
    more_len *= spec.page_len if isinstance(spec, BlockTopK) else 1
    lengths = prompt_len, prompt_len + more_len
    bill, more = (
        request_cost(MODEL, spec, prompt_len=length, gen_len=gen_len, num_trials=num_trials) for length in lengths
    )
    assert more.kv_read_bytes >= bill.kv_read_bytes * (1 - 1e-12)
    assert more.flops >= bill.flops * (1 - 1e-12)


@given(st.integers(1, 64), st.integers(1, 64), st.integers(0, 9), LENGTHS, LENGTHS, TRIALS)
def test_a_larger_budget_reads_more_and_searches_less(
    page_len: int, num_pages: int, more_pages: int, prompt_len: int, gen_len: int, num_trials: int
) -> None:
    small, large = (
        request_cost(
            MODEL,
            BlockTopK(page_len=page_len, num_pages=pages),
            prompt_len=prompt_len,
            gen_len=gen_len,
            num_trials=num_trials,
        )
        for pages in (num_pages, num_pages + more_pages)
    )
    assert large.kv_read_bytes >= small.kv_read_bytes * (1 - 1e-12)
    assert large.attention_flops >= small.attention_flops
    assert large.search_bytes <= small.search_bytes


@pytest.mark.parametrize("convention", ["exact", "paper"])
@pytest.mark.parametrize(
    "spec", [TopK(budget_len=400), Local(window_len=400), BlockTopK(page_len=16, num_pages=25)], ids=str
)
def test_budget_of_the_whole_context_costs_as_dense(spec: AttentionSpec, convention) -> None:
    def bill(spec: AttentionSpec, num_trials: int) -> Cost:
        return request_cost(
            MODEL, spec, prompt_len=100, gen_len=300, num_trials=num_trials, batch_size=7, convention=convention
        )

    assert bill(spec, 1).attention_flops == bill(Dense(), 1).attention_flops
    assert bill(spec, 1).kv_read_bytes == bill(Dense(), 1).kv_read_bytes
    if convention == "exact":
        assert bill(spec, 8).kv_read_bytes == bill(Dense(), 8).kv_read_bytes
        assert bill(spec, 8).search_bytes == bill(spec, 8).search_flops == 0


@given(SPARSE | st.builds(Dense), LENGTHS, LENGTHS, TRIALS, st.floats(1, 50), st.sampled_from(HARDWARES))
def test_norms_fall_from_add_to_max(
    spec: AttentionSpec, prompt_len: int, gen_len: int, num_trials: int, norm: float, hardware
) -> None:
    cost = request_cost(MODEL, spec, prompt_len=prompt_len, gen_len=gen_len, num_trials=num_trials)
    add, between, larger = (eflops(cost, hardware, combine=combine) for combine in ("add", norm, "max"))
    assert add >= between * (1 - 1e-12)
    assert between >= larger * (1 - 1e-12)
    assert add == cost.flops + hardware.intensity("bfloat16") * cost.bytes
    assert larger == max(cost.flops, hardware.intensity("bfloat16") * cost.bytes)
    assert eflops(cost, hardware, combine=1.0) == add
    assert eflops(cost, hardware, combine=float("inf")) == larger
    assert eflops(cost, hardware, combine=4000.0) == pytest.approx(larger, rel=1e-3)


def test_p_norm_by_hand() -> None:
    free = dict.fromkeys(TERMS, 0.0)
    cost = Cost(**{**free, "linear_flops": 3 * 562.5, "param_bytes": 4.0})
    assert eflops(cost, HARDWARE["PAPER_B200"], combine=2.0) == pytest.approx(5 * 562.5, rel=1e-12)
    assert eflops(Cost(**free), HARDWARE["PAPER_B200"], combine=2.0) == 0


@given(st.integers(0, 3000), st.integers(1, 9000), TRIALS, st.sampled_from(["bfloat16", "int8", "float32"]))
def test_phi_is_the_ratio_of_terms(prompt_len: int, gen_len: int, num_trials: int, kv_dtype: str) -> None:
    for convention in ("exact", "paper"):
        cost = request_cost(
            MODEL,
            Dense(),
            prompt_len=prompt_len,
            gen_len=gen_len,
            num_trials=num_trials,
            kv_dtype=kv_dtype,
            convention=convention,
        )
        ratio = (cost.attention_flops + 562.5 * cost.kv_read_bytes) / cost.linear_flops
        assert phi(
            MODEL,
            HARDWARE["PAPER_B200"],
            prompt_len=prompt_len,
            gen_len=gen_len,
            num_trials=num_trials,
            kv_dtype=kv_dtype,
            convention=convention,
        ) == pytest.approx(ratio, rel=1e-12)


def test_phi_of_endless_trials_leaves_the_prompt_out() -> None:
    endless = phi(MODEL, HARDWARE["PAPER_B200"], prompt_len=700, gen_len=300)
    many = phi(MODEL, HARDWARE["PAPER_B200"], prompt_len=700, gen_len=300, num_trials=10**12)
    assert endless == pytest.approx(many, rel=1e-9)


@pytest.mark.parametrize(
    "spec", [Dense(), TopK(budget_len=90), Local(window_len=90), BlockTopK(page_len=8, num_pages=9)], ids=str
)
def test_expected_cost_is_the_masked_mean(spec: AttentionSpec) -> None:
    gen_lens = np.array([[10, 200, 37], [80, -1, 5]])  # -1: no such trial.
    mask = np.array([[True, True, True], [True, False, True]])
    prompt_lens, num_trials = np.array([40, 70]), np.array([1, 6])
    cost = expected_cost(
        MODEL, spec, prompt_len=prompt_lens, gen_lens=gen_lens, mask=mask, num_trials=num_trials, batch_size=2
    )
    for row in range(2):
        bills = [
            request_cost(
                MODEL,
                spec,
                prompt_len=int(prompt_lens[row]),
                gen_len=int(n),
                num_trials=int(num_trials[row]),
                batch_size=2,
            )
            for n in gen_lens[row][mask[row]]
        ]
        for term in TERMS:
            wanted = np.mean([getattr(bill, term) for bill in bills])
            np.testing.assert_allclose(getattr(cost, term)[row], wanted, rtol=1e-12, err_msg=term)


def test_expected_cost_without_samples_is_nan() -> None:
    gen_lens = np.array([[10.0, 20.0], [3.0, 4.0]])
    mask = np.array([[False, False], [True, True]])
    cost = expected_cost(MODEL, Dense(), prompt_len=5, gen_lens=gen_lens, mask=mask)
    np.testing.assert_array_equal(np.isnan(cost.bytes), [True, False])


def test_dense_expected_cost_needs_two_moments_only() -> None:
    cost = expected_cost(MODEL, Dense(), prompt_len=77, gen_lens=np.array([700, 1300]), convention="paper")
    np.testing.assert_allclose(cost.kv_read_bytes, 73_728 * (2 * 77 * 1000 + 1000**2 + 300**2), rtol=1e-6)
