"""The oracle against cases worked out by hand."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels._reference import (
    reference_block_topk_decode,
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
    out = reference_paged_decode(jnp.ones((1, 1, 1)), keys, values, jnp.array([[0]]), jnp.array([2]))
    assert out.item() == pytest.approx(7, rel=1e-6)


def test_dense_reads_through_the_table_and_stops_at_the_length():
    keys, values = pages_of(0, 0, 0, np.nan, page_len=2), pages_of(1, 2, 9, np.nan, page_len=2)
    out = reference_paged_decode(jnp.ones((1, 1, 1)), keys, values, jnp.array([[1, 0]]), jnp.array([1]))
    assert out.item() == 9
    out = reference_paged_decode(jnp.ones((1, 1, 1)), keys, values, jnp.array([[0, 1]]), jnp.array([3]))
    assert out.item() == 4  # mean of 1, 2, 9
    out = reference_paged_decode(jnp.ones((1, 1, 1)), keys, values, jnp.array([[0, 1]]), jnp.array([3]), window_len=2)
    assert out.item() == 5.5  # mean of 2, 9
    window = {"window_len": 1, "sink_len": 1}
    out = reference_paged_decode(jnp.ones((1, 1, 1)), keys, values, jnp.array([[0, 1]]), jnp.array([3]), **window)
    assert out.item() == 5  # mean of 1, 9
    window = {"window_len": 2, "sink_len": 2}
    out = reference_paged_decode(jnp.ones((1, 1, 1)), keys, values, jnp.array([[0, 1]]), jnp.array([3]), **window)
    assert out.item() == 4  # 2 is sink and window: read once


def test_length_zero_gives_zero():
    keys = pages_of(np.nan, np.nan, page_len=2)
    assert reference_paged_decode(jnp.ones((1, 1, 1)), keys, keys, jnp.array([[5]]), jnp.array([0])).item() == 0


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
    kwargs = {"num_blocks": num_blocks, "num_sink_blocks": num_sinks}
    assert reference_block_topk_decode(q, keys, values, means, table, lengths, **kwargs)[1] == [[selected]]
    # With q = 0 every weight is equal and every score ties: the lowest pages win.
    out, tied = reference_block_topk_decode(zeros, keys, values, means, table, lengths, num_blocks=2)
    assert tied == [[[0, 3]]]
    assert out.item() == pytest.approx((1 + 1 + 8) / 3)


def test_a_group_selects_once_by_its_mean_score():
    # Head 0 prefers page 0 by 3, head 1 prefers page 1 by 5: the mean prefers page 1.
    keys = jnp.array([[3.0, 0], [0, 5], [0, 0]]).reshape(3, 1, 1, 2)
    q = jnp.array([[[1.0, 0], [0, 1]]])
    selected = reference_block_topk_decode(
        q, keys, keys, keys[:, :, 0], jnp.array([[0, 1, 2]]), jnp.array([3]), num_blocks=2
    )[1]
    assert selected == [[[1, 2]]]


def test_topk_tokens():
    keys, values = pages_of(0, 3, 3, 1, page_len=2), pages_of(1, 2, 4, 8, page_len=2)
    table, lengths = jnp.array([[0, 1]]), jnp.array([4])
    out, read = reference_topk_decode(jnp.ones((1, 1, 1)), keys, values, table, lengths, budget_len=2)
    assert read == [[[1, 2]]]
    assert out.item() == pytest.approx(3)
    assert reference_topk_decode(jnp.ones((1, 1, 1)), keys, values, table, lengths, budget_len=1)[1] == [[[1]]]


@pytest.mark.parametrize(
    ("budget_len", "sink_len", "local_len", "read"),
    # Scores 0, 3, 3, 1, 2.
    [(3, 1, 0, [0, 1, 2]), (3, 0, 1, [1, 2, 4]), (3, 1, 1, [0, 1, 4]), (2, 1, 1, [0, 4]), (9, 2, 9, [0, 1, 2, 3, 4])],
)
def test_topk_counts_sinks_and_newest_tokens(budget_len: int, sink_len: int, local_len: int, read: list[int]):
    keys = pages_of(0, 3, 3, 1, 2, np.nan, page_len=2)
    table, lengths = jnp.array([[0, 1, 2]]), jnp.array([5])
    kwargs = {"budget_len": budget_len, "sink_len": sink_len, "local_len": local_len}
    assert reference_topk_decode(jnp.ones((1, 1, 1)), keys, keys, table, lengths, **kwargs)[1] == [[read]]


@pytest.mark.parametrize(("q", "best"), [((1.0, 1.0), 0), ((-1.0, -1.0), 0), ((1.0, -1.0), 2), ((1.0, 0.0), 2)])
def test_quest_bounds_each_page(q: tuple[float, float], best: int):
    # Largest and smallest key by dimension: page 0 (4, 4) and (-4, -4), page 1 (3, 3) twice, page 2 (7, 1) and
    # (2, -2); the newest page, 3, holds one zero. Bounds of pages 0, 1, 2 for q = (1, 1): 8, 6, 8; for (-1, -1): 8, -6,
    # 0; for (1, -1): 8, 0, 9; for (1, 0): 4, 3, 7.
    nan = (np.nan, np.nan)
    keys = jnp.array([(4.0, -4.0), (-4.0, 4.0), (3, 3), (3, 3), (7, -2), (2, 1), (0, 0), nan]).reshape(4, 1, 2, 2)
    arguments = (jnp.array([[q]]), keys, keys, jnp.array([[0, 1, 2, 3]]), jnp.array([7]))
    assert reference_quest_decode(*arguments, num_blocks=2)[1] == [[[best, 3]]]
    assert reference_quest_decode(*arguments, num_blocks=3, num_local_blocks=2)[1] == [[[0, 2, 3]]]


def test_quest_averages_the_bounds_of_a_group_not_its_queries():
    # Mean query 0: every bound of it is 0, and page 0 would win the tie. Bounds of q and -q: page 0 1 and -1, page 1
    # 2 and 2.
    keys = pages_of(1, 1, -2, 2, 0, 0, page_len=2)
    q = jnp.array([[[1.0], [-1.0]]])
    arguments = (q, keys, keys, jnp.array([[0, 1, 2]]), jnp.array([6]))
    assert reference_quest_decode(*arguments, num_blocks=2)[1] == [[[1, 2]]]
