"""The closed forms against the sum over steps, on every kind of (prompt_len, gen_len, budget, page, model, dtype)."""

from collections.abc import Callable
from dataclasses import asdict
from fractions import Fraction
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kinetics_jax.cost import Cost, entries_read, entries_searched, prefill_cost, request_cost
from kinetics_jax.specs import DTYPES, MODELS, AttentionSpec, BlockTopK, Dense, Local, ModelSpec, Quest, TopK
from tests.cost import step_sum as oracle

METHODS: dict[type, str] = {Dense: "dense", TopK: "topk", BlockTopK: "block_topk", Quest: "quest", Local: "local"}
NAMED = [MODELS[name] for name in ("Qwen3-0.6B", "Qwen3-8B", "Qwen3-30B-A3B", "OPT-125M", "Qwen2.5-0.5B-Instruct")]

LENGTHS = st.integers(0, 70)
DENSE_LAYERS = st.integers(0, 3)
SPECS = st.one_of(
    st.builds(Dense),
    st.builds(TopK, budget_len=st.integers(1, 90), dense_layers=DENSE_LAYERS),
    st.builds(TopK, budget_len=st.integers(9, 90), sink_len=st.integers(0, 4), local_len=st.integers(0, 5)),
    st.builds(Local, window_len=st.integers(1, 60), sink_len=st.integers(0, 60), dense_layers=DENSE_LAYERS),
    st.builds(Local, window_len=st.integers(1, 20), sink_len=st.integers(10, 60)),
    *(
        st.builds(kind, page_len=st.integers(1, 20), num_pages=st.integers(1, 9), dense_layers=DENSE_LAYERS)
        for kind in (BlockTopK, Quest)
    ),
    *(
        st.builds(kind, page_len=st.integers(1, 9), num_pages=st.integers(4, 9), num_sink_pages=st.just(2))
        for kind in (BlockTopK, Quest)
    ),
)
DTYPE_NAMES = st.sampled_from(list(DTYPES))
BATCHES = st.none() | st.integers(1, 300)


@st.composite
def tiny_models(draw: st.DrawFn) -> ModelSpec:
    """Any geometry: groups of 1 to 16 heads, with and without experts, gates, biases and norms of queries and keys."""
    num_kv_heads = draw(st.integers(1, 3))
    num_experts = draw(st.sampled_from([0, 0, 1, 3, 8]))
    return ModelSpec(
        name="tiny",
        family="tiny",
        num_layers=draw(st.integers(1, 4)),
        d_model=draw(st.integers(1, 9)),
        mlp_dim=draw(st.integers(1, 9)),
        num_heads=num_kv_heads * draw(st.integers(1, 16)),
        num_kv_heads=num_kv_heads,
        head_dim=2 * draw(st.integers(1, 5)),
        vocab_size=draw(st.integers(1, 50)),
        max_len=100,
        tied_embeddings=draw(st.booleans()),
        qk_norm=draw(st.booleans()),
        qkv_bias=draw(st.booleans()),
        gated_mlp=draw(st.booleans()),
        has_biases=draw(st.booleans()),
        num_experts=num_experts,
        num_active_experts=draw(st.integers(1, num_experts)) if num_experts else 0,
    )


def geometry_of(model: ModelSpec) -> oracle.Sizes:
    return {field: getattr(model, field) for field in oracle.GEOMETRY}


def method_of(spec: AttentionSpec) -> oracle.Method:
    return {"method": METHODS[type(spec)], **asdict(spec)}


def step_sum(model: ModelSpec, spec: AttentionSpec, **options: Any) -> oracle.Bill:
    return oracle.price_request(geometry_of(model), method_of(spec), **options)


def assert_bill(cost: Cost, wanted: oracle.Bill, rtol: float) -> None:
    for leaf in oracle.LEAVES:
        assert getattr(cost, leaf) == pytest.approx(float(wanted[leaf]), rel=rtol, abs=0), leaf


PAGES: oracle.Method = {"method": "block_topk", "page_len": 4, "num_pages": 2}
SINKS: oracle.Method = {"method": "local", "window_len": 5, "sink_len": 2}
TINY: oracle.Sizes = {
    **dict.fromkeys(oracle.GEOMETRY, 0),
    **{"num_layers": 2, "d_model": 3, "mlp_dim": 5, "num_heads": 4, "num_kv_heads": 2, "head_dim": 6, "vocab_size": 7},
    "gated_mlp": 1,
}


