"""Random paged caches whose unused slots, pages and table entries are poisoned; and caches of real sizes."""

import itertools
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import _dispatch, dequantise_pages, page_bounds, page_means, quantise_pages
from pallas_kernels._reference import reference_key_bounds, reference_key_means


class Case(NamedTuple):
    """A cache and the queries that read it: arrays, or what stands for each (a mapped axis, a PartitionSpec)."""

    q: Any
    key_pages: Any
    value_pages: Any
    key_means: Any
    key_bounds: Any
    page_table: Any
    lengths: Any
    key_scales: Any = None
    value_scales: Any = None

    def arguments(self, operation: str) -> tuple[Any, ...]:
        """The positional arguments of a public decode."""
        summaries = {
            "block_topk_decode": (self.key_means,),
            "quest_decode": (self.key_bounds,),
            "paged_decode": (),
        }[operation]
        return (self.q, self.key_pages, self.value_pages, *summaries, self.page_table, self.lengths)

    @property
    def scales(self) -> dict[str, Any]:
        """The keywords that go with quantised pages."""
        names = ("key_scales", "value_scales")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    @property
    def page_len(self) -> int:
        return self.key_pages.shape[2]

    @property
    def max_pages(self) -> int:
        return self.page_table.shape[1]


class Layout(NamedTuple):
    """The sizes of a cache that a kernel is compiled for."""

    page_len: int
    num_kv_heads: int
    group: int
    head_dim: int
    dtype: str  # of q, and of pages and summaries
    page_dtype: str | None = None  # of quantised pages; `dtype` is then that of the scales


TINY = Layout(4, 2, 3, 8, "float32")


