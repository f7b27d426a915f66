"""Random paged caches whose unused slots, pages and table entries are poisoned."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels._reference import reference_key_means

# The one tolerance table of the room: absolute error against the float64 oracle, for unit-normal inputs.
# float32: a few hundred terms of size 1 at eps 6e-8. bfloat16: weights and output are rounded to 8 bits (eps 4e-3),
# and the oracle sees the same rounded inputs.
TOLERANCE = {"float32": 3e-6, "bfloat16": 2e-2}


class Case(NamedTuple):
    """The arguments of `block_topk_decode`, in order."""

    q: jax.Array
    key_pages: jax.Array
    value_pages: jax.Array
    key_means: jax.Array
    page_table: jax.Array
    lengths: jax.Array

    @property
    def dense(self) -> tuple[jax.Array, ...]:
        """The arguments of `paged_decode`."""
        return (self.q, self.key_pages, self.value_pages, self.page_table, self.lengths)


def _make_case(
    lengths: list[int],
    *,
    page_len: int = 4,
    num_kv_heads: int = 2,
    group: int = 3,
    head_dim: int = 8,
    max_pages: int = 6,
    dtype: str = "float32",
    seed: int = 0,
) -> Case:
    rng = np.random.default_rng(seed)
    batch_size = len(lengths)
    num_pages = batch_size * max_pages + 3
    held_pages = [-(-length // page_len) for length in lengths]
    # Entries past the last page: far out of range, negative, or a page full of NaN.
    table = rng.choice([-7, 10**6, num_pages - 1], size=(batch_size, max_pages))
    ids = rng.permutation(num_pages - 1)
    pools = np.full((2, num_pages, num_kv_heads, page_len, head_dim), np.nan)
    for b, length in enumerate(lengths):
        table[b, : held_pages[b]], ids = ids[: held_pages[b]], ids[held_pages[b] :]
        for s in range(length):
            pools[:, table[b, s // page_len], :, s % page_len] = rng.normal(size=(2, num_kv_heads, head_dim))
    key_pages, value_pages = jnp.asarray(pools[0], dtype), jnp.asarray(pools[1], dtype)
    page_table, length_array = jnp.asarray(table, "int32"), jnp.asarray(lengths, "int32")
    means = jnp.asarray(reference_key_means(key_pages, page_table, length_array), dtype)
    q = jnp.asarray(rng.normal(size=(batch_size, num_kv_heads * group, head_dim)), dtype)
    return Case(q, key_pages, value_pages, means, page_table, length_array)


@pytest.fixture
def rng(key: jax.Array) -> np.random.Generator:
    return np.random.default_rng(np.asarray(jax.random.key_data(key)))


@pytest.fixture
def make_case() -> Callable[..., Case]:
    return _make_case


@pytest.fixture
def assert_close() -> Callable[[jax.Array, np.ndarray], None]:
    def check(actual: jax.Array, wanted: np.ndarray) -> None:
        np.testing.assert_allclose(
            np.asarray(actual, np.float64), wanted, rtol=0, atol=TOLERANCE[actual.dtype.name], equal_nan=False
        )

    return check
