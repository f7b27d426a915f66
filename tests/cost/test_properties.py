"""What must hold for every request: bounds, monotony, sharing, limits, and how the bill combines."""

from dataclasses import fields, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinetics_jax.cost import Cost, eflops, entries_read, expected_cost, phi, request_cost
from kinetics_jax.specs import (
    DTYPES,
    HARDWARE,
    MODELS,
    AttentionSpec,
    BlockTopK,
    Dense,
    Local,
    PageSelection,
    Quest,
    TopK,
)

MODEL = MODELS["Qwen3-4B"]
EXPERTS = MODELS["Qwen3-30B-A3B"]
HARDWARES = [HARDWARE["PAPER_B200"], HARDWARE["H100-SXM"]]
LENGTHS = st.integers(0, 5000)
TRIALS = st.integers(1, 64)
BATCHES = st.integers(1, 4000)
LAYERS = st.integers(0, 3)
SPARSE = st.one_of(
    st.builds(TopK, budget_len=st.integers(1, 3000), dense_layers=LAYERS),
    st.builds(Local, window_len=st.integers(1, 3000), sink_len=st.integers(0, 300), dense_layers=LAYERS),
    *(
        st.builds(kind, page_len=st.integers(1, 64), num_pages=st.integers(1, 64), dense_layers=LAYERS)
        for kind in (BlockTopK, Quest)
    ),
)
ANY = SPARSE | st.builds(Dense)
EDGES = [
    TopK(budget_len=400),
    Local(window_len=396, sink_len=4),
    BlockTopK(page_len=16, num_pages=25),
    Quest(page_len=8, num_pages=50),
]
TERMS = [term.name for term in fields(Cost)]


def assert_at_least(more: Cost, less: Cost, terms: list[str] = TERMS) -> None:
    for term in terms:
        assert getattr(more, term) >= getattr(less, term) * (1 - 1e-12), term


@given(SPARSE, LENGTHS, LENGTHS)
def test_entries_lie_between_budget_and_context(spec: AttentionSpec, prompt_len: int, gen_len: int) -> None:
    assert not isinstance(spec, Dense)
    # The newest page of a page method may hold a single token.
    surely_read = spec.budget_len - (spec.page_len - 1 if isinstance(spec, PageSelection) else 0)
    entries = entries_read(spec, prompt_len=prompt_len, gen_len=gen_len)
    contexts = range(prompt_len + 1, prompt_len + gen_len + 1)
    assert sum(min(context_len, surely_read) for context_len in contexts) <= entries
    assert entries <= sum(min(context_len, spec.budget_len) for context_len in contexts)
    assert entries <= entries_read(Dense(), prompt_len=prompt_len, gen_len=gen_len)


@given(SPARSE, LENGTHS, LENGTHS, TRIALS)
def test_sparse_traffic_is_at_most_dense_and_sharing_helps(
    spec: AttentionSpec, prompt_len: int, gen_len: int, num_trials: int
) -> None:
    def bill(spec: AttentionSpec, share_prompt: bool) -> Cost:
        return request_cost(
            MODEL, spec, prompt_len=prompt_len, gen_len=gen_len, num_trials=num_trials, share_prompt=share_prompt
        )

    shared, alone = bill(spec, True), bill(spec, False)
    assert_at_least(bill(Dense(), True), shared, ["kv_read_bytes", "attention_flops"])
    assert_at_least(alone, shared)
    assert shared.flops == alone.flops
    assert shared.kv_write_bytes == alone.kv_write_bytes


@given(ANY, LENGTHS, LENGTHS, TRIALS, st.integers(0, 300), st.integers(0, 20))
def test_more_tokens_and_more_trials_cost_more(
    spec: AttentionSpec, prompt_len: int, gen_len: int, num_trials: int, more_len: int, more_trials: int
) -> None:
    def bill(gen_len: int, num_trials: int) -> Cost:
        return request_cost(MODEL, spec, prompt_len=prompt_len, gen_len=gen_len, num_trials=num_trials, batch_size=3)

    assert_at_least(bill(gen_len + more_len, num_trials), bill(gen_len, num_trials))
    assert_at_least(bill(gen_len, num_trials + more_trials), bill(gen_len, num_trials))


