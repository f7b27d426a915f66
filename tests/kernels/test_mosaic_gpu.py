"""The Mosaic GPU implementation where no GPU is: interpreted step by step, lowered for CUDA, and its plan.

The contract suite runs the same on a GPU: `python -m pytest tests/kernels --kernel-implementation mosaic_gpu`.
"""

import types
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import _mosaic_gpu
from pallas_kernels._mosaic_gpu_work import Work, rows_of_groups
from pallas_kernels._reference import reference_block_topk_decode
from tests.kernels import contract
from tests.kernels.cases import Layout, make_case

needs_mosaic = pytest.mark.skipif(jax.__version_info__ < (0, 11), reason="Mosaic GPU kernels need jax >= 0.11")

WORK = Work(
    batch_size=64,
    num_kv_heads=8,
    group=4,
    head_dim=128,
    page_len=16,
    max_pages=1024,
    num_blocks=64,
    num_sinks=0,
    num_local=1,
    num_splits=1,
    num_stages=4,
    num_ctas=132,
)


@needs_mosaic
@pytest.mark.parametrize(
    ("layout", "counts", "tuning"),
    [
        # Two KV heads share a tile of queries; every block takes several items, of two parts a row.
        (Layout(16, 2, 4, 64, "bfloat16"), {"num_blocks": 3, "num_sink_blocks": 1}, {"num_splits": 2, "num_ctas": 3}),
        (Layout(64, 8, 3, 64, "bfloat16"), {"num_blocks": 2, "num_local_blocks": 0}, {"num_stages": 2}),
        # The same with tiles of 128 tokens, widened.
        (
            Layout(16, 2, 4, 64, "bfloat16", "float8_e4m3fn"),
            {"num_blocks": 3, "num_sink_blocks": 1},
            {"num_splits": 2, "num_ctas": 3},
        ),
        # One block takes all items, whose masks and tables share few slots.
        (Layout(16, 2, 4, 64, "bfloat16", "int8"), {"num_blocks": 3}, {"num_splits": 1, "num_ctas": 1}),
        (Layout(64, 1, 3, 128, "bfloat16", "int8"), {"num_blocks": 3, "num_local_blocks": 0}, {"num_stages": 2}),
    ],
)
def test_decodes_equal_the_oracle_however_tuned(layout, counts, tuning):
    case = make_case([0, layout.page_len + 1, 5 * layout.page_len], layout, max_pages=5)
    got = contract.run("block_topk_decode", "mosaic_gpu", case, **counts, tuning=_mosaic_gpu.Tuning(**tuning))
    wanted = reference_block_topk_decode(*case.arguments("block_topk_decode"), **case.scales, **counts)
    assert contract._as_lists(got.selected, case.max_pages) == wanted.read
    contract.assert_close(got.out, wanted.out, contract.TOLERANCE["bfloat16"], "out")
    contract.assert_close(got.lse, wanted.lse, contract.LSE_TOLERANCE["bfloat16"], "lse")


