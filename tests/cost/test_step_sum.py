"""The closed forms against the sum over steps, in integers, on every kind of (prompt_len, gen_len, budget, page)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinetics_jax.cost import entries_read, entries_searched, request_cost
from kinetics_jax.specs import DTYPES, MODELS, AttentionSpec, BlockTopK, Dense, Local, ModelSpec, TopK

MODEL = MODELS["Qwen3-0.6B"]
LENGTHS = st.integers(0, 70)
SPECS = st.one_of(
    st.builds(Dense),
    st.builds(TopK, budget_len=st.integers(1, 90)),
    st.builds(Local, window_len=st.integers(1, 90)),
    st.builds(BlockTopK, page_len=st.integers(1, 20), num_pages=st.integers(1, 9)),
    st.builds(BlockTopK, page_len=st.integers(1, 9), num_pages=st.integers(3, 9), num_sink_pages=st.just(2)),
)


def step_read(spec: AttentionSpec, context_len: int) -> int:
    """Entries that one trial reads in one step."""
    match spec:
        case Dense():
            return context_len
        case BlockTopK(page_len=page_len, num_pages=num_pages):
            num_full = -(-context_len // page_len) - 1  # all pages but the newest
            tail = context_len - num_full * page_len
            return min(num_full, num_pages - 1) * page_len + tail
        case _:
            return min(context_len, spec.budget_len)


def step_read_together(spec: AttentionSpec, prompt_len: int, t: int, num_trials: int) -> int:
    """Entries that all trials fetch in one step when they keep one copy of the prompt."""
    streamed = prompt_len + num_trials * t
    if isinstance(spec, Local):
        in_window = range(max(0, prompt_len + t - spec.window_len), prompt_len + t)
        from_prompt = sum(position < prompt_len for position in in_window)
        return from_prompt + num_trials * (len(in_window) - from_prompt)
    return min(streamed, num_trials * step_read(spec, prompt_len + t))


def step_pages(spec: AttentionSpec, context_len: int) -> int:
    """Page means that one trial scores in one step."""
    if not isinstance(spec, BlockTopK):
        return 0
    num_pages = -(-context_len // spec.page_len)
    return num_pages if num_pages > spec.num_pages else 0


def step_sum(
    model: ModelSpec, spec: AttentionSpec, prompt_len: int, gen_len: int, num_trials: int, share_prompt: bool
) -> dict[str, int]:
    """The bill in integers, a step at a time."""
    page_len = spec.page_len if isinstance(spec, BlockTopK) else 1
    bill = dict.fromkeys(("linear", "attended", "scored", "read", "means_read", "written"), 0)
    for t in range(1, gen_len + 1):
        attended, pages = step_read(spec, prompt_len + t), step_pages(spec, prompt_len + t)
        shared_pages = min(prompt_len // page_len, pages)
        bill["linear"] += num_trials
        bill["attended"] += num_trials * attended
        bill["scored"] += num_trials * pages
        bill["read"] += step_read_together(spec, prompt_len, t, num_trials) if share_prompt else num_trials * attended
        bill["means_read"] += shared_pages + num_trials * (pages - shared_pages) if share_prompt else num_trials * pages
        bill["written"] += num_trials * (3 if isinstance(spec, BlockTopK) else 2)
    heads, head_dim = model.num_layers * model.num_kv_heads, model.head_dim
    per_score = 2 * head_dim * model.num_layers * model.num_heads
    return {
        "linear_flops": 2 * model.num_matmul_params * bill["linear"],
        "attention_flops": 2 * per_score * bill["attended"],
        "search_flops": per_score * bill["scored"],
        "kv_read": 2 * heads * head_dim * bill["read"],
        "kv_write": heads * head_dim * bill["written"],
        "search": heads * head_dim * bill["means_read"],
        "param": model.num_matmul_params * bill["linear"],
    }


def test_oracle_by_hand() -> None:
    spec = BlockTopK(page_len=4, num_pages=2)
    assert [step_read(spec, context_len) for context_len in (1, 7, 8, 9, 12, 13)] == [1, 7, 8, 5, 8, 5]
    assert [step_pages(spec, context_len) for context_len in (1, 7, 8, 9, 12, 13)] == [0, 0, 0, 3, 3, 4]
    # Prompt 0..4, own 5..7, window of 5 over 3..7: two of the prompt once, three of each trial's own.
    assert step_read_together(Local(window_len=5), 5, 3, 4) == 2 + 4 * 3
    # Four trials gather 4 x 5, or stream 10 + 4 x 2: the latter.
    assert step_read_together(TopK(budget_len=5), 10, 2, 4) == 18
    assert step_read_together(TopK(budget_len=5), 10, 3, 4) == 20


@given(SPECS, LENGTHS, LENGTHS)
def test_entries_are_the_step_sum(spec: AttentionSpec, prompt_len: int, gen_len: int) -> None:
    contexts = range(prompt_len + 1, prompt_len + gen_len + 1)
    assert entries_read(spec, prompt_len=prompt_len, gen_len=gen_len) == sum(step_read(spec, s) for s in contexts)
    assert entries_searched(spec, prompt_len=prompt_len, gen_len=gen_len) == sum(step_pages(spec, s) for s in contexts)


@given(
    SPECS,
    LENGTHS,
    LENGTHS,
    st.integers(1, 40),
    st.booleans(),
    st.sampled_from(list(DTYPES)),
    st.sampled_from(list(DTYPES)),
    st.none() | st.integers(1, 300),
)
def test_bill_is_the_step_sum(
    spec: AttentionSpec,
    prompt_len: int,
    gen_len: int,
    num_trials: int,
    share_prompt: bool,
    kv_dtype: str,
    weight_dtype: str,
    batch_size: int | None,
) -> None:
    cost = request_cost(
        MODEL,
        spec,
        prompt_len=prompt_len,
        gen_len=gen_len,
        num_trials=num_trials,
        kv_dtype=kv_dtype,
        weight_dtype=weight_dtype,
        batch_size=batch_size,
        share_prompt=share_prompt,
    )
    wanted = step_sum(MODEL, spec, prompt_len, gen_len, num_trials, share_prompt)
    for name in ("linear_flops", "attention_flops", "search_flops"):
        assert getattr(cost, name) == pytest.approx(wanted[name], rel=1e-12), name
    for name in ("kv_read", "kv_write", "search"):
        assert getattr(cost, f"{name}_bytes") == pytest.approx(wanted[name] * DTYPES[kv_dtype].element_bytes, rel=1e-12), name
    param_bytes = 0 if batch_size is None else wanted["param"] * DTYPES[weight_dtype].element_bytes / batch_size
    assert cost.param_bytes == pytest.approx(param_bytes, rel=1e-12)
    assert cost.flops == cost.linear_flops + cost.attention_flops + cost.search_flops
    assert cost.bytes == cost.kv_read_bytes + cost.kv_write_bytes + cost.search_bytes + cost.param_bytes


@pytest.mark.parametrize(
    "spec",
    [Dense(), TopK(budget_len=1000), Local(window_len=999), BlockTopK(page_len=24, num_pages=40, num_sink_pages=1)],
    ids=str,
)
def test_float32_arrays_keep_six_digits_at_long_context(spec: AttentionSpec) -> None:
    prompt_lens, gen_lens = np.array([0, 990, 31_993]), np.array([2000, 1, 777])
    price = jax.jit(
        lambda prompts, lengths: request_cost(MODEL, spec, prompt_len=prompts, gen_len=lengths, num_trials=32)
    )
    cost = price(prompt_lens, gen_lens)
    assert cost.kv_read_bytes.dtype == jnp.float32
    for row, (prompt_len, gen_len) in enumerate(zip(prompt_lens, gen_lens, strict=True)):
        wanted = step_sum(MODEL, spec, int(prompt_len), int(gen_len), 32, True)
        got = [np.asarray(term)[row] for term in (cost.attention_flops, cost.search_flops, cost.kv_read_bytes)]
        expected = [wanted["attention_flops"], wanted["search_flops"], 2 * wanted["kv_read"]]
        np.testing.assert_allclose(got, expected, rtol=2e-6)
        np.testing.assert_allclose(np.asarray(cost.search_bytes)[row], 2 * wanted["search"], rtol=2e-6)
