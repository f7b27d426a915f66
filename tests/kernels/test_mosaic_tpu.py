"""What is the TPU kernels' own: their parts one by one, rings of small buffers, what they cannot run. Interpreted."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import BlockTopKResult, DecodeResult, _mosaic_tpu, _mosaic_tpu_sizes
from pallas_kernels._interpret import interpreted
from pallas_kernels._mosaic_tpu import Tuning, unsupported
from pallas_kernels._mosaic_tpu_scales import chunk_scales, pages_read
from pallas_kernels._mosaic_tpu_score import ScoreSpec, score_pages
from pallas_kernels._mosaic_tpu_select import SelectSpec, select_pages
from pallas_kernels._reference import (
    Reference,
    _choose,
    reference_paged_decode,
    reference_quest_decode,
)
from tests.kernels import contract
from tests.kernels.cases import Layout, make_case


def shape(*sizes: int, dtype: str = "bfloat16") -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype)


def check(got: DecodeResult | BlockTopKResult, wanted: Reference, dtype: str) -> None:
    assert got.out.dtype == dtype
    contract.assert_close(got.out, wanted.out, contract.TOLERANCE[dtype], "out")
    contract.assert_close(got.lse, wanted.lse, contract.LSE_TOLERANCE[dtype], "lse")


@pytest.mark.parametrize(
    ("num_held", "num_blocks", "num_sinks", "num_local"),
    [
        ([0, 127, 128, 129, 150, 151, 256, 257], 150, 1, 2),  # more than the 128 lanes of a tile
        ([1, 2, 3, 4, 100, 120, 127, 128], 3, 0, 0),
    ],
)
def test_selection_equals_the_oracle(rng, num_held, num_blocks, num_sinks, num_local):
    num_held = np.array(num_held)
    scores = rng.normal(size=(8, 1024)).astype(np.float32) * 10.0 ** rng.integers(-30, 30, (8, 1024))
    # Half of the rows are full of ties, zeros of both signs and the ends of the number line among them.
    ties = rng.choice([-np.inf, -1.0, -0.0, 0.0, 1.0, np.inf], (4, 1024), p=[0.01, 0.3, 0.3, 0.3, 0.08, 0.01])
    scores[::2] = ties
    scores = np.where(np.arange(1024) < num_held[:, None], scores, np.nan).astype(np.float32)
    spec = SelectSpec(
        num_blocks=num_blocks, num_sink_blocks=num_sinks, num_local_blocks=num_local, num_rows=8, fill=1024
    )
    with interpreted():
        selected = jax.jit(lambda scores, held: select_pages(scores, held, spec))(
            jnp.asarray(scores), jnp.asarray(num_held, "int32")
        )
    wanted = [_choose(row[:held], num_blocks, num_sinks, num_local) for row, held in zip(scores, num_held, strict=True)]
    assert selected.tolist() == [pages + [1024] * (num_blocks - len(pages)) for pages in wanted]


def test_scores_follow_runs_and_scattered_pages(rng):
    num_held = np.array([140, 0, 17])
    table = rng.integers(0, 500, (3, 256))
    table[0, 32:48] = np.arange(200, 216)  # one copy
    table[0, 64:80] = np.arange(400, 416)[::-1]  # no run: it descends
    table[0, 128:144] = np.arange(16)  # held up to 140: page by page
    table[2, :16] = np.arange(484, 500)  # the end of the pool
    summaries = rng.normal(size=(500, 3, 256)).astype(np.float32)
    table[:, :128][np.isin(table[:, :128], [13, 14, 15])] = 12
    summaries[13:16] = np.nan  # not held
    probe = rng.normal(size=(3, 3, 256)).astype(np.float32)
    with interpreted():
        scores = jax.jit(partial(score_pages, spec=ScoreSpec(run_len=16, num_buffers=2)))(
            jnp.asarray(probe), jnp.asarray(summaries), jnp.asarray(table, "int32"), jnp.asarray(num_held, "int32")
        )
    wanted = np.einsum("BKC,BMKC->BKM", probe.astype(np.float64), summaries[table].astype(np.float64))
    held = (np.arange(256) < num_held[:, None])[:, None] & np.ones((1, 3, 1), bool)
    np.testing.assert_allclose(np.asarray(scores)[held], wanted[held], rtol=0, atol=1e-4)


# Rows of one head of two; chunks that do not divide the table; rings that turn round within a row and pass over empty
# rows: at the start, in between, at the end.
def test_dense_rings_of_small_buffers(monkeypatch):
    monkeypatch.setattr(_mosaic_tpu_sizes, "_MAX_HEADS_PER_ROW", 1)
    case = make_case([0, 4 * 64 + 1, 0, 2 * 64, 0], Layout(64, 2, 5, 64, "float32"), max_pages=5)
    window = {"window_len": 150, "sink_len": 65}
    tuning = Tuning(pages_per_buffer=2, num_buffers=3)
    got = contract.run("paged_decode", "mosaic_tpu", case, tuning=tuning, **window)
    check(got, reference_paged_decode(*case.arguments("paged_decode"), **window), "float32")


def test_selected_pages_in_small_buffers():
    case = make_case([0, 5 * 64 - 1, 1, 4 * 64], Layout(64, 1, 8, 128, "bfloat16"), max_pages=5)
    counts = {"num_blocks": 3, "num_sink_blocks": 1, "num_local_blocks": 0}
    tuning = Tuning(pages_per_buffer=2, num_buffers=2, score_buffers=2, run_len=4, select_rows=8)
    got = contract.run("quest_decode", "mosaic_tpu", case, tuning=tuning, **counts)
    wanted = reference_quest_decode(*case.arguments("quest_decode"), **counts)
    assert [[[m for m in pages if m < 5] for pages in heads] for heads in got.selected.tolist()] == wanted.read
    check(got, wanted, "bfloat16")


# Two heads a row, each with scales of its own; pages passed over; a chunk of which the last page is not there. NaN lies
# in whatever no sequence holds, of scales and of pages.
def test_quantised_rings_of_small_buffers():
    case = make_case([0, 5 * 32 - 3, 0, 33], Layout(32, 2, 3, 64, "float32", "float8_e4m3fn"), max_pages=5)
    window = {"window_len": 70, "sink_len": 5}
    tuning = Tuning(pages_per_buffer=2, num_buffers=2)
    got = contract.run("paged_decode", "mosaic_tpu", case, tuning=tuning, **window)
    check(got, reference_paged_decode(*case.arguments("paged_decode"), **case.scales, **window), "float32")


def test_scales_lie_by_chunk_as_pages_are_read(rng):
    pools = rng.normal(size=(2, 20, 4, 8)).astype("float32")
    table = rng.permutation(20)[:14].reshape(2, 7).astype("int32")
    ranges = np.array([[7, 0, 0, 0], [4, 3, 0, 0]], "int32")  # the second sequence passes over three pages
    selected = np.array([[[0, 3, 6]] * 3 + [[1, 2, 7]], [[2, 7, 7]] * 4], "int32")  # 7: no page
    in_order = np.array([[[0, 1, 2, 3, 4]], [[0, 4, 5, 6, 6]]])

    @partial(jax.jit, static_argnames="heads")
    def gather(pools, table, selected, ranges, heads):
        return chunk_scales(tuple(pools), pages_read(table, selected, ranges, 1, 5), heads, 2)  # chunks of two pages

    for listed, wanted, heads in ((selected, selected, 1), (None, in_order, 2)):
        chunks = np.asarray(gather(pools, table, listed, ranges, heads=heads))
        assert chunks.shape == (8 // heads, -(-wanted.shape[2] // 2), 2 * heads, 16)
        wanted = np.broadcast_to(wanted, (2, 4, wanted.shape[2]))
        for (b, k, j), page in np.ndenumerate(wanted):
            row, head = divmod(4 * b + k, heads)
            got = chunks[row, j // 2, [head, heads + head]].reshape(2, 2, 8)[:, j % 2]
            if page < 7:
                np.testing.assert_array_equal(got, pools[:, table[b, page], k])


def test_page_ids_that_do_not_fit_are_run_in_parts(monkeypatch):
    sizes = []

    def run(left: jax.Array, right: jax.Array) -> tuple[jax.Array, jax.Array]:
        sizes.append(len(left))
        return left + 1, right[:, 0]

    monkeypatch.setattr(_mosaic_tpu, "SMEM_LIMIT_BYTES", 1000)
    left, right = jnp.arange(7), jnp.arange(14).reshape(7, 2)
    got = _mosaic_tpu._by_batch(run, (left, right), 333)
    assert sizes == [3, 3, 1]
    np.testing.assert_array_equal(got[0], left + 1)
    np.testing.assert_array_equal(got[1], right[:, 0])


def reason(*arrays: jax.ShapeDtypeStruct, summaries: jax.ShapeDtypeStruct | None = None, **options: int) -> str | None:
    reasons = []
    jax.eval_shape(
        lambda arrays, summaries: reasons.append(unsupported(*arrays, summaries=summaries, **options)),
        arrays,
        summaries,
    )
    return reasons[0]


def test_unsupported_says_why():
    good = shape(4, 16, 128), shape(99, 4, 16, 128), shape(4, 1024, dtype="int32")
    assert reason(*good) is None
    assert reason(*good, summaries=shape(99, 4, 256), num_blocks=64) is None
    assert reason(*good, window_len=100, sink_len=4) is None
    q, pages, table = good
    for dtype, page_len in itertools.product(("int8", "float8_e4m3fn"), (16, 32, 64, 128)):
        assert reason(q, shape(99, 4, page_len, 128, dtype=dtype), table) is None
    cases = {
        "head_dim must be one of": (shape(4, 16, 96), shape(99, 4, 16, 96), table),
        "page_len must be one of": (q, shape(99, 4, 48, 128), table),
        "must be bfloat16 or float32; got float16": (shape(4, 16, 128, dtype="float16"), pages, table),
        "must be bfloat16, float32, int8, float8_e4m3fn; got float16": (
            q,
            shape(99, 4, 16, 128, dtype="float16"),
            table,
        ),
        "query heads may share": (shape(4, 68, 128), pages, table),
        "must fit the scalar memory": (q, pages, shape(4, 2**18, dtype="int32")),
    }
    for words, arrays in cases.items():
        assert words in str(reason(*arrays))
        assert str(reason(*arrays)).endswith("Use 'xla', or None to choose")
    many_heads = shape(4, 1024, 128), shape(99, 1024, 16, 128), table
    assert "of VMEM; got" in str(reason(*many_heads, summaries=shape(99, 1024, 256), num_blocks=64))


def test_bad_tuning():
    for bad in ({"num_buffers": 1}, {"score_buffers": 0}, {"pages_per_buffer": 0}, {"run_len": 3}, {"select_rows": 12}):
        with pytest.raises(ValueError, match="got"):
            Tuning(**bad)
