"""Attention specs: limits, and one text form that reads back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinetics_jax.specs import AttentionSpec, BlockTopK, Dense, Local, TopK, parse_attention

sizes = st.integers(1, 10**6)


@st.composite
def block_specs(draw: st.DrawFn) -> BlockTopK:
    num_pages = draw(sizes)
    return BlockTopK(page_len=draw(sizes), num_pages=num_pages, num_sink_pages=draw(st.integers(0, num_pages - 1)))


specs = st.one_of(
    st.just(Dense()),
    sizes.map(lambda size: TopK(budget_len=size)),
    sizes.map(lambda size: Local(window_len=size)),
    block_specs(),
)


@given(specs)
def test_text_form_reads_back(spec: AttentionSpec):
    assert parse_attention(str(spec)) == spec
    assert hash(parse_attention(str(spec))) == hash(spec)


@given(specs, specs)
def test_different_specs_have_different_texts(one: AttentionSpec, other: AttentionSpec):
    assert (str(one) == str(other)) == (one == other)


@given(st.text("densblocaltpk_:x+-.0189 ", max_size=20))
def test_any_text_gives_a_spec_or_one_kind_of_error(text: str):
    try:
        spec = parse_attention(text)
    except ValueError:
        return
    assert parse_attention(str(spec)) == spec


@pytest.mark.parametrize(
    "text", ["", "dense:4", "quest:16", "topk", "topk:", "topk:x", "block_topk:8", "block_topk:x16", "local:1.5"]
)
def test_unknown_text_lists_the_forms(text: str):
    with pytest.raises(ValueError, match=r"unknown attention spec .*Known forms: dense, topk:128, block_topk:8x16"):
        parse_attention(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("topk:0", "budget_len must be at least 1 .*got 0"),
        ("local:-4", "window_len must be at least 1 .*got -4"),
        ("block_topk:0x4", "page_len must be at least 1 .*got 0"),
        ("block_topk:8x0", "num_pages must be at least 1 .*got 0"),
        ("block_topk:8x2+-1", "num_sink_pages must not be negative; got -1"),
        ("block_topk:8x2+2", "num_pages must cover the sinks and the newest page.*Use num_pages >= 3"),
    ],
)
def test_sizes_out_of_range_are_named(text: str, message: str):
    with pytest.raises(ValueError, match=message):
        parse_attention(text)


def test_budget_is_cut_into_pages():
    spec = BlockTopK.from_budget(budget_len=96, page_len=8, num_sink_pages=2)
    assert spec == BlockTopK(page_len=8, num_pages=12, num_sink_pages=2)
    assert spec.budget_len == 96


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
