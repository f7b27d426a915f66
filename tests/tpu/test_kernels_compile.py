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
KERNELS = (_mosaic_tpu_attend, _mosaic_tpu_score, _mosaic_tpu_select)


def arrays(chip: str, head_dim: int, page_len: int, dtype: str, group: int, num_kv_heads: int, batch_size: int):
    """Return the shapes of the arguments; pools are row-major, as XLA lays them out itself for head_dim 128."""
    device = topologies.get_topology_desc(platform="tpu", topology_name=chip).devices[0]
    sharding, max_pages = SingleDeviceSharding(device), CONTEXT_LEN // page_len

    def shape(*sizes: int, dtype: str = dtype) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=sharding)

    def pool(*sizes: int) -> jax.ShapeDtypeStruct:
        layout = Format(Layout(tuple(range(2 + len(sizes)))), sharding)
        return jax.ShapeDtypeStruct((batch_size * max_pages + 1, num_kv_heads, *sizes), dtype, sharding=layout)

    q = shape(batch_size, num_kv_heads * group, head_dim)
    table, lengths = shape(batch_size, max_pages, dtype="int32"), shape(batch_size, dtype="int32")
    return q, pool(page_len, head_dim), table, lengths, pool(head_dim), shape(batch_size, num_kv_heads, head_dim)


def compile_decodes(q, pages, table, lengths, means, probe) -> jax.stages.Compiled:
    """Compile block top-k and the dense decode, with a window for half of the page lengths, into one program."""
    scale, page_len = q.shape[2] ** -0.5, pages.shape[2]
    window_len, sink_len = (1_000, page_len + 1) if page_len in (16, 64) else (None, 0)

    def decodes(q, keys, values, table, lengths, means, probe):
        dense = _mosaic_tpu.paged_decode(
            q, keys, values, table, lengths, scale=scale, window_len=window_len, sink_len=sink_len
        )
        chosen = _mosaic_tpu.block_topk_decode(
            q,
            keys,
            values,
            probe.astype(jnp.float32),
            means,
            table,
            lengths,
            num_blocks=BUDGET_LEN // page_len,
            num_sink_blocks=1,
            num_local_blocks=1,
            scale=scale,
        )
        return dense, chosen

    return jax.jit(decodes).lower(q, pages, pages, table, lengths, means, probe).compile()


def largest_made(compiled: jax.stages.Compiled) -> int:
    """Return the elements of the largest array that the program makes: arguments are not made."""
    made = re.findall(r"= \S*?\[([\d,]+)\]\S* (?!parameter)\w[\w-]*\(", compiled.as_text() or "")
    return max(math.prod(int(size) for size in shape.split(",")) for shape in made)


@pytest.mark.parametrize(
    ("chip", "size"), [(chip, size) for i, chip in enumerate(CHIPS) for size in SIZES[i % 2 :: 2]], ids=str
)
def test_kernels_compile_and_copy_no_pool(monkeypatch, chip, size):
    # The estimates must be enough, to the last kilobyte but room for values out of registers.
    for kernel in KERNELS:
        monkeypatch.setattr(kernel, "vmem_limit", lambda num_bytes: num_bytes + 2**20)
    q, pages, *rest = arrays(chip, *size)
    compiled = compile_decodes(q, pages, *rest)
    text, memory = compiled.as_text() or "", compiled.memory_analysis()
    for name in ("attend_pages", "score_pages", "select_pages"):
        assert name in text
    # Page ids, scores and rows of queries: the means alone have more elements.
    assert largest_made(compiled) < rest[2].size / 4
    assert memory is not None
    assert memory.temp_size_in_bytes < 2**24


def test_vmem_estimate_is_no_more_than_what_is_needed(monkeypatch):
    q, pages, table, lengths, *_ = arrays("v5e:2x2", *SIZES[0])
    monkeypatch.setattr(_mosaic_tpu_attend, "vmem_limit", lambda num_bytes: num_bytes * 9 // 10)
    dense = jax.jit(partial(_mosaic_tpu.paged_decode, scale=1.0))
    with pytest.raises(jax.errors.JaxRuntimeError, match="memory space vmem"):
        dense.lower(q, pages, pages, table, lengths).compile()


def test_pool_of_head_dim_64_is_copied_unless_it_is_row_major():
    # What the module's docstring warns of. When XLA changes its choice, so should the docstring.
    q, pages, table, lengths, *_ = arrays("v6e:2x2", *SIZES[3])
    dense = jax.jit(partial(_mosaic_tpu.paged_decode, scale=1.0))
    by_default = jax.ShapeDtypeStruct(pages.shape, pages.dtype, sharding=q.sharding)
    assert largest_made(dense.lower(q, by_default, by_default, table, lengths).compile()) == pages.size