@given(ANY, LENGTHS, LENGTHS, TRIALS, st.integers(0, 300))
def test_longer_prompts_are_read_more(
    spec: AttentionSpec, prompt_len: int, gen_len: int, num_trials: int, more_len: int
) -> None:
    """Page methods in whole pages only: a context that opens a page reads less of its newest page.

    Sinks unshared only: a prompt long enough to hold them lets the trials share them.
    """
    more_len *= spec.page_len if isinstance(spec, PageSelection) else 1
    share_prompt = not (isinstance(spec, Local) and spec.sink_len)
    bill, more = (
        request_cost(MODEL, spec, prompt_len=length, gen_len=gen_len, num_trials=num_trials, share_prompt=share_prompt)
        for length in (prompt_len, prompt_len + more_len)
    )
    assert_at_least(more, bill)


@given(SPARSE, st.integers(0, 9), LENGTHS, LENGTHS, TRIALS, st.booleans())
def test_a_larger_budget_reads_more_and_searches_less(
    spec: AttentionSpec, more: int, prompt_len: int, gen_len: int, num_trials: int, share_prompt: bool
) -> None:
    match spec:
        case TopK():
            larger = [replace(spec, budget_len=spec.budget_len + more)]
        case Local():
            larger = [replace(spec, window_len=spec.window_len + more), replace(spec, sink_len=spec.sink_len + more)]
        case BlockTopK() | Quest():
            larger = [replace(spec, num_pages=spec.num_pages + more)]
        case Dense():
            larger = []

    def bill(spec: AttentionSpec) -> Cost:
        return request_cost(
            MODEL, spec, prompt_len=prompt_len, gen_len=gen_len, num_trials=num_trials, share_prompt=share_prompt
        )

    for wide in larger:
        assert_at_least(bill(wide), bill(spec), ["kv_read_bytes", "attention_flops"])
        assert_at_least(bill(spec), bill(wide), ["search_bytes", "search_flops"])


@given(ANY, LENGTHS, LENGTHS, st.integers(1, 9999), BATCHES)
def test_more_parameters_cost_more_and_leave_the_cache_alone(
    spec: AttentionSpec, prompt_len: int, gen_len: int, more: int, batch_size: int
) -> None:
    def bill(model: Any) -> Cost:
        return request_cost(model, spec, prompt_len=prompt_len, gen_len=gen_len, batch_size=batch_size)

    for model in (MODEL, EXPERTS):
        small, large = bill(model), bill(replace(model, mlp_dim=model.mlp_dim + more))
        assert_at_least(large, small)
        assert (large.linear_flops > small.linear_flops) == (gen_len > 0) == (large.param_bytes > small.param_bytes)
        assert (large.attention_flops, large.kv_read_bytes) == (small.attention_flops, small.kv_read_bytes)
    routed = bill(replace(EXPERTS, num_active_experts=9))
    assert_at_least(routed, bill(EXPERTS), ["linear_flops", "param_bytes"])


@given(ANY, LENGTHS, LENGTHS, TRIALS)
def test_wider_caches_cost_more(spec: AttentionSpec, prompt_len: int, gen_len: int, num_trials: int) -> None:
    by_width = sorted(DTYPES.values(), key=lambda dtype: dtype.vector_bytes(MODEL.head_dim))
    bills = [
        request_cost(MODEL, spec, prompt_len=prompt_len, gen_len=gen_len, num_trials=num_trials, kv_dtype=dtype.name)
        for dtype in by_width
    ]
    for narrow, wide in pairwise(bills):
        assert_at_least(wide, narrow)
        assert wide.flops == narrow.flops
    assert (bills[-1].kv_read_bytes > bills[0].kv_read_bytes) == (gen_len > 0)


@given(ANY, LENGTHS, st.integers(1, 5000), TRIALS, BATCHES)
def test_weights_are_free_in_an_endless_batch(
    spec: AttentionSpec, prompt_len: int, gen_len: int, num_trials: int, batch_size: int
) -> None:
    def bill(model: Any, batch_size: int | None) -> Cost:
        return request_cost(
            model, spec, prompt_len=prompt_len, gen_len=gen_len, num_trials=num_trials, batch_size=batch_size
        )

    for model in (MODEL, EXPERTS):
        endless, one = bill(model, None), bill(model, 1)
        assert endless.param_bytes == 0
        assert replace(one, param_bytes=0.0) == endless
        # One token meets its own experts; many meet all. The bytes per token only fall.
        num_steps = num_trials * gen_len
        assert one.param_bytes == pytest.approx(2 * model.num_active_matmul_params * num_steps, rel=1e-12)
        whole = 2 * model.num_matmul_params * num_steps
        huge = bill(model, 10**9)
        assert huge.param_bytes == pytest.approx(whole / 10**9, rel=1e-12)
        assert huge.param_bytes <= 1e-7 * one.param_bytes
        assert_at_least(bill(model, batch_size), bill(model, batch_size + 1), ["param_bytes"])
        assert bill(model, batch_size).param_bytes * batch_size <= whole * (1 + 1e-12)


