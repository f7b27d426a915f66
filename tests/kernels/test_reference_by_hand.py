"""The oracle against cases worked out by hand."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels._reference import (
    reference_block_topk_decode,
    reference_key_means,
    reference_paged_decode,
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