# Every page length, head_dim, kind of group and dtype once, not every combination: a compilation each.
LAYOUTS = [
    TINY,
    Layout(16, 2, 5, 128, "bfloat16"),
    Layout(32, 1, 8, 64, "float32"),
    Layout(64, 3, 1, 64, "bfloat16"),
    Layout(128, 2, 2, 128, "float32"),
    Layout(4, 2, 3, 8, "float32", "float8_e4m3fn"),
    Layout(16, 1, 5, 64, "bfloat16", "int8"),
]
INTERPRETED_LAYOUTS = [
    Layout(16, 1, 5, 64, "bfloat16"),
    Layout(32, 1, 8, 128, "float32"),
    Layout(16, 1, 5, 64, "float32", "int8"),
    Layout(32, 1, 2, 128, "bfloat16", "float8_e4m3fn"),
]
DEVICE_LAYOUTS = [
    Layout(page_len, [2, 1, 3][group % 3], group, [64, 128][(group + page_len // 32) % 2], dtype)
    for page_len in (16, 32, 64, 128)
    for group in range(1, 9)
    for dtype in (("bfloat16", "float32") if group in (1, 4, 5) else ("bfloat16",))
] + [
    Layout(page_len, 2, 4, [64, 128][page_len // 32 % 2], dtype, page_dtype)
    for page_len in (16, 32, 128)
    for dtype, page_dtype in itertools.product(("bfloat16", "float32"), ("int8", "float8_e4m3fn"))
]
# (batch_size, context [tokens], layout): what Qwen3 is decoded with, one sequence to what fits.
REAL_SIZES = [
    (batch_size, context_len, layout)
    for batch_size, context_len in ((1, 65_536), (3, 16_000), (16, 32_768), (64, 16_384), (256, 4_096))
    for layout in (
        Layout(16, 8, 4, 128, "bfloat16"),
        Layout(64, 8, 5, 128, "bfloat16"),
        Layout(32, 8, 2, 128, "bfloat16"),
        Layout(32, 2, 6, 64, "float32"),
        Layout(16, 8, 4, 128, "bfloat16", "int8"),
        Layout(32, 8, 4, 128, "bfloat16", "float8_e4m3fn"),
    )
]
COUNTS: list[dict[str, Any]] = [
    {"num_blocks": 3, "num_sink_blocks": 1, "num_local_blocks": 1},
    {"num_blocks": 5, "num_sink_blocks": 1, "num_local_blocks": 2},
    {"num_blocks": 4, "num_local_blocks": 0, "scale": 0.05},
    {"num_blocks": 1},
]
# (window, sinks) in quarters of a page: within it, over its edge, into the sinks, the whole table.
WINDOWS = [(6, 9), (5, 0), (1, 1), (99, 0), (1, 0), (4, 0), (9, 0), (4, 5), (3, 99)]


class Effort(NamedTuple):
    """How much of the contract is worth its time: 0 in passing, 1 by default, 2 on a device, by name."""

    level: int
    is_native: bool
    implementation: Any  # the name of one

    @property
    def layouts(self) -> list[Layout]:
        """What the implementation runs; what it does not, it refuses by name (`unsupported`)."""
        if not self.is_native:
            layouts = INTERPRETED_LAYOUTS[: None if self.level else 1]
        else:
            layouts = DEVICE_LAYOUTS if self.level == 2 else LAYOUTS
        return [layout for layout in layouts if self.runs(layout)]

    @property
    def quantised_layouts(self) -> list[Layout]:
        """What the implementation runs of quantised pages, in passing too."""
        layouts = self.layouts if self.is_native or self.level else INTERPRETED_LAYOUTS
        return [layout for layout in layouts if layout.page_dtype and self.runs(layout)]

    @property
    def real_sizes(self) -> list[tuple[int, int, Layout]]:
        return [size for size in REAL_SIZES if self.runs(size[2])] if self.level == 2 else []

    def runs(self, layout: Layout, **options: Any) -> bool:
        """Return whether the implementation says that it runs this layout, with a window if one is given."""
        if self.implementation == "xla":
            return True
        pages = jnp.zeros((1, layout.num_kv_heads, layout.page_len, layout.head_dim))
        pages = pages.astype(layout.page_dtype or layout.dtype)
        q = jnp.zeros((1, layout.num_kv_heads * layout.group, layout.head_dim), layout.dtype)
        module = _dispatch._load(self.implementation)
        return module is not None and module.unsupported(q, pages, jnp.zeros((1, 1), jnp.int32), **options) is None

    @property
    def selecting(self) -> tuple[str, ...]:
        return ("block_topk_decode", "quest_decode")[: self.level + 1]

    def windows(self, layout: Layout) -> list[tuple[int, int]]:
        return WINDOWS[: (1, 4, 9)[self.level]] if self.runs(layout, window_len=1) else []

    def counts(self, operation: str, layout: Layout) -> list[dict[str, Any]]:
        """Return the selections to try: by default one of either kind for a layout, and more for the smallest."""
        if self.level == 2:
            return COUNTS
        if operation not in self.selecting:
            return []
        if layout == TINY:
            return COUNTS[:3] if operation == "block_topk_decode" else COUNTS[:1]
        return COUNTS[: self.is_native is False or (operation == "quest_decode") == (layout.page_len == 64)]

    def case(self, layout: Layout, *, seed: int = 0) -> Case:
        """Make a case of all lengths that matter; of few where they are read slowly."""
        if self.level == 0:
            page_len = layout.page_len
            return make_case([page_len + 1, 0, 4 * page_len - 1], layout, max_pages=4, seed=seed)
        return make_case(edge_lengths(layout.page_len, 6), layout, max_pages=6, seed=seed)


def make_case(lengths: list[int], layout: Layout = TINY, *, max_pages: int = 6, seed: int = 0) -> Case:
    """Make a cache of random keys and values; what no sequence holds is NaN, or a page id out of range."""
    page_len, num_kv_heads, group, head_dim, dtype, page_dtype = layout
    rng = np.random.default_rng(seed)
    batch_size = len(lengths)
    num_pages = batch_size * max_pages + 3
    # Entries past the last page: far out of range, negative, or a page full of NaN.
    table = rng.choice([-7, 10**6, num_pages - 1], size=(batch_size, max_pages))
    ids = iter(rng.permutation(num_pages - 1))
    pools = np.full((2, num_pages, num_kv_heads, page_len, head_dim), np.nan, np.float32)
    for b, length in enumerate(lengths):
        for m in range(-(-length // page_len)):
            table[b, m] = page = next(ids)
            held = min(page_len, length - m * page_len)
            pools[:, page, :, :held] = rng.normal(size=(2, num_kv_heads, held, head_dim))
    scales: tuple[jax.Array, ...] = ()
    if page_dtype:
        # A step is a fortieth, give or take; what is not held is NaN, in integers their smallest.
        scales = tuple(
            jnp.asarray(np.where(np.isnan(pools[..., 0]), np.nan, rng.uniform(0.02, 0.03, pools.shape[:-1])), dtype)
        )
        pools = pools * 40
    key_pages, value_pages = _poisoned(pools, page_dtype) if page_dtype else jnp.asarray(pools, dtype)
    page_table, length_array = jnp.asarray(table, "int32"), jnp.asarray(lengths, "int32")
    held = {"page_table": page_table, "lengths": length_array, "key_scales": scales[0] if scales else None}
    means = jnp.asarray(reference_key_means(key_pages, **held), dtype)
    bounds = jnp.asarray(reference_key_bounds(key_pages, **held), dtype)
    q = jnp.asarray(rng.normal(size=(batch_size, num_kv_heads * group, head_dim)), dtype)
    return Case(q, key_pages, value_pages, means, bounds, page_table, length_array, *scales)


def _poisoned(pools: np.ndarray, dtype: str) -> jax.Array:
    """Return the pools in a dtype of quantised pages; NaN becomes what is not to be read."""
    if dtype == "int8":
        return jnp.asarray(np.where(np.isnan(pools), -128, np.clip(np.round(pools), -127, 127)), dtype)
    return jnp.asarray(pools).astype(dtype)


def edge_lengths(page_len: int, max_pages: int) -> list[int]:
    """Nothing, one token, and the lengths around the edges of pages, in a batch of odd size."""
    edges = [k * page_len + shift for k in (1, 2, max_pages - 1) for shift in (-1, 0, 1)]
    return [0, 1, *edges, max_pages * page_len - 1, max_pages * page_len]


@partial(jax.jit, static_argnames=("batch_size", "layout", "max_pages", "min_len"))
def make_large_case(key: jax.Array, *, batch_size: int, layout: Layout, max_pages: int, min_len: int = 0) -> Case:
    """Make a cache on the device, of ragged lengths and with all pages of the pool in use; unused slots are NaN."""
    page_len, num_kv_heads, group, head_dim, dtype, page_dtype = layout
    keys = jax.random.split(key, 5)
    num_pages = batch_size * max_pages
    lengths = jax.random.randint(keys[0], (batch_size,), min_len, max_pages * page_len + 1)
    page_table = jax.random.permutation(keys[1], num_pages).reshape(batch_size, max_pages).astype(jnp.int32)
    first = page_len * jnp.arange(max_pages, dtype=jnp.int32)
    num_held = jnp.clip(lengths[:, None] - first[None, :], 0, page_len)
    num_held = jnp.zeros(num_pages, jnp.int32).at[page_table.ravel()].set(num_held.ravel())
    held = (jnp.arange(page_len, dtype=jnp.int32)[None, :] < num_held[:, None])[:, None, :]
    shape = (num_pages, num_kv_heads, page_len, head_dim)
    key_pages, value_pages = (
        jnp.where(held[..., None], jax.random.normal(pool_key, shape, dtype), jnp.array(jnp.nan, dtype))
        for pool_key in keys[2:4]
    )
    q = jax.random.normal(keys[4], (batch_size, num_kv_heads * group, head_dim), dtype)
    scales: tuple[jax.Array, ...] = ()
    entries = key_pages
    if page_dtype:
        (key_pages, key_scales), (value_pages, value_scales) = (
            quantise_pages(pool, page_dtype, scale_dtype=dtype) for pool in (key_pages, value_pages)
        )
        entries, scales = dequantise_pages(key_pages, key_scales).astype(dtype), (key_scales, value_scales)
    means = page_means(entries, held).astype(dtype)
    return Case(q, key_pages, value_pages, means, page_bounds(entries, held), page_table, lengths, *scales)