@given(st.integers(1, 64), st.integers(1, 64), LAYERS, LENGTHS, LENGTHS, TRIALS, st.booleans())
def test_quest_searches_twice_as_much_as_block_top_k(
    page_len: int, num_pages: int, dense_layers: int, prompt_len: int, gen_len: int, trials: int, share_prompt: bool
) -> None:
    for convention in ("exact", "paper"):
        block, quest = (
            request_cost(
                MODEL,
                kind(page_len=page_len, num_pages=num_pages, dense_layers=dense_layers),
                prompt_len=prompt_len,
                gen_len=gen_len,
                num_trials=trials,
                share_prompt=share_prompt,
                convention=convention,
            )
            for kind in (BlockTopK, Quest)
        )
        assert quest.search_bytes == pytest.approx(2 * block.search_bytes, rel=1e-12)
        assert quest.search_flops == pytest.approx(2 * block.search_flops, rel=1e-12)
        assert (quest.attention_flops, quest.kv_read_bytes) == (block.attention_flops, block.kv_read_bytes)
        # One more vector of 8 heads x 128 bfloat16 elements a token in every layer that searches.
        one_more = 0 if convention == "paper" else 2048 * (36 - dense_layers) * trials * gen_len
        assert quest.kv_write_bytes - block.kv_write_bytes == one_more


@given(SPARSE, LENGTHS, LENGTHS, TRIALS, st.booleans(), st.sampled_from(list(DTYPES)))
def test_dense_in_all_layers_is_dense(
    spec: AttentionSpec, prompt_len: int, gen_len: int, num_trials: int, share_prompt: bool, kv_dtype: str
) -> None:
    assert not isinstance(spec, Dense)
    for convention in ("exact", "paper"):
        dense, everywhere = (
            request_cost(
                MODEL,
                method,
                prompt_len=prompt_len,
                gen_len=gen_len,
                num_trials=num_trials,
                share_prompt=share_prompt,
                kv_dtype=kv_dtype,
                batch_size=2,
                convention=convention,
            )
            for method in (Dense(), replace(spec, dense_layers=MODEL.num_layers))
        )
        assert everywhere == dense


@given(SPARSE, LENGTHS, LENGTHS, TRIALS, st.integers(0, 36))
def test_layers_add_up(spec: AttentionSpec, prompt_len: int, gen_len: int, num_trials: int, dense_layers: int) -> None:
    """So many dense layers of 36: the bill lies on the line between none and all of them."""
    assert not isinstance(spec, Dense)
    none, some, every = (
        request_cost(
            MODEL,
            replace(spec, dense_layers=layers),
            prompt_len=prompt_len,
            gen_len=gen_len,
            num_trials=num_trials,
        )
        for layers in (0, dense_layers, 36)
    )
    between = (36 - dense_layers) * none + dense_layers * every
    for term in TERMS:
        assert getattr(some, term) == pytest.approx(getattr(between, term) / 36, rel=1e-12), term


@pytest.mark.parametrize("convention", ["exact", "paper"])
@pytest.mark.parametrize("spec", EDGES, ids=str)
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


@given(ANY, LENGTHS, LENGTHS, TRIALS, st.floats(1, 50), st.floats(1, 4), st.sampled_from(HARDWARES))
def test_norms_fall_from_add_to_max(
    spec: AttentionSpec, prompt_len: int, gen_len: int, num_trials: int, norm: float, factor: float, hardware
) -> None:
    cost = request_cost(MODEL, spec, prompt_len=prompt_len, gen_len=gen_len, num_trials=num_trials)
    falling = [eflops(cost, hardware, combine=combine) for combine in ("add", norm, norm * factor, "max")]
    for larger, smaller in pairwise(falling):
        assert larger >= smaller * (1 - 1e-12)
    add, most = falling[0], falling[-1]
    memory = hardware.intensity("bfloat16") * cost.bytes
    assert add == pytest.approx(cost.flops + memory, rel=1e-12)
    assert most == pytest.approx(max(cost.flops, memory), rel=1e-12)
    assert eflops(cost, hardware, combine=1.0) == add
    assert eflops(cost, hardware, combine=float("inf")) == most
    assert eflops(cost, hardware, combine=4000.0) == pytest.approx(most, rel=1e-3)


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