@needs_mosaic
@pytest.mark.parametrize(
    ("num_kv_heads", "group", "head_dim", "page_len", "max_pages", "dtypes"),
    [
        (8, 5, 128, 128, 64, ("bfloat16", None)),
        (1, 8, 64, 16, 4096, ("bfloat16", None)),
        (2, 1, 64, 32, 64, ("bfloat16", None)),
        (4, 4, 128, 64, 200, ("bfloat16", None)),
        (8, 4, 128, 16, 64, ("int8", "bfloat16")),
        (2, 8, 64, 8, 64, ("float8_e4m3fn", "bfloat16")),
        (4, 1, 128, 128, 64, ("float8_e4m3fn", "float32")),
    ],
)
def test_lowers_for_cuda(num_kv_heads, group, head_dim, page_len, max_pages, dtypes):
    """Mosaic decides on layouts, tilings and registers when it lowers, which needs no GPU."""

    def shape(*sizes, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(sizes, dtype)

    pages = shape(9, num_kv_heads, page_len, head_dim, dtype=dtypes[0])
    scales = {name: shape(*pages.shape[:3], dtype=dtypes[1]) for name in ("key_scales", "value_scales") if dtypes[1]}
    q, summaries = shape(3, num_kv_heads * group, head_dim), shape(9, num_kv_heads, head_dim)
    table, lengths = shape(3, max_pages, dtype=jnp.int32), shape(3, dtype=jnp.int32)

    def decode(q, pages, summaries, table, lengths, scales):
        probe = jnp.zeros((3, num_kv_heads, head_dim))
        counts: Any = {"num_blocks": 8, "num_sink_blocks": 1, "num_local_blocks": 1}
        arrays = (q, pages, pages, probe, summaries, table, lengths)
        return _mosaic_gpu.block_topk_decode(*arrays, scale=0.1, **counts, **scales)

    lowered = jax.jit(decode).trace(q, pages, summaries, table, lengths, scales).lower(lowering_platforms=("cuda",))
    # Rows of less than a warpgroup's 128 lanes are scored by XLA.
    num_kernels = 1 if num_kv_heads * head_dim < 128 else 2
    assert lowered.as_text().count("stablehlo.custom_call @mosaic_gpu") == num_kernels


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"dtype": "float32"}, r"runs bfloat16 or quantised pages and bfloat16 q; got float32, float32"),
        ({"dtype": "float32", "page_dtype": "int8"}, r"runs bfloat16 or .* and bfloat16 q; got int8, float32"),
        ({"page_dtype": "float8_e5m2"}, r"runs bfloat16 or .* and bfloat16 q; got float8_e5m2, bfloat16"),
        ({"head_dim": 96}, r"runs head_dim 64 or 128; got 96"),
        ({"page_len": 4}, r"runs pages of 8, 16, 32, 64 or 128 tokens; got 4"),
        ({"group": 16}, r"runs at most 8 query heads for each KV head; got 16"),
    ],
)
def test_what_it_does_not_run_is_said_by_name(changed, what, monkeypatch):
    monkeypatch.setattr(jax, "__version_info__", (0, 11, 0))
    layout = Layout(16, 2, 4, 64, "bfloat16")
    assert _mosaic_gpu.unsupported(*_arrays(layout)) is None
    assert _mosaic_gpu.unsupported(*_arrays(layout._replace(page_dtype="int8"))) is None
    assert _mosaic_gpu.unsupported(*_arrays(layout), window_len=3) is not None
    with pytest.raises(AssertionError, match=what):
        assert _mosaic_gpu.unsupported(*_arrays(layout._replace(**changed))) is None


@pytest.mark.parametrize(("capability", "runs"), [("8.9", False), ("9.0", True), ("10.0", False), ("12.0", False)])
def test_only_hopper_has_its_products(monkeypatch, capability, runs):
    arrays = _arrays(Layout(16, 8, 4, 128, "bfloat16"))
    device = types.SimpleNamespace(platform="gpu", compute_capability=capability)
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    monkeypatch.setattr(jax, "__version_info__", (0, 11, 0))
    why = _mosaic_gpu.unsupported(*arrays)
    assert why is None if runs else f"on Hopper, capability 9.0; got {capability}" in str(why)


def _arrays(layout: Layout) -> tuple[jax.Array, jax.Array, jax.Array]:
    sizes = (1, layout.num_kv_heads, layout.page_len, layout.head_dim)
    pages = jnp.zeros(sizes, layout.page_dtype or layout.dtype)
    q = jnp.zeros((1, layout.num_kv_heads * layout.group, layout.head_dim), layout.dtype)
    return q, pages, jnp.zeros((1, 4), jnp.int32)


def test_tiles_of_either_kind_have_the_same_bytes():
    """128 tokens of 8 bits, 64 of 16; beside them a scale for each vector."""
    quantised = WORK.replace(entry_bytes=1, scale_bytes=2)
    assert (WORK.tile_len, quantised.tile_len) == (64, 128)
    assert (WORK.pages_per_tile, quantised.pages_per_tile) == (4, 8)
    assert (WORK.stage_bytes, quantised.stage_bytes) == (2 * 64 * 256, 2 * 128 * 130)
    assert (WORK.copies_per_tile, quantised.copies_per_tile) == (4, 16)
    for work in (WORK, quantised, quantised.replace(page_len=128, num_splits=2)):
        assert work.fixed_bytes + 3 * work.stage_bytes <= _mosaic_gpu._SHARED_BYTES


def test_rows_are_cut_where_blocks_would_idle():
    assert _mosaic_gpu._best_splits(WORK) == 1  # 512 rows for 132 blocks
    few = WORK.replace(batch_size=1, num_blocks=1024)  # 8 rows
    assert _mosaic_gpu._best_splits(few) >= 12
    assert _mosaic_gpu._best_splits(WORK.replace(batch_size=1, num_blocks=4)) == 1  # one tile cannot be cut


def test_log_sum_exps_come_from_the_rows_of_their_group():
    """Two groups of 4 share 8 rows: the second KV head's log-sum-exps lie in rows 4 to 7."""
    lse = jnp.broadcast_to(jnp.arange(64.0), (1, 1, 8, 64))
    assert rows_of_groups(WORK.replace(batch_size=1), lse).tolist() == [[[*range(8)] * 4]]
    padded = WORK.replace(batch_size=1, group=5)
    assert rows_of_groups(padded, lse).tolist() == [[[*range(5)] * 8]]