def test_oracle_counts_by_hand() -> None:
    contexts = (1, 7, 8, 9, 12, 13)
    assert [oracle.entries_read(PAGES, s) for s in contexts] == [1, 7, 8, 5, 8, 5]
    assert [oracle.pages_scored(PAGES, s) for s in contexts] == [0, 0, 0, 3, 3, 4]
    assert [oracle.entries_read(SINKS, s) for s in (1, 6, 7, 8, 90)] == [1, 6, 7, 7, 7]
    # Prompt 0..4, own 5..7: the window covers 3..7 and the sinks 0, 1. Four of the prompt once, three per trial.
    assert oracle.step(SINKS, 5, 3, 4, True) == (7, 4 + 4 * 3, 0, 0)
    # Prompt 0 only, own 1..9: sink 0 is common, sink 1 and the window 5..9 are each trial's own.
    assert oracle.step(SINKS, 1, 9, 4, True) == (7, 1 + 4 * 6, 0, 0)
    assert oracle.step(SINKS, 1, 9, 4, False) == (7, 28, 0, 0)
    # Four trials gather 4 x 5, or stream 10 + 4 x 2: the latter.
    top_k: oracle.Method = {"method": "topk", "budget_len": 5}
    assert [oracle.step(top_k, 10, t, 4, True).fetched for t in (2, 3)] == [18, 20]
    # Context 13: pages 0..3, of which page 0 and 1 lie whole in the prompt of 11; 3 x 5 entries against 11 + 3 x 2.
    assert oracle.step(PAGES, 11, 2, 3, True) == (5, 15, 4, 2 + 3 * 2)
    assert oracle.step({"method": "dense"}, 11, 2, 3, True) == (13, 17, 0, 0)


def test_oracle_bill_by_hand() -> None:
    """One searching step, context 9, two trials of a prompt of 8, one layer dense and one block top-k."""
    # Head 21; a layer: q and o 3 x 24 each, k and v 3 x 12 each, MLP 3 x 15, two norms of 3; a last norm of 3.
    num_params = 21 + 2 * (72 + 72 + 36 + 36 + 45 + 6) + 3
    assert oracle.matmul_params(TINY, 1) == num_params == 558
    options: dict[str, Any] = {"prompt_len": 8, "gen_len": 1, "num_trials": 2, "batch_size": 4, "weight_dtype": "int4"}
    # An int4 vector: 6 / 2 + 2 bytes; a mean: 12 bytes, as bfloat16.
    bill = oracle.price_request(TINY, {**PAGES, "dense_layers": 1}, kv_dtype="int4", **options)
    assert bill == {
        "linear_flops": 2 * 558 * 2,
        "attention_flops": 4 * 2 * 4 * 6 * (9 + 5),  # heads, trials, 4 H, entries of the two layers
        "search_flops": 4 * 2 * 2 * 6 * 3,
        "kv_read_bytes": 2 * 2 * 5 * ((8 + 2) + 10),  # KV heads, two vectors of 5 bytes
        "kv_write_bytes": 2 * 2 * (2 * 10 + 12),  # KV heads, trials, K and V in two layers and one mean
        "search_bytes": 2 * 12 * (2 + 2 * 1),  # two means of full prompt pages once
        "param_bytes": Fraction(558 * 2, 2 * 4),
    }
    quest = oracle.price_request(TINY, {**PAGES, "method": "quest"}, kv_dtype="float32", **options)
    assert quest["search_flops"] == 2 * 4 * 2 * 4 * 6 * 3  # layers, heads, trials, 4 H, pages
    assert quest["search_bytes"] == 2 * 2 * 2 * 24 * 4
    assert quest["kv_write_bytes"] == 2 * 2 * 2 * (2 * 24 + 2 * 24)


def test_oracle_experts_by_hand() -> None:
    """Two of four: one token visits 2, two tokens 4 (1 - 1/4) = 3, three tokens 3.5."""
    experts = {**TINY, "num_experts": 4, "num_active_experts": 2}
    assert [oracle.distinct_experts(experts, n) for n in (1, 2, 3)] == [2, 3, Fraction(7, 2)]
    # Beside the experts: 558 - 2 x 45, and two routers of 3 x 4.
    assert oracle.active_matmul_params(experts) == 558 - 90 + 24 + 2 * 2 * 45
    bill = oracle.price_request(experts, {"method": "dense"}, prompt_len=0, gen_len=1, batch_size=3)
    assert bill["param_bytes"] == 2 * (492 + 2 * Fraction(7, 2) * 45) / 3


