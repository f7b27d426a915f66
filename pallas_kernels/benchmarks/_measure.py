"""Random paged caches of real size, and how long a function on them takes."""

import importlib
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels._results import BlockTopKResult

MAX_POOL_BYTES = 10 * 2**30
"""Of keys, and of values: far more than any cache holds; sequences share pages beyond that."""
NUM_RUNS, NUM_CALLS = 20, 100


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Size of one layer's decode step.

    Attributes:
        batch_size: Sequences.
        num_kv_heads: KV heads.
        group: Query heads of a KV head.
        head_dim: Width of a head.
        context_len: Tokens held by each sequence.
        page_len: Tokens of a page.
        budget_len: Tokens read by block top-k.
    """

    batch_size: int
    num_kv_heads: int = 8
    group: int = 4
    head_dim: int = 128
    context_len: int = 16_384
    page_len: int = 16
    budget_len: int = 1_024

    @property
    def max_pages(self) -> int:
        """Pages of a sequence."""
        return -(-self.context_len // self.page_len)

    @property
    def num_blocks(self) -> int:
        """Pages read."""
        return -(-self.budget_len // self.page_len)

    @property
    def dense_bytes(self) -> int:
        """Bytes of the keys and values of all tokens, in bfloat16."""
        return 4 * self.batch_size * self.num_kv_heads * self.context_len * self.head_dim

    @property
    def topk_bytes(self) -> int:
        """Bytes of all page means and of the keys and values of the selected pages, in bfloat16."""
        rows = self.batch_size * self.num_kv_heads * self.head_dim
        if self.num_blocks >= self.max_pages:
            return self.dense_bytes
        return rows * (2 * self.max_pages + 4 * self.num_blocks * self.page_len)


def make_cache(shape: Shape, seed: int = 0) -> tuple[jax.Array, ...]:
    """Return q, key_pages, value_pages, key_means, page_table, lengths in random bfloat16."""
    page_bytes = 2 * shape.num_kv_heads * shape.page_len * shape.head_dim
    num_pages = min(shape.batch_size * shape.max_pages, MAX_POOL_BYTES // page_bytes)
    return _make(jax.random.key(seed), shape, num_pages)


@partial(jax.jit, static_argnums=(1, 2))
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
    return q, normal(keys[1], pool), normal(keys[2], pool), means, table, lengths


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


def kernels_s(step: Callable[..., Any], *arguments: Any) -> float | None:
    """Return the seconds that the kernels of one call take by the device's events, the median; None without CUPTI."""
    if jax.default_backend() != "gpu":
        return None
    profiler: Any = importlib.import_module("jax.experimental.mosaic.gpu.profiler")
    jax.block_until_ready(step(*arguments))
    _, runs = profiler.measure(step, iterations=NUM_RUNS)(*arguments)
    return 1e-3 * statistics.median(runs)


def worst_error(result: BlockTopKResult, wanted: BlockTopKResult) -> tuple[float, float]:
    """Return the largest difference of outputs where the same pages were read, and the share of such rows."""
    same = jnp.all(result.selected == wanted.selected, axis=-1)
    group = result.out.shape[1] // same.shape[1]
    error = jnp.abs(result.out.astype(jnp.float32) - wanted.out.astype(jnp.float32)).max(axis=-1)
    return float(jnp.where(jnp.repeat(same, group, axis=1), error, 0.0).max()), float(same.mean())
