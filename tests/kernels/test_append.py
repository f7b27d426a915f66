"""append_kv: one token into its slot, an exact mean, and nothing else."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import _dispatch, append_bounds, append_kv, page_bounds, rotate_and_append_kv
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


def half_held(rng, dtype: str, page_len: int, head_dim: int) -> tuple[jax.Array, ...]:
    """Return pools, table and lengths: at every slot of a page, past its table, of length 0, entries out of range."""
    lengths = jnp.asarray(
        [1, page_len, page_len + 1, 2 * page_len - 1, 3 * page_len, 0, 4 * page_len, page_len], "int32"
    )
    table = np.asarray(rng.permutation(3 * len(lengths)).reshape(-1, 3), "int32")
    table[-1, 0], table[0, 1:] = 10**6, -1
    pool = jnp.asarray(rng.normal(size=(table.size, 2, page_len, head_dim)), dtype)
    pool = pool.at[:, :, 1:].set(
        jnp.where(jnp.arange(page_len - 1) < page_len // 2, pool[:, :, 1:].swapaxes(2, 3), jnp.nan).swapaxes(2, 3)
    )
    return pool, 2 * pool, pool[:, :, 0], jnp.asarray(table), lengths


@pytest.mark.skipif(_dispatch._load("triton") is None, reason="this JAX has no Triton")
@pytest.mark.parametrize(("dtype", "page_len", "head_dim"), [("float32", 4, 64), ("bfloat16", 16, 128)])
def test_triton_writes_what_xla_writes(rng, dtype, page_len, head_dim):
    held = half_held(rng, dtype, page_len, head_dim)
    token = jnp.asarray(rng.normal(size=(len(held[-1]), 2, head_dim)), dtype)
    wanted = append_once(*held, token, 2 * token)
    with contract.mode("triton"):
        got = jax.jit(partial(append_kv, implementation="triton"))(*held, token, 2 * token)
    for name, left, right in zip(("keys", "values"), got, wanted, strict=False):
        np.testing.assert_array_equal(np.asarray(left, "float32"), np.asarray(right, "float32"), err_msg=name)
    assert_close(got[2], wanted[2], {"float32": 4e-7, "bfloat16": 2.0**-7}[dtype])


def assert_close(got: jax.Array, wanted: jax.Array, tolerance: float) -> None:
    """Hold values to an absolute error, and NaN to NaN."""
    np.testing.assert_allclose(np.asarray(got, "float32"), np.asarray(wanted, "float32"), rtol=0, atol=tolerance)


def projected(rng, batch_size: int, group: int, head_dim: int, dtype: str) -> tuple[jax.Array, ...]:
    """Return queries, keys and values of two KV heads as projected, and cosine and sine of random angles."""
    q, keys, values = (
        jnp.asarray(rng.normal(size=(batch_size, heads, head_dim)), dtype) for heads in (2 * group, 2, 2)
    )
    angle = jnp.asarray(rng.uniform(-9, 9, size=(batch_size, head_dim // 2)), "float32")
    return q, keys, values, jnp.cos(angle), jnp.sin(angle)


def random_norms(rng, head_dim: int, dtype: str) -> tuple[jax.Array, jax.Array]:
    query, key = jnp.asarray(1 + 0.1 * rng.normal(size=(2, head_dim)), dtype)
    return query, key


@pytest.mark.parametrize("has_norms", [True, False])
def test_rotate_and_append_by_the_equations(rng, has_norms):
    """In float64, one head after the other."""
    held = half_held(rng, "float32", 4, 8)
    heads, norms = projected(rng, 8, 3, 8, "float32"), random_norms(rng, 8, "float32") if has_norms else None
    out, *pools = jax.jit(partial(rotate_and_append_kv, norms=norms, epsilon=0.1))(*held, *heads)

    def ready(x: jax.Array, norm: jax.Array | None) -> np.ndarray:
        wide, result = np.asarray(x, "float64"), np.zeros(x.shape)
        for b, n in np.ndindex(*x.shape[:2]):
            head = wide[b, n]
            if norm is not None:
                head = head / np.sqrt((head**2).mean() + 0.1) * np.asarray(norm, "float64")
            for i in range(4):
                cos, sin = float(heads[3][b, i]), float(heads[4][b, i])
                result[b, n, i] = head[i] * cos - head[i + 4] * sin
                result[b, n, i + 4] = head[i] * sin + head[i + 4] * cos
        return result

    query_norm, key_norm = norms or (None, None)
    np.testing.assert_allclose(out, ready(heads[0], query_norm), atol=2e-6)
    keys = jnp.asarray(ready(heads[1], key_norm), "float32")
    for got, wanted in zip(pools, append_once(*held, keys, heads[2]), strict=True):
        assert_close(got, wanted, 2e-6)


@pytest.mark.skipif(_dispatch._load("triton") is None, reason="this JAX has no Triton")
@pytest.mark.parametrize(
    ("dtype", "page_len", "head_dim", "group", "has_norms"),
    [
        ("float32", 4, 64, 1, True),
        ("float32", 16, 128, 5, False),
        ("bfloat16", 16, 128, 2, True),
        ("bfloat16", 64, 128, 8, True),
        ("bfloat16", 128, 64, 4, False),
    ],
)
def test_triton_rotates_and_appends_as_xla(rng, dtype, page_len, head_dim, group, has_norms):
    held = half_held(rng, dtype, page_len, head_dim)
    heads = projected(rng, len(held[-1]), group, head_dim, dtype)
    norms = random_norms(rng, head_dim, dtype) if has_norms else None
    wanted = jax.jit(partial(rotate_and_append_kv, implementation="xla", norms=norms))(*held, *heads)
    with contract.mode("triton"):
        got = jax.jit(partial(rotate_and_append_kv, implementation="triton", norms=norms))(*held, *heads)
    # Sums in another order; in bfloat16 they may round the other way, once in the norm and once in the rotation.
    tolerance = {"float32": 2e-6, "bfloat16": 2.0**-5}[dtype]
    for left, right in zip((got[0], got[1], got[3]), (wanted[0], wanted[1], wanted[3]), strict=True):
        assert_close(left, right, tolerance)
    assert_close(got[2], wanted[2], 0.0)  # values are copied


@pytest.mark.parametrize("implementation", [None, "triton"])
def test_vmap_of_rotate_and_append_equals_a_loop(rng, implementation):
    """Under `vmap` XLA's runs, also in the place of a kernel."""
    if implementation and _dispatch._load(implementation) is None:
        pytest.skip("this JAX has no Triton")
    pool = jnp.zeros((3, 4, 2, PAGE_LEN, 64))
    pools = pool, pool, pool[:, :, :, 0]
    table = jnp.array([[[0, 1], [2, 3]], [[3, 2], [1, 0]], [[1, 3], [2, 0]]], "int32")
    lengths = jnp.array([[1, 5], [8, 4], [3, 9]])
    heads = [jnp.stack(three) for three in zip(*(projected(rng, 2, 2, 64, "float32") for _ in range(3)), strict=True)]
    run = partial(rotate_and_append_kv, norms=random_norms(rng, 64, "float32"), implementation="xla")
    with contract.mode(implementation or "xla"):
        mapped = jax.jit(jax.vmap(partial(run, implementation=implementation)))(*pools, table, lengths, *heads)
    for i in range(3):
        single = jax.jit(run)(*(array[i] for array in (*pools, table, lengths, *heads)))
        for got, wanted in zip(mapped, single, strict=True):
            np.testing.assert_array_equal(got[i], wanted)


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