def test_oracle_prefill_by_hand() -> None:
    """Five tokens in chunks of 2, 2 and 1; the summaries of two pages, the second one partial."""
    bill = oracle.price_prefill(TINY, {**PAGES, "dense_layers": 1}, prompt_len=5, chunk_len=2, batch_size=2)
    assert bill == {
        "linear_flops": 2 * (558 - 21) * 5 + 2 * 21,
        "attention_flops": 2 * 4 * 4 * 6 * 15,
        "search_flops": 0,
        "kv_read_bytes": 4 * 24 * (2 + 4 + 5),
        "kv_write_bytes": 4 * 24 * 5 + 2 * 2 * 12,
        "search_bytes": 0,
        "param_bytes": 3 * 558 * 2 // 2,
    }


@given(st.integers(1, 20), st.integers(0, 20), st.integers(0, 20), st.integers(1, 20), st.integers(1, 4))
def test_oracle_shares_what_sets_share(window_len: int, sink_len: int, prompt_len: int, t: int, trials: int) -> None:
    """Name every row by who holds it: the union over the trials is what memory delivers."""
    context_len = prompt_len + t
    rows = {*range(max(0, context_len - window_len), context_len), *range(min(sink_len, context_len))}
    held = {(None if row < prompt_len else trial, row) for trial in range(trials) for row in rows}
    method: oracle.Method = {"method": "local", "window_len": window_len, "sink_len": sink_len}
    assert oracle.step(method, prompt_len, t, trials, True)[:2] == (len(rows), len(held))


@given(SPECS, LENGTHS, LENGTHS)
def test_entries_are_the_step_sum(spec: AttentionSpec, prompt_len: int, gen_len: int) -> None:
    contexts, method = range(prompt_len + 1, prompt_len + gen_len + 1), method_of(spec)
    num_read = sum(oracle.entries_read(method, s) for s in contexts)
    assert entries_read(spec, prompt_len=prompt_len, gen_len=gen_len) == num_read
    num_scored = sum(oracle.pages_scored(method, s) for s in contexts)
    assert entries_searched(spec, prompt_len=prompt_len, gen_len=gen_len) == num_scored


@settings(max_examples=250)
@given(
    st.sampled_from(NAMED) | tiny_models(),
    SPECS,
    LENGTHS,
    LENGTHS,
    st.integers(1, 40),
    st.booleans(),
    DTYPE_NAMES,
    DTYPE_NAMES,
    BATCHES,
)
def test_bill_is_the_step_sum(
    model: ModelSpec,
    spec: AttentionSpec,
    prompt_len: int,
    gen_len: int,
    num_trials: int,
    share_prompt: bool,
    kv_dtype: str,
    weight_dtype: str,
    batch_size: int | None,
) -> None:
    assume(isinstance(spec, Dense) or spec.dense_layers <= model.num_layers)
    options: dict[str, Any] = {
        "prompt_len": prompt_len,
        "gen_len": gen_len,
        "num_trials": num_trials,
        "kv_dtype": kv_dtype,
        "weight_dtype": weight_dtype,
        "batch_size": batch_size,
        "share_prompt": share_prompt,
    }
    cost = request_cost(model, spec, **options)
    assert_bill(cost, step_sum(model, spec, **options), rtol=1e-9)
    assert cost.flops == cost.linear_flops + cost.attention_flops + cost.search_flops
    assert cost.bytes == cost.kv_read_bytes + cost.kv_write_bytes + cost.search_bytes + cost.param_bytes


@given(
    st.sampled_from(NAMED) | tiny_models(),
    SPECS,
    LENGTHS,
    st.none() | st.integers(1, 90),
    DTYPE_NAMES,
    DTYPE_NAMES,
    BATCHES,
)
def test_prefill_is_the_sum_over_chunks(
    model: ModelSpec,
    spec: AttentionSpec,
    prompt_len: int,
    chunk_len: int | None,
    kv_dtype: str,
    weight_dtype: str,
    batch_size: int | None,
) -> None:
    assume(isinstance(spec, Dense) or spec.dense_layers <= model.num_layers)
    options: dict[str, Any] = {
        "prompt_len": prompt_len,
        "chunk_len": chunk_len,
        "kv_dtype": kv_dtype,
        "weight_dtype": weight_dtype,
        "batch_size": batch_size,
    }
    wanted = oracle.price_prefill(geometry_of(model), method_of(spec), **options)
    assert_bill(prefill_cost(model, spec, **options), wanted, rtol=1e-9)


