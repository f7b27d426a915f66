"""Attention specs: limits, and one text form that reads back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinetics_jax.specs import (
    AttentionSpec,
    BlockTopK,
    Dense,
    Local,
    Quest,
    TopK,
    attention_by_layer,
    parse_attention,
)

sizes = st.integers(1, 10**6)
few = st.integers(0, 40)
layers = st.integers(0, 100)


@st.composite
def token_specs(draw: st.DrawFn) -> TopK:
    sink_len, local_len = draw(few), draw(few)
    budget_len = draw(st.integers(max(1, sink_len + local_len), 10**6))
    return TopK(budget_len=budget_len, sink_len=sink_len, local_len=local_len, dense_layers=draw(layers))


@st.composite
def page_specs(draw: st.DrawFn, kind: type[BlockTopK] | type[Quest]) -> BlockTopK | Quest:
    num_sink_pages, num_local_pages = draw(few), draw(st.integers(1, 40))
    return kind(
        page_len=draw(sizes),
        num_pages=draw(st.integers(num_sink_pages + num_local_pages, 10**6)),
        num_sink_pages=num_sink_pages,
        num_local_pages=num_local_pages,
        dense_layers=draw(layers),
    )


specs = st.one_of(
    st.just(Dense()),
    token_specs(),
    page_specs(BlockTopK),
    page_specs(Quest),
    st.builds(Local, window_len=sizes, sink_len=few, dense_layers=layers),
)


@given(specs)
def test_text_form_reads_back(spec: AttentionSpec):
    assert parse_attention(str(spec)) == spec
    assert hash(parse_attention(str(spec))) == hash(spec)


@given(specs, specs)
def test_different_specs_have_different_texts(one: AttentionSpec, other: AttentionSpec):
    assert (str(one) == str(other)) == (one == other)


@given(st.text("densblocaltpkqu_yri:x,=+-.0189 ", max_size=24))
def test_any_text_gives_a_spec_or_one_kind_of_error(text: str):
    try:
        spec = parse_attention(text)
    except ValueError:
        return
    assert parse_attention(str(spec)) == spec


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("dense", Dense()),
        ("topk:128", TopK(budget_len=128)),
        ("topk:128,sinks=4,local=16,dense_layers=1", TopK(budget_len=128, sink_len=4, local_len=16, dense_layers=1)),
        ("block_topk:8x16", BlockTopK(page_len=8, num_pages=16)),
        (
            "block_topk:16x64,sinks=1,local=2,dense_layers=1",
            BlockTopK(page_len=16, num_pages=64, num_sink_pages=1, num_local_pages=2, dense_layers=1),
        ),
        ("quest:16x64,dense_layers=2", Quest(page_len=16, num_pages=64, dense_layers=2)),
        ("local:124,sinks=4", Local(window_len=124, sink_len=4)),
    ],
)
def test_text_forms_typed_out(text: str, spec: AttentionSpec):
    assert parse_attention(text) == spec
    assert str(spec) == text


def test_options_come_in_any_order_and_defaults_are_left_out():
    spec = parse_attention("quest:8x4,dense_layers=0,local=1,sinks=2")
    assert spec == Quest(page_len=8, num_pages=4, num_sink_pages=2)
    assert str(spec) == "quest:8x4,sinks=2"


@pytest.mark.parametrize(
    "text", ["", "dense:4", "topk", "sparse:16", "TopK:4", " dense", "local,sinks=4", "block_topk"]
)
def test_unknown_text_lists_the_forms(text: str):
    with pytest.raises(
        ValueError, match=r"unknown attention spec .*Known forms: dense, topk:128, block_topk:8x16 .*quest"
    ):
        parse_attention(text)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "topk:",
            "topk:x",
            "topk:-4",
            "topk:1_0",
            "topk:٣",
            "local:1.5",
            "block_topk:8",
            "block_topk:x16",
            "quest:8x4x2",
        ),
        *("topk:8,sinks=", "topk:8,sinks", "topk:8,local=-1", "quest:8x4,dense_layers=1.0"),
    ],
)
def test_text_without_a_whole_number_lists_the_forms(text: str):
    with pytest.raises(ValueError, match=r"is no whole number in attention spec .*Known forms: dense, topk:128"):
        parse_attention(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("topk:8,pages=2", "unknown option 'pages' in .*Options of topk: sinks, local, dense_layers"),
        ("local:8,local=2", "unknown option 'local' in .*Options of local: sinks, dense_layers"),
        ("dense,sinks=1", "unknown option 'sinks' in .*Options of dense: none"),
        ("topk:8,", "unknown option '' in"),
        ("block_topk:8x4+1", "'4\\+1' is no whole number"),  # sinks are an option
        ("topk:8,sinks=1,sinks=2", "option 'sinks' is given twice in .*Give it once"),
    ],
)
def test_bad_options_are_named(text: str, message: str):
    with pytest.raises(ValueError, match=message):
        parse_attention(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("topk:0", "budget_len must be at least 1; got 0"),
        ("local:0", "window_len must be at least 1; got 0"),
        ("block_topk:0x4", "page_len must be at least 1; got 0"),
        ("quest:8x0", "num_pages must be at least 1; got 0"),
        ("quest:8x4,local=0", "num_local_pages must be at least 1; got 0"),
        ("block_topk:8x2,sinks=2", "num_pages must cover the sinks and the newest pages.*Use num_pages >= 3"),
        ("quest:8x4,sinks=3,local=2", "got num_pages=4, num_sink_pages=3, num_local_pages=2. Use num_pages >= 5"),
        ("topk:8,sinks=4,local=5", "budget_len must cover the sinks and the newest tokens; .*Use 9 or more"),
    ],
)
def test_sizes_out_of_range_are_named(text: str, message: str):
    with pytest.raises(ValueError, match=message):
        parse_attention(text)


def test_negative_sizes_are_named():
    with pytest.raises(ValueError, match="sink_len must be at least 0; got -1"):
        Local(window_len=4, sink_len=-1)
    with pytest.raises(ValueError, match="dense_layers must be at least 0; got -2"):
        Quest(page_len=4, num_pages=4, dense_layers=-2)
    with pytest.raises(ValueError, match="local_len must be at least 0; got -3"):
        TopK(budget_len=4, local_len=-3)


@given(specs, st.integers(0, 200))
def test_only_the_first_layers_are_dense(spec: AttentionSpec, num_layers: int):
    dense_layers = 0 if isinstance(spec, Dense) else spec.dense_layers
    if dense_layers > num_layers:
        with pytest.raises(ValueError, match=f"dense_layers must not exceed the {num_layers} layers"):
            attention_by_layer(spec, num_layers)
    else:
        by_layer = attention_by_layer(spec, num_layers)
        assert len(by_layer) == num_layers
        assert all(layer == Dense() for layer in by_layer[:dense_layers])
        assert all(layer is spec for layer in by_layer[dense_layers:])


@pytest.mark.parametrize("kind", [BlockTopK, Quest])
def test_budget_is_cut_into_pages(kind: type[BlockTopK] | type[Quest]):
    spec = kind.from_budget(budget_len=96, page_len=8, num_sink_pages=2, num_local_pages=3, dense_layers=1)
    assert spec == kind(page_len=8, num_pages=12, num_sink_pages=2, num_local_pages=3, dense_layers=1)
    assert type(spec) is kind
    assert spec.budget_len == 96
    assert kind.from_budget(budget_len=96).page_len == 16


def test_budget_of_a_window_counts_its_sinks():
    assert Local(window_len=124, sink_len=4).budget_len == 128


@pytest.mark.parametrize(
    ("budget_len", "page_len", "message"),
    [
        (7, 8, "budget_len must be at least one page; got budget_len=7, page_len=8. Use a budget of 8 or more"),
        (20, 8, "page_len must divide budget_len; got budget_len=20, page_len=8. Use 16 or 24"),
        (8, 0, "page_len must be at least 1"),
    ],
)
def test_budget_that_is_no_number_of_pages_is_refused(budget_len: int, page_len: int, message: str):
    with pytest.raises(ValueError, match=message):
        BlockTopK.from_budget(budget_len=budget_len, page_len=page_len)
