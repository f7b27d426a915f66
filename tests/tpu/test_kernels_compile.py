"""The TPU kernels at real sizes for chips that need not be there: they compile, fit VMEM, and copy no pool."""

import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies
from jax.experimental.layout import Format, Layout
from jax.sharding import SingleDeviceSharding

from pallas_kernels import _mosaic_tpu, _mosaic_tpu_attend, _mosaic_tpu_score, _mosaic_tpu_select

CONTEXT_LEN, BUDGET_LEN = 32_768, 1_024
CHIPS = ["v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1"]
# head_dim, page_len, dtype, group, KV heads, sequences. Every value of each, and every pair of page and head_dim; the
# chips take them in turns, half of them each.
SIZES = [
    (128, 16, "bfloat16", 4, 8, 64),
    (64, 16, "float32", 8, 1, 32),
    (128, 32, "float32", 1, 4, 16),
    (64, 32, "bfloat16", 5, 8, 17),
    (128, 64, "bfloat16", 8, 4, 64),
    (64, 64, "float32", 4, 2, 8),
    (128, 128, "float32", 5, 8, 8),
    (64, 128, "bfloat16", 1, 16, 16),
]
# The same of quantised pages, whose scales have the dtype of the queries: each on one chip, and one decode of it.
QUANTISED_SIZES = [
    (128, 16, "bfloat16", 4, 8, 64, "int8"),
    (64, 32, "bfloat16", 5, 8, 17, "int8"),
    (128, 64, "float32", 8, 4, 32, "int8"),
    (64, 128, "bfloat16", 1, 16, 16, "int8"),
    (64, 64, "float32", 4, 2, 8, "float8_e4m3fn"),
    (128, 128, "bfloat16", 5, 8, 8, "float8_e4m3fn"),
    (64, 16, "bfloat16", 8, 1, 32, "float8_e4m3fn"),
    (128, 32, "bfloat16", 4, 8, 64, "float8_e4m3fn"),
]
KERNELS = (_mosaic_tpu_attend, _mosaic_tpu_score, _mosaic_tpu_select)


def arrays(
    chip: str,
    head_dim: int,
    page_len: int,
    dtype: str,
    group: int,
    num_kv_heads: int,
    batch_size: int,
    page_dtype: str | None = None,
) -> tuple[tuple[jax.ShapeDtypeStruct, ...], dict[str, jax.ShapeDtypeStruct], tuple[jax.ShapeDtypeStruct, ...]]:
    """Return the shapes of a dense decode's arguments, of the scales, and of means and probe.

    Pools are row-major, as XLA lays them out itself for head_dim 128; scales only for pages of 128.
    """
    device = topologies.get_topology_desc(platform="tpu", topology_name=chip).devices[0]
    sharding, max_pages = SingleDeviceSharding(device), CONTEXT_LEN // page_len

    def shape(*sizes: int, dtype: str = dtype) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=sharding)

    def pool(*sizes: int, dtype: str = dtype) -> jax.ShapeDtypeStruct:
        layout = Format(Layout(tuple(range(2 + len(sizes)))), sharding)
        return jax.ShapeDtypeStruct((batch_size * max_pages + 1, num_kv_heads, *sizes), dtype, sharding=layout)

    q, pages = shape(batch_size, num_kv_heads * group, head_dim), pool(page_len, head_dim, dtype=page_dtype or dtype)
    dense = q, pages, pages, shape(batch_size, max_pages, dtype="int32"), shape(batch_size, dtype="int32")
    names = ("key_scales", "value_scales") if page_dtype else ()
    return dense, {name: pool(page_len) for name in names}, (pool(head_dim), shape(batch_size, num_kv_heads, head_dim))


