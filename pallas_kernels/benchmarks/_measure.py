"""Random paged caches of real size, and how long a function on them takes."""

import importlib
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels import block_topk_decode, paged_decode, quantise_pages
from pallas_kernels._results import BlockTopKResult
from pallas_kernels.benchmarks._shape import Shape

MAX_POOL_BYTES = 10 * 2**30
"""Of keys, and of values: far more than any cache holds; sequences share pages beyond that."""
NUM_RUNS, NUM_CALLS = 20, 100


def make_cache(shape: Shape, seed: int = 0, max_pool_bytes: int = MAX_POOL_BYTES) -> tuple[jax.Array, ...]:
    """Return q, key_pages, value_pages, key_means, page_table, lengths of random numbers; and scales if quantised."""
    return cache_maker(shape, max_pool_bytes)(jax.random.key(seed))


def cache_maker(shape: Shape, max_pool_bytes: int = MAX_POOL_BYTES) -> Any:
    """Return the jitted function of a key that makes a cache."""
    page_bytes = 2 * shape.num_kv_heads * shape.page_len * shape.head_dim
    num_pages = min(shape.batch_size * shape.max_pages, max_pool_bytes // page_bytes)
    return jax.jit(partial(_make, shape=shape, num_pages=num_pages))


def _make(key: jax.Array, shape: Shape, num_pages: int) -> tuple[jax.Array, ...]:
    keys = jax.random.split(key, 5)
    pool = (num_pages, shape.num_kv_heads, shape.page_len, shape.head_dim)
    normal = partial(jax.random.normal, dtype=jnp.bfloat16)
    q = normal(keys[0], (shape.batch_size, shape.num_kv_heads * shape.group, shape.head_dim))
    wanted = shape.batch_size * shape.max_pages
    ids = jnp.concatenate([jax.random.permutation(keys[4], num_pages)] * -(-wanted // num_pages))[:wanted]
    table = ids.reshape(shape.batch_size, shape.max_pages).astype(jnp.int32)
    lengths = jnp.full(shape.batch_size, shape.context_len, jnp.int32)
    means = normal(keys[3], (num_pages, shape.num_kv_heads, shape.head_dim))
    key_pages, value_pages = normal(keys[1], pool), normal(keys[2], pool)
    if shape.kv_dtype == "bfloat16":
        return q, key_pages, value_pages, means, table, lengths
    key_pages, key_scales = quantise_pages(key_pages, shape.kv_dtype)
    value_pages, value_scales = quantise_pages(value_pages, shape.kv_dtype)
    return q, key_pages, value_pages, means, table, lengths, key_scales, value_scales


def topk_step(shape: Shape, implementation: Any, tuning: Any = None) -> Any:
    """Return the jitted function of a cache that reads the best pages."""

    def step(*cache: jax.Array) -> jax.Array:
        options: Any = {"implementation": implementation, "tuning": tuning, **_scales(cache)}
        return block_topk_decode(*cache[:6], num_blocks=shape.num_blocks, **options)

    return jax.jit(step)


def dense_step(implementation: Any, tuning: Any = None) -> Any:
    """Return the jitted function of a cache that reads all pages."""

    def step(*cache: jax.Array) -> jax.Array:
        options: Any = {"implementation": implementation, "tuning": tuning, **_scales(cache)}
        return paged_decode(*cache[:3], *cache[4:6], **options)

    return jax.jit(step)


def _scales(cache: tuple[jax.Array, ...]) -> dict[str, jax.Array]:
    return dict(zip(("key_scales", "value_scales"), cache[6:], strict=False))


def copy_bytes_per_s() -> float:
    """Return the rate of a copy within device memory, read and written bytes counted."""
    source = jnp.zeros(2**30, jnp.bfloat16)
    seconds = median_s(jax.jit(lambda source: source + 1), source)
    return 2 * source.nbytes / seconds


def median_s(step: Callable[..., Any], *arguments: Any) -> float:
    """Return the seconds of one call: the median run of several calls one after another, by a synchronised clock."""
    for _ in range(3):
        jax.block_until_ready(step(*arguments))
    runs = []
    for _ in range(NUM_RUNS):
        start = time.perf_counter()
        for _ in range(NUM_CALLS):
            result = step(*arguments)
        jax.block_until_ready(result)
        runs.append((time.perf_counter() - start) / NUM_CALLS)
    return statistics.median(runs)


def kernels_s(step: Callable[..., Any], *arguments: Any) -> dict[str, float] | None:
    """Return the seconds of each kernel of one call by the device's events, medians; None without CUPTI."""
    if jax.default_backend() != "gpu":
        return None
    profiler: Any = importlib.import_module("jax.experimental.mosaic.gpu.profiler")
    jax.block_until_ready(step(*arguments))
    _, calls = profiler.measure(step, iterations=NUM_RUNS, aggregate=False)(*arguments)
    runs: dict[str, list[float]] = {}
    for call in calls:
        in_call: dict[str, float] = {}
        for name, milliseconds in call:
            in_call[name] = in_call.get(name, 0.0) + 1e-3 * milliseconds
        for name, seconds in in_call.items():
            runs.setdefault(name.removesuffix("_mosaic_gpu_kernel"), []).append(seconds)
    return {name: statistics.median(seconds) for name, seconds in runs.items()}


def worst_error(result: BlockTopKResult, wanted: BlockTopKResult) -> tuple[float, float]:
    """Return the largest difference of outputs where the same pages were read, and the share of such rows."""
    same = jnp.all(result.selected == wanted.selected, axis=-1)
    group = result.out.shape[1] // same.shape[1]
    error = jnp.abs(result.out.astype(jnp.float32) - wanted.out.astype(jnp.float32)).max(axis=-1)
    return float(jnp.where(jnp.repeat(same, group, axis=1), error, 0.0).max()), float(same.mean())
