"""append_kv: one token into its slot, an exact mean, and nothing else."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import _dispatch, append_bounds, append_kv, page_bounds
from pallas_kernels._reference import reference_key_bounds, reference_key_means
from tests.kernels import contract

PAGE_LEN, NUM_KV_HEADS, HEAD_DIM = 4, 2, 8

append_once, widen_once = jax.jit(append_kv), jax.jit(append_bounds, static_argnames="page_len")


def empty(num_pages: int, dtype: str = "float32") -> tuple[jax.Array, jax.Array, jax.Array]:
    pool = jnp.full((num_pages, NUM_KV_HEADS, PAGE_LEN, HEAD_DIM), jnp.nan, dtype)
    return pool, pool, pool[:, :, 0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_appends_build_pages_and_exact_means(rng, dtype):
    table = jnp.array([[4, 1, 0], [2, 5, 6]], "int32")
    tokens = jnp.asarray(rng.normal(size=(10, 2, NUM_KV_HEADS, HEAD_DIM)), dtype)
    pools = empty(8, dtype)
    lengths = jnp.array([0, 2])  # the second sequence starts two tokens further on
    pools = pools[0].at[2].set(0.0), pools[1].at[2].set(0.0), pools[2].at[2].set(0.0)
    for step, token in enumerate(tokens):
        lengths = lengths + 1
        pools = append_once(*pools, table, lengths, token, 2 * token)
        page, slot = step // PAGE_LEN, step % PAGE_LEN
        written_keys, written_values, means = (np.asarray(pool, "float32") for pool in pools)
        wanted_token = np.asarray(token, "float32")[0]
        np.testing.assert_array_equal(written_keys[table[0, page], :, slot], wanted_token)
        np.testing.assert_array_equal(written_values[table[0, page], :, slot], 2 * wanted_token)
        wanted = reference_key_means(pools[0], table, lengths)
        # One rounding of the float32 mean to the page's dtype, never a drift over appends.
        error = np.abs(np.where(np.isnan(wanted), 0.0, means - wanted))
        assert error.max() <= {"float32": 4e-7, "bfloat16": 2.0**-7}[dtype]
    assert all(np.isnan(np.asarray(pool, "float32")[[3, 7]]).all() for pool in pools)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bounds_follow_the_appended_keys(rng, dtype):
    table, lengths = jnp.array([[4, 1, 0], [2, 5, 6]], "int32"), jnp.array([0, 2])
    tokens = jnp.asarray(rng.normal(size=(10, 2, NUM_KV_HEADS, HEAD_DIM)), dtype)
    pools = [pool.at[2].set(0.0) for pool in empty(8, dtype)]  # the second sequence starts with two zeros
    bounds = jnp.full((8, NUM_KV_HEADS, 2, HEAD_DIM), jnp.nan, dtype).at[2].set(0.0)
    for token in tokens:
        lengths = lengths + 1
        pools = append_once(*pools, table, lengths, token, token)
        bounds = widen_once(bounds, table, lengths, token, page_len=PAGE_LEN)
        np.testing.assert_array_equal(np.asarray(bounds, "float32"), reference_key_bounds(pools[0], table, lengths))
    # The same from whole pages: 10 and 12 tokens, pages 3 and 7 hold none.
    held = np.zeros((8, 1, PAGE_LEN), bool)
    held[[4, 1, 2, 5, 6]], held[0, :, :2] = True, True
    is_held = np.any(held, axis=2)[:, :, None, None]
    wanted = np.where(is_held, np.asarray(bounds, "float32"), 0)
    whole = page_bounds(pools[0], jnp.asarray(held))
    assert whole.dtype == dtype
    np.testing.assert_array_equal(np.asarray(whole, "float32"), wanted)


def test_a_stale_page_is_overwritten_from_its_first_slot():
    pools = empty(2)
    token = jnp.ones((1, NUM_KV_HEADS, HEAD_DIM))
    _, _, means = append_once(*pools, jnp.array([[1]]), jnp.array([1]), token, token)
    np.testing.assert_array_equal(means[1], token[0])
    assert jnp.isnan(means[0]).all()


@pytest.mark.parametrize(("entry", "length"), [(-1, 1), (2, 1), (10**6, 1), (0, 0), (0, 5), (0, 99)])
def test_a_sequence_with_no_place_is_not_written(entry, length):
    pools = empty(2)
    token = jnp.ones((1, NUM_KV_HEADS, HEAD_DIM))
    place = jnp.array([[entry]], "int32"), jnp.array([length])
    after = append_once(*pools, *place, token, token)
    assert all(np.isnan(pool).all() for pool in after)
    bounds = jnp.full((2, NUM_KV_HEADS, 2, HEAD_DIM), jnp.nan)
    assert np.isnan(widen_once(bounds, *place, token, page_len=PAGE_LEN)).all()


@pytest.mark.skipif(_dispatch._load("triton") is None, reason="this JAX has no Triton")
@pytest.mark.parametrize(("dtype", "page_len", "head_dim"), [("float32", 4, 64), ("bfloat16", 16, 128)])
def test_triton_writes_what_xla_writes(rng, dtype, page_len, head_dim):
    """Sequences at every slot of a page, one past its table, one of length 0, entries out of range."""
    lengths = jnp.asarray(
        [1, page_len, page_len + 1, 2 * page_len - 1, 3 * page_len, 0, 4 * page_len, page_len], "int32"
    )
    table = np.asarray(rng.permutation(3 * len(lengths)).reshape(-1, 3), "int32")
    table[-1, 0], table[0, 1:] = 10**6, -1
    pool = jnp.asarray(rng.normal(size=(table.size, 2, page_len, head_dim)), dtype)
    pool = pool.at[:, :, 1:].set(
        jnp.where(jnp.arange(page_len - 1) < page_len // 2, pool[:, :, 1:].swapaxes(2, 3), jnp.nan).swapaxes(2, 3)
    )
    means, token = pool[:, :, 0], jnp.asarray(rng.normal(size=(len(lengths), 2, head_dim)), dtype)
    arrays = pool, 2 * pool, means, jnp.asarray(table), lengths, token, 2 * token
    wanted = append_once(*arrays)
    with contract.mode("triton"):
        got = jax.jit(partial(append_kv, implementation="triton"))(*arrays)
    for name, left, right in zip(("keys", "values"), got, wanted, strict=False):
        np.testing.assert_array_equal(np.asarray(left, "float32"), np.asarray(right, "float32"), err_msg=name)
    error = np.abs(np.asarray(got[2], "float32") - np.asarray(wanted[2], "float32"))
    np.testing.assert_array_equal(np.isnan(error), np.isnan(np.asarray(wanted[2], "float32")))
    assert np.nanmax(error) <= {"float32": 4e-7, "bfloat16": 2.0**-7}[dtype]


def test_vmap_equals_a_loop(rng):
    pages, _, means = (jnp.zeros((3, *pool.shape)) for pool in empty(4))
    table = jnp.array([[[0, 1], [2, 3]], [[3, 2], [1, 0]], [[1, 3], [2, 0]]], "int32")
    lengths = jnp.array([[1, 5], [8, 4], [3, 9]])
    token = jnp.asarray(rng.normal(size=(3, 2, NUM_KV_HEADS, HEAD_DIM)), "float32")
    mapped = jax.jit(jax.vmap(append_kv))(pages, pages, means, table, lengths, token, token)
    for i in range(3):
        single = append_once(pages[i], pages[i], means[i], table[i], lengths[i], token[i], token[i])
        for got, wanted in zip(mapped, single, strict=True):
            np.testing.assert_array_equal(got[i], wanted)


def test_a_loop_updates_the_pools_in_place(rng):
    """The compiled loop body holds no copy of a pool."""
    pages, _, means = (jnp.zeros_like(pool) for pool in empty(50))
    token = jnp.asarray(rng.normal(size=(2, NUM_KV_HEADS, HEAD_DIM)), "float32")
    table = jnp.arange(50, dtype=jnp.int32).reshape(2, 25)

    def run(keys, values, means):
        def step(i, pools):
            lengths = jnp.full(2, i + 1)
            return append_kv(pools[0], pools[1], pools[2], table, lengths, token + i.astype("float32"), token)

        return jax.lax.fori_loop(0, 60, step, (keys, values, means))

    compiled = jax.jit(run, donate_argnums=(0, 1, 2)).lower(pages, pages + 1, means).compile().as_text() or ""
    assert "f32[50,2,4,8]" in compiled
    assert not re.findall(r"f32\[50,2,4,8\]\S* copy\(", compiled)
