"""The oracle against cases worked out by hand."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import merge_partials
from pallas_kernels._reference import (
    reference_block_topk_decode,
    reference_key_bounds,
    reference_key_means,
    reference_paged_decode,
    reference_quest_decode,
    reference_topk_decode,
)


def pages_of(*scalars: float, page_len: int) -> jnp.ndarray:
    """One KV head, head_dim 1: the pool that holds these scalars in order."""
    return jnp.array(scalars, "float32").reshape(-1, 1, page_len, 1)


def test_dense_two_tokens():
    # Logits ln 3 and 0: weights 3/4, 1/4. Values 8 and 4: 7.
    keys, values = pages_of(math.log(3), 0, page_len=2), pages_of(8, 4, page_len=2)
    out, lse, *_ = reference_paged_decode(jnp.ones((1, 1, 1)), keys, values, jnp.array([[0]]), jnp.array([2]))
    assert out.item() == pytest.approx(7, rel=1e-6)
    assert lse.item() == pytest.approx(math.log(4), rel=1e-6)  # e^ln 3 + e^0


def test_dense_reads_through_the_table_and_stops_at_the_length():
    keys, values = pages_of(0, 0, 0, np.nan, page_len=2), pages_of(1, 2, 9, np.nan, page_len=2)

    def read(table, length, **window):
        q = jnp.ones((1, 1, 1))
        out, lse, *_ = reference_paged_decode(q, keys, values, jnp.array([table]), jnp.array([length]), **window)
        return out.item(), math.exp(lse.item())  # all logits are 0: the second counts the tokens read

    assert read([1, 0], 1) == (9, 1)
    assert read([0, 1], 3) == (4, pytest.approx(3))  # mean of 1, 2, 9
    assert read([0, 1], 3, window_len=2) == (5.5, pytest.approx(2))  # mean of 2, 9
    assert read([0, 1], 3, window_len=1, sink_len=1) == (5, pytest.approx(2))  # mean of 1, 9
    assert read([0, 1], 3, window_len=2, sink_len=2) == (4, pytest.approx(3))  # 2 is sink and window: read once


def test_length_zero_gives_zero():
    keys = pages_of(np.nan, np.nan, page_len=2)
    out, lse, *_ = reference_paged_decode(jnp.ones((1, 1, 1)), keys, keys, jnp.array([[5]]), jnp.array([0]))
    assert (out.item(), lse.item()) == (0, -math.inf)


def test_the_log_sum_exp_includes_the_scale_and_what_was_selected_only():
    # Logits 4 * 0.5 ln 2 = 2 ln 2 and 0 are read, the page of -8 is not: 4 + 1.
    log2 = math.log(2)
    keys = pages_of(4 * log2, -8 * log2, 0, page_len=1)
    arguments = (jnp.ones((1, 1, 1)), keys, keys, keys[:, :, 0], jnp.array([[0, 1, 2]]), jnp.array([3]))
    found = reference_block_topk_decode(*arguments, num_blocks=2, scale=0.5)
    assert found.read == [[[0, 2]]]
    assert math.exp(found.lse.item()) == pytest.approx(5, rel=1e-6)


def test_scales_multiply_keys_and_values():
    # Keys 2 * ln 3 / 2 and 0, values 4 * 2 and 8 * 0.5: logits ln 3 and 0, values 8 and 4, as in the first case above.
    keys, values = pages_of(2, 0, page_len=2).astype("int8"), pages_of(4, 8, page_len=2).astype("int8")
    table, lengths = jnp.array([[0]]), jnp.array([2])
    scales: dict[str, Any] = {
        "key_scales": jnp.array([[[math.log(3) / 2, 7]]]),
        "value_scales": jnp.array([[[2.0, 0.5]]]),
    }
    out, lse, *_ = reference_paged_decode(jnp.ones((1, 1, 1)), keys, values, table, lengths, **scales)
    assert out.item() == pytest.approx(7, rel=1e-6)
    assert lse.item() == pytest.approx(math.log(4), rel=1e-6)
    held = {"page_table": table, "lengths": lengths, "key_scales": scales["key_scales"]}
    assert reference_key_means(keys, **held).item() == pytest.approx(math.log(3) / 2)
    assert reference_key_bounds(keys, **held).ravel().tolist() == pytest.approx([0, math.log(3)])


def test_partials_merge_by_what_they_weigh():
    # Weights 3 and 1 of outputs 8 and 4: 7, as one decode of both. A part that read nothing counts nothing.
    out = jnp.array([8.0, jnp.nan, 4.0]).reshape(3, 1, 1, 1)
    lse = jnp.array([math.log(3), -math.inf, 0.0]).reshape(3, 1, 1)
    merge = jax.jit(merge_partials)
    merged = merge(out, lse)
    assert merged.out.item() == pytest.approx(7, rel=1e-6)
    assert math.exp(merged.lse.item()) == pytest.approx(4, rel=1e-6)
    far = merge(out, lse + jnp.where(jnp.isnan(out[..., 0]), 0.0, 200.0))  # e^200 is no float32
    assert far.out.item() == pytest.approx(7, rel=1e-6)
    assert far.lse.item() == pytest.approx(200 + math.log(4), rel=1e-6)
    nothing = merge(out, jnp.full((3, 1, 1), -math.inf))
    assert (nothing.out.item(), nothing.lse.item()) == (0, -math.inf)


def test_key_bounds_are_those_of_the_held_slots():
    keys = pages_of(1, 9, 5, -7, page_len=2)
    bounds = reference_key_bounds(keys, jnp.array([[1, 0]]), jnp.array([3]))
    assert bounds.reshape(2, 2).tolist() == [[1, 1], [-7, 5]]  # page 0 holds one token, page 1 is full


def test_key_means_divide_by_the_held_slots():
    keys = pages_of(1, 3, 5, 7, page_len=2)
    means = reference_key_means(keys, jnp.array([[1, 0]]), jnp.array([3]))
    assert means.ravel().tolist() == [1, 6]  # page 1 is full, page 0 holds one token


@pytest.mark.parametrize(
    ("num_blocks", "num_sinks", "selected"),
    [(1, 0, [3]), (2, 0, [1, 3]), (3, 0, [1, 2, 3]), (2, 1, [0, 3]), (3, 1, [0, 1, 3]), (9, 0, [0, 1, 2, 3])],
)
def test_block_selection(num_blocks: int, num_sinks: int, selected: list[int]):
    # Page means 0, 5, 4, -9; the newest page, 3, is always read.
    keys = pages_of(0, 0, 4, 6, 4, 4, -9, np.nan, page_len=2)
    means, table, lengths = jnp.array([0.0, 5, 4, -9]).reshape(4, 1, 1), jnp.array([[0, 1, 2, 3]]), jnp.array([7])
    zeros, values = jnp.zeros((1, 1, 1)), pages_of(1, 1, 2, 2, 4, 4, 8, np.nan, page_len=2)
    q = jnp.ones((1, 1, 1))
    kwargs: dict[str, Any] = {"num_blocks": num_blocks, "num_sink_blocks": num_sinks}
    assert reference_block_topk_decode(q, keys, values, means, table, lengths, **kwargs).read == [[selected]]
    # With q = 0 every weight is equal and every score ties: the lowest pages win.
    tied = reference_block_topk_decode(zeros, keys, values, means, table, lengths, num_blocks=2)
    assert tied.read == [[[0, 3]]]
    assert tied.out.item() == pytest.approx((1 + 1 + 8) / 3)


def test_a_group_selects_once_by_its_mean_score():
    # Head 0 prefers page 0 by 3, head 1 prefers page 1 by 5: the mean prefers page 1.
    keys = jnp.array([[3.0, 0], [0, 5], [0, 0]]).reshape(3, 1, 1, 2)
    q = jnp.array([[[1.0, 0], [0, 1]]])
    selected = reference_block_topk_decode(
        q, keys, keys, keys[:, :, 0], jnp.array([[0, 1, 2]]), jnp.array([3]), num_blocks=2
    ).read
    assert selected == [[[1, 2]]]


def test_topk_tokens():
    keys, values = pages_of(0, 3, 3, 1, page_len=2), pages_of(1, 2, 4, 8, page_len=2)
    table, lengths = jnp.array([[0, 1]]), jnp.array([4])
    out, _, read, _ = reference_topk_decode(jnp.ones((1, 1, 1)), keys, values, table, lengths, budget_len=2)
    assert read == [[[1, 2]]]
    assert out.item() == pytest.approx(3)
    assert reference_topk_decode(jnp.ones((1, 1, 1)), keys, values, table, lengths, budget_len=1).read == [[[1]]]


@pytest.mark.parametrize(
    ("budget_len", "sink_len", "local_len", "read"),
    # Scores 0, 3, 3, 1, 2.
    [(3, 1, 0, [0, 1, 2]), (3, 0, 1, [1, 2, 4]), (3, 1, 1, [0, 1, 4]), (2, 1, 1, [0, 4]), (9, 2, 9, [0, 1, 2, 3, 4])],
)
def test_topk_counts_sinks_and_newest_tokens(budget_len: int, sink_len: int, local_len: int, read: list[int]):
    keys = pages_of(0, 3, 3, 1, 2, np.nan, page_len=2)
    table, lengths = jnp.array([[0, 1, 2]]), jnp.array([5])
    kwargs = {"budget_len": budget_len, "sink_len": sink_len, "local_len": local_len}
    assert reference_topk_decode(jnp.ones((1, 1, 1)), keys, keys, table, lengths, **kwargs).read == [[read]]


@pytest.mark.parametrize(("q", "best"), [((1.0, 1.0), 0), ((-1.0, -1.0), 0), ((1.0, -1.0), 2), ((1.0, 0.0), 2)])
def test_quest_bounds_each_page(q: tuple[float, float], best: int):
    # Largest and smallest key by dimension: page 0 (4, 4) and (-4, -4), page 1 (3, 3) twice, page 2 (7, 1) and
    # (2, -2); the newest page, 3, holds one zero. Bounds of pages 0, 1, 2 for q = (1, 1): 8, 6, 8; for (-1, -1): 8, -6,
    # 0; for (1, -1): 8, 0, 9; for (1, 0): 4, 3, 7.
    nan = (np.nan, np.nan)
    keys = jnp.array([(4.0, -4.0), (-4.0, 4.0), (3, 3), (3, 3), (7, -2), (2, 1), (0, 0), nan]).reshape(4, 1, 2, 2)
    table, lengths = jnp.array([[0, 1, 2, 3]]), jnp.array([7])
    bounds = jnp.asarray(reference_key_bounds(keys, table, lengths), "float32")
    assert bounds[2, 0].tolist() == [[2, -2], [7, 1]]
    arguments = (jnp.array([[q]]), keys, keys, bounds, table, lengths)
    assert reference_quest_decode(*arguments, num_blocks=2).read == [[[best, 3]]]
    assert reference_quest_decode(*arguments, num_blocks=3, num_local_blocks=2).read == [[[0, 2, 3]]]


def test_quest_averages_the_bounds_of_a_group_not_its_queries():
    # Mean query 0: every bound of it is 0, and page 0 would win the tie. Bounds of q and -q: page 0 1 and -1, page 1
    # 2 and 2.
    keys = pages_of(1, 1, -2, 2, 0, 0, page_len=2)
    q = jnp.array([[[1.0], [-1.0]]])
    bounds = jnp.array([[1.0, 1], [-2, 2], [0, 0]]).reshape(3, 1, 2, 1)
    arguments = (q, keys, keys, bounds, jnp.array([[0, 1, 2]]), jnp.array([6]))
    found = reference_quest_decode(*arguments, num_blocks=2)
    assert found.read == [[[1, 2]]]
    assert found.scores[0][0].tolist() == [0, 2, 0]