# Static under jit, so few; what they are asked to price is drawn at random.
COMPILED: list[tuple[ModelSpec, AttentionSpec, dict[str, Any]]] = [
    (MODELS["Qwen3-0.6B"], Dense(), {}),
    (MODELS["Qwen3-8B"], TopK(budget_len=23, sink_len=2, dense_layers=1), {"kv_dtype": "int4"}),
    (MODELS["OPT-125M"], Local(window_len=20, sink_len=7), {"weight_dtype": "int8"}),
    (MODELS["Qwen3-30B-A3B"], BlockTopK(page_len=7, num_pages=4, num_sink_pages=1, dense_layers=2), {}),
    (MODELS["Qwen2.5-0.5B-Instruct"], Quest(page_len=8, num_pages=3), {"kv_dtype": "float8"}),
    (MODELS["Qwen3-4B"], BlockTopK(page_len=1, num_pages=30), {"share_prompt": False, "kv_dtype": "float32"}),
]


@cache
def compiled_bills() -> Callable[..., list[Cost]]:
    """Compile all of them into one program."""

    def bills(prompt_len: Any, gen_len: Any, num_trials: Any, batch_size: Any) -> list[Cost]:
        numbers = {"prompt_len": prompt_len, "gen_len": gen_len, "num_trials": num_trials, "batch_size": batch_size}
        return [request_cost(model, spec, **numbers, **options) for model, spec, options in COMPILED]

    return jax.jit(bills)


NUM_POINTS = 6


@given(
    st.lists(
        st.tuples(LENGTHS, LENGTHS, st.integers(1, 40), st.integers(1, 300)), min_size=NUM_POINTS, max_size=NUM_POINTS
    )
)
def test_compiled_bill_is_the_step_sum(points: list[tuple[int, int, int, int]]) -> None:
    with jax.enable_x64(True):
        costs = jax.tree.map(np.asarray, compiled_bills()(*np.array(points).T.astype(np.float64)))
    for (model, spec, options), cost in zip(COMPILED, costs, strict=True):
        assert cost.linear_flops.dtype == np.float64
        for row, (prompt_len, gen_len, num_trials, batch_size) in enumerate(points):
            numbers = {"prompt_len": prompt_len, "gen_len": gen_len, "num_trials": num_trials, "batch_size": batch_size}
            one = jax.tree.map(lambda leaf, row=row: float(leaf[row]), cost)
            assert_bill(one, step_sum(model, spec, **numbers, **options), rtol=1e-9)


LONG = [
    Dense(),
    TopK(budget_len=1000, dense_layers=1),
    Local(window_len=999, sink_len=4),
    BlockTopK(page_len=24, num_pages=40, num_sink_pages=1),
    Quest(page_len=16, num_pages=64, dense_layers=2),
]


@pytest.mark.parametrize("spec", LONG, ids=str)
def test_float32_arrays_keep_six_digits_at_long_context(spec: AttentionSpec) -> None:
    model = MODELS["Qwen3-0.6B"]
    prompt_lens, gen_lens = np.array([0, 990, 31_993]), np.array([2000, 1, 777])
    price = jax.jit(
        lambda prompts, lengths: request_cost(model, spec, prompt_len=prompts, gen_len=lengths, num_trials=32)
    )
    single, double = (
        price(prompt_lens, gen_lens),
        request_cost(model, spec, prompt_len=prompt_lens, gen_len=gen_lens, num_trials=32),
    )
    assert (single.kv_read_bytes.dtype, double.kv_read_bytes.dtype) == (jnp.float32, np.float64)
    for row, (prompt_len, gen_len) in enumerate(zip(prompt_lens, gen_lens, strict=True)):
        wanted = step_sum(model, spec, prompt_len=int(prompt_len), gen_len=int(gen_len), num_trials=32)
        for leaf in oracle.LEAVES:
            np.testing.assert_allclose(getattr(single, leaf)[row], float(wanted[leaf]), rtol=2e-6, err_msg=leaf)
            np.testing.assert_allclose(getattr(double, leaf)[row], float(wanted[leaf]), rtol=1e-12, err_msg=leaf)