def compile_decodes(dense, scales, means_and_probe, decodes=("dense", "chosen")) -> jax.stages.Compiled:
    """Compile the dense decode, with a window for half of the page lengths, and block top-k into one program."""
    scale, page_len = dense[0].shape[2] ** -0.5, dense[1].shape[2]
    window_len, sink_len = (1_000, page_len + 1) if page_len in (16, 64) else (None, 0)

    def decode(dense, scales, means, probe):
        q, keys, values, table, lengths = dense
        options, results = {"scale": scale, **scales}, []
        if "dense" in decodes:
            results.append(_mosaic_tpu.paged_decode(*dense, window_len=window_len, sink_len=sink_len, **options))
        if "chosen" in decodes:
            counts = {"num_blocks": BUDGET_LEN // page_len, "num_sink_blocks": 1, "num_local_blocks": 1}
            arrays = q, keys, values, probe.astype(jnp.float32), means, table, lengths
            results.append(_mosaic_tpu.block_topk_decode(*arrays, **counts, **options))
        return results

    return jax.jit(decode).lower(dense, scales, *means_and_probe).compile()


def largest_made(compiled: jax.stages.Compiled) -> int:
    """Return the elements of the largest array that the program makes: arguments are not made."""
    made = re.findall(r"= \S*?\[([\d,]+)\]\S* (?!parameter)\w[\w-]*\(", compiled.as_text() or "")
    return max(math.prod(int(size) for size in shape.split(",")) for shape in made)


@pytest.mark.parametrize(
    ("chip", "size"),
    [(chip, size) for i, chip in enumerate(CHIPS) for size in SIZES[i % 2 :: 2] + QUANTISED_SIZES[i::4]],
    ids=str,
)
def test_kernels_compile_and_copy_no_pool(monkeypatch, chip, size):
    # The estimates must be enough, to the last kilobyte but room for values out of registers.
    for kernel in KERNELS:
        monkeypatch.setattr(kernel, "vmem_limit", lambda num_bytes: num_bytes + 2**20)
    dense, scales, means_and_probe = arrays(chip, *size)
    # With the window that half of the page lengths have: without one, all scales that there are would be gathered.
    only_dense = bool(scales) and dense[1].shape[2] in (16, 64)
    decodes = ("dense", "chosen") if not scales else ("dense",) if only_dense else ("chosen",)
    compiled = compile_decodes(dense, scales, means_and_probe, decodes)
    text, memory = compiled.as_text() or "", compiled.memory_analysis()
    for name in ("attend_pages", "score_pages", "select_pages")[: 1 if only_dense else 3]:
        assert name in text
    # Page ids, scores, queries and scales of what is read: of means, and of scales, there are more.
    assert largest_made(compiled) < min(pool.size for pool in (means_and_probe[0], *scales.values())) / 4
    assert memory is not None
    assert memory.temp_size_in_bytes < 2 ** (25 if scales else 24)


@pytest.mark.parametrize("size", [SIZES[0], QUANTISED_SIZES[0]], ids=str)
def test_vmem_estimate_is_no_more_than_what_is_needed(monkeypatch, size):
    dense, scales, _ = arrays("v5e:2x2", *size)
    monkeypatch.setattr(_mosaic_tpu_attend, "vmem_limit", lambda num_bytes: num_bytes * 9 // 10)
    decode = jax.jit(partial(_mosaic_tpu.paged_decode, scale=1.0))
    with pytest.raises(jax.errors.JaxRuntimeError, match="memory space vmem"):
        decode.lower(*dense, **scales).compile()


def test_pools_are_copied_unless_they_are_row_major():
    # What the module's docstring warns of. When XLA changes its choice, so should the docstring.
    (q, pages, _, *rest), _, _ = arrays("v6e:2x2", *SIZES[3])
    decode = jax.jit(partial(_mosaic_tpu.paged_decode, scale=1.0))
    by_default = jax.ShapeDtypeStruct(pages.shape, pages.dtype, sharding=q.sharding)
    assert largest_made(decode.lower(q, by_default, by_default, *rest).compile()) == pages.size

    # Of few sequences: out of a larger pool XLA gathers from the lanes.
    dense, scales, means_and_probe = arrays("v6e:2x2", 128, 16, "bfloat16", 4, 8, 8, "int8")
    shape, dtype = scales["key_scales"].shape, scales["key_scales"].dtype
    scales = dict.fromkeys(scales, jax.ShapeDtypeStruct(shape, dtype, sharding=dense[0].sharding))
    assert largest_made(compile_decodes(dense, scales, means_and_probe, ("chosen",))) == math.prod(shape)
