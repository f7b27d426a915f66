"""Quantised pages: how vectors are rounded, what is appended, and that only what is read is widened."""

import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinetics_jax.specs import DTYPES
from pallas_kernels import (
    append_bounds,
    append_kv,
    block_topk_decode,
    dequantise_pages,
    quantise_pages,
)
from pallas_kernels._reference import reference_key_bounds, reference_key_means
from tests.kernels.cases import Layout, make_case

LARGEST = {"int8": 127.0, "float8_e4m3fn": 448.0}
NUM_KV_HEADS, PAGE_LEN, HEAD_DIM = 2, 4, 8

quantise = jax.jit(quantise_pages, static_argnames=("dtype", "scale_dtype"))


def rounded(entries: np.ndarray, dtype: str, scale_dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """The same in NumPy, for entries that are not all zero."""
    scales = (np.abs(entries).max(axis=-1) * np.float32(1 / LARGEST[dtype])).astype(jnp.dtype(scale_dtype))
    steps = np.clip(entries / scales.astype(np.float32)[..., None], -LARGEST[dtype], LARGEST[dtype])
    return (np.rint(steps) if dtype == "int8" else steps).astype(jnp.dtype(dtype)), scales


def test_rounding_by_hand():
    entries = jnp.array([[127.0, 2.5, 3.5, -2.5, -0.5, 0.4], [0, -0.0, 0, 0, 0, 0], [1e-40, 0, 0, 0, 0, -1e-40]])
    pages, scales = quantise(entries, dtype="int8")
    assert pages.tolist() == [[127, 2, 4, -2, 0, 0], [0] * 6, [0] * 6]
    assert (scales.tolist(), scales.dtype) == ([1, 1, 1], jnp.bfloat16)
    # Of 16..32 float8 has even numbers: halves go to the multiple of four. The smallest is 2^-9.
    entries = jnp.array([[448.0, 17, 19, -21, 2.0**-9, 2.0**-10], [0, 0, 0, 0, 0, 0]])
    pages, scales = quantise(entries, dtype="float8_e4m3fn", scale_dtype="float32")
    assert np.asarray(pages, "float32").tolist() == [[448, 16, 20, -20, 2.0**-9, 0], [0] * 6]
    assert (scales.tolist(), scales.dtype) == ([1, 1], jnp.float32)


@pytest.mark.parametrize("dtype", LARGEST)
@settings(max_examples=10)
@given(exponent=st.integers(-100, 100), seed=st.integers(0, 99), scale_dtype=st.sampled_from(["bfloat16", "float32"]))
def test_an_entry_is_off_by_half_a_step(dtype, exponent, seed, scale_dtype):
    rng = np.random.default_rng(seed)
    entries = (rng.normal(size=(16, 8)) * 2.0**exponent).astype(np.float32)
    pages, scales = quantise(jnp.asarray(entries), dtype=dtype, scale_dtype=scale_dtype)
    assert (pages.dtype, scales.dtype) == (dtype, scale_dtype)
    back, steps = np.asarray(pages, np.float64), np.asarray(scales, np.float64)[:, None]
    half = steps / 2 if dtype == "int8" else np.maximum(np.abs(entries) / 16, steps / 1024)
    assert (np.abs(back * steps - entries) <= half * (1 + 1e-6)).all()  # NaN is not
    np.testing.assert_allclose(dequantise_pages(pages, scales), back * steps, rtol=1e-6)
    # No more numbers than needed lie idle: the largest entry takes the largest page, within the scale's rounding.
    assert (np.abs(back).max(axis=1) >= LARGEST[dtype] * (1 - 2.0**-4)).all()


@pytest.mark.parametrize(("dtype", "name"), [("int8", "int8"), ("float8_e4m3fn", "float8")])
def test_bytes_are_those_that_cost_counts(dtype, name):
    pages, scales = jax.eval_shape(partial(quantise_pages, dtype=dtype), jnp.ones((5, 2, 4, 128)))
    num_bytes = pages.size * pages.dtype.itemsize + scales.size * scales.dtype.itemsize
    assert num_bytes == 5 * 2 * 4 * DTYPES[name].vector_bytes(128)


@pytest.mark.parametrize(("dtype", "scale_dtype"), [("int8", "bfloat16"), ("float8_e4m3fn", "float32")])
def test_appends_round_once_and_means_are_those_of_what_is_held(rng, dtype, scale_dtype):
    table, tokens = jnp.array([[4, 1]], "int32"), rng.normal(size=(6, 2, 1, NUM_KV_HEADS, HEAD_DIM)).astype("float32")
    poison = jnp.full((6, NUM_KV_HEADS, PAGE_LEN, HEAD_DIM), -128 if dtype == "int8" else jnp.nan, dtype)
    scales = jnp.full(poison.shape[:3], jnp.nan, scale_dtype)
    means = jnp.full(poison[:, :, 0].shape, jnp.nan)
    names = ("key_pages", "value_pages", "key_means", "key_scales", "value_scales")
    pools: dict[str, Any] = dict(zip(names, (poison, poison, means, scales, scales), strict=True))
    bounds = jnp.full((6, NUM_KV_HEADS, 2, HEAD_DIM), jnp.nan)

    @jax.jit
    def append(pools, bounds, lengths, keys, values):
        after = append_kv(**pools, page_table=table, lengths=lengths, keys=keys, values=values)
        keys = dequantise_pages(*quantise_pages(keys, dtype, scale_dtype=scale_dtype))
        return after, append_bounds(bounds, table, lengths, keys, page_len=PAGE_LEN)

    for step, (key, value) in enumerate(tokens):
        lengths = jnp.array([step + 1])
        after, bounds = append(pools, bounds, lengths, jnp.asarray(key), jnp.asarray(value))
        pools = dict(zip(names, after, strict=True))
        page, slot = table[0, step // PAGE_LEN], step % PAGE_LEN
        for which, entries in (("key", key), ("value", value)):
            wanted, wanted_scales = rounded(entries[0], dtype, scale_dtype)
            got = pools[f"{which}_pages"][page, :, slot]
            np.testing.assert_array_equal(np.asarray(got, "float32"), wanted.astype("float32"))
            got = pools[f"{which}_scales"][page, :, slot]
            np.testing.assert_array_equal(np.asarray(got, "float32"), wanted_scales.astype("float32"))
        held = {"page_table": table, "lengths": lengths, "key_scales": pools["key_scales"]}
        # NaN where nobody holds a page: there too nothing was written.
        np.testing.assert_allclose(pools["key_means"], reference_key_means(pools["key_pages"], **held), atol=5e-7)
        np.testing.assert_allclose(bounds, reference_key_bounds(pools["key_pages"], **held), rtol=1e-6)
    others = np.array([0, 2, 3, 5])
    assert np.isnan(np.asarray(pools["key_scales"], "float32")[others]).all()
    np.testing.assert_array_equal(
        np.asarray(pools["value_pages"], "float32")[others], np.asarray(poison, "float32")[others]
    )


def test_a_loop_updates_the_pools_in_place():
    """The compiled loop body holds no copy of a pool, nor one in a wider dtype."""
    pages, scales = jnp.zeros((50, 2, 4, 8), "int8"), jnp.zeros((50, 2, 4))  # a CPU widens bfloat16 to scatter it
    table, token = jnp.arange(50, dtype=jnp.int32).reshape(2, 25), jnp.ones((2, 2, 8))

    def run(keys, values, means, key_scales, value_scales):
        def step(i, pools):
            new, scales = token + i.astype("float32"), {"key_scales": pools[3], "value_scales": pools[4]}
            return append_kv(pools[0], pools[1], pools[2], table, jnp.full(2, i + 1), new, token, **scales)

        return jax.lax.fori_loop(0, 60, step, (keys, values, means, key_scales, value_scales))

    pools = pages, pages + 1, jnp.zeros((50, 2, 8)), scales, scales + 1
    compiled = jax.jit(run, donate_argnums=(0, 1, 2, 3, 4)).lower(*pools).compile().as_text() or ""
    assert "s8[50,2,4,8]" in compiled
    assert not re.findall(r"(?:s8\[50,2,4,8\]|f32\[50,2,4\])\S* copy\(", compiled)
    assert "f32[50,2,4,8]" not in compiled


def test_only_what_is_read_is_widened():
    case = make_case([5, 24, 17], Layout(4, 2, 3, 8, "float32", "int8"))
    read = jax.make_jaxpr(lambda *arguments: block_topk_decode(*arguments, num_blocks=2, **case.scales))
    program = str(read(*case.arguments("block_topk_decode")))
    assert "f32[3,2,8,8]" in program  # 2 pages of 4
    assert f"f32[{case.key_pages.shape[0]},2,4,8]" not in program


def test_a_float8_beyond_the_largest_never_becomes_nan():
    # A scale that bfloat16 rounds down by 2^-9: the largest entry is 448.8 steps, which float8 has not.
    entry = np.float32(448) * (1 + 2.0**-9 - 2.0**-16)
    pages, scales = quantise(jnp.array([[entry, -entry]]), dtype="float8_e4m3fn")
    assert scales.item() == 1.0
    assert np.asarray(pages, "float32").tolist() == [[448, -448]]
    assert np.isnan(np.float32(500).astype(ml_dtypes.float8_e4m3fn).astype("float32"))
