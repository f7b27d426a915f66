"""What is the Triton kernels' own: scores and selection by themselves, odd sizes, lowering for a GPU.

Interpreted where there is no GPU, as is the contract: `python -m pytest tests/kernels --kernel-implementation triton`.
"""

import types
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import _dispatch, _triton
from pallas_kernels._reference import _choose, reference_paged_decode
from pallas_kernels._triton import Tuning, unsupported
from pallas_kernels._triton_launch import float8_times_2_to_minus_8
from pallas_kernels._triton_select import score_pages, select_pages
from tests.kernels import contract
from tests.kernels.cases import Layout, make_case


def shape(*sizes: int, dtype: str = "bfloat16") -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype)


def test_selection_equals_the_oracle(rng):
    page_len, max_pages, num_blocks, num_sinks, num_local = 24, 200, 150, 1, 2
    lengths = np.array([[0, 1, 24, 25], [150 * 24, 150 * 24 + 1, 200 * 24 - 1, 200 * 24]]).T.ravel()
    num_held = -(-lengths // page_len)
    scores = rng.normal(size=(8, 2, max_pages)).astype(np.float32) * 10.0 ** rng.integers(-30, 30, (8, 2, max_pages))
    # Half of the rows are full of ties, zeros of both signs and the ends of the number line among them.
    ties = [-np.inf, -1.0, -0.0, 0.0, 1.0, np.inf]
    scores[:, 0] = rng.choice(ties, (8, max_pages), p=[0.01, 0.3, 0.3, 0.3, 0.08, 0.01])
    held = np.arange(max_pages) < num_held[:, None]
    table = np.where(held, rng.integers(0, 1000, held.shape), -7)
    counts = {"num_blocks": num_blocks, "num_sink_blocks": num_sinks, "num_local_blocks": num_local}
    with contract.mode("triton"):
        selected, page_ids, num_tokens = jax.jit(partial(select_pages, page_len=page_len, **counts))(
            jnp.asarray(np.where(held[:, None], scores, np.nan), "float32"),
            jnp.asarray(table, "int32"),
            jnp.asarray(lengths, "int32"),
        )
    for b, k in np.ndindex(8, 2):
        wanted = _choose(scores[b, k, : num_held[b]], num_blocks, num_sinks, num_local)
        assert selected[b, k].tolist() == wanted + [max_pages] * (num_blocks - len(wanted))
        assert page_ids[b, k, : len(wanted)].tolist() == table[b, wanted].tolist()
        assert num_tokens[b, k] == sum(min(page_len, lengths[b] - m * page_len) for m in wanted)


def test_scores_read_held_pages_only(rng):
    num_held = np.array([70, 0, 33])
    held = np.arange(70) < num_held[:, None]
    table = np.where(held, rng.integers(0, 40, held.shape), rng.choice([-7, 10**6, 40], held.shape))
    summaries = rng.normal(size=(41, 3, 256)).astype(np.float32)
    summaries[40] = np.nan
    probe = rng.normal(size=(3, 3, 256)).astype(np.float32)
    arrays = jnp.asarray(probe), jnp.asarray(summaries), jnp.asarray(table, "int32"), jnp.asarray(num_held, "int32")
    with contract.mode("triton"):
        scores = jax.jit(partial(score_pages, page_len=1))(*arrays)
    wanted = np.einsum("BKC,BMKC->BKM", probe.astype(np.float64), summaries[np.where(held, table, 0)])
    held = np.broadcast_to(held[:, None], wanted.shape)
    np.testing.assert_allclose(np.asarray(scores)[held], wanted[held], rtol=0, atol=1e-4)


def test_block_topk_equals_the_oracle():
    case = make_case([0, 17, 5 * 16 - 1, 5 * 16], Layout(16, 2, 5, 64, "bfloat16"), max_pages=5)
    contract.check_block_topk("triton", case, num_blocks=3, num_sink_blocks=1, num_local_blocks=0)


def test_bits_of_float8_are_taken_apart_exactly():
    codes = np.arange(256, dtype=np.uint8)
    got = np.asarray(jax.jit(float8_times_2_to_minus_8)(jnp.asarray(codes.view(np.int8))), "float32") * 2.0**8
    wanted = codes.view(jnp.float8_e4m3fn).astype("float32")
    np.testing.assert_array_equal(got, np.where(np.isnan(wanted), np.copysign(480, wanted), wanted))


def test_quantised_pages_equal_the_oracle():
    # Three steps of 16 tokens, of which pages of 24 hold one and a half.
    layout = Layout(24, 2, 3, 64, "bfloat16", "float8_e4m3fn")
    case = make_case([0, 1, 2 * 24 - 1], layout, max_pages=2)
    got = contract.run("paged_decode", "triton", case, tuning=Tuning(num_splits=1, tokens_per_step=16))
    wanted = reference_paged_decode(*case.arguments("paged_decode"), **case.scales)
    contract.assert_close(got.out, wanted.out, contract.TOLERANCE["bfloat16"], "out")
    contract.assert_close(got.lse, wanted.lse, contract.LSE_TOLERANCE["bfloat16"], "lse")


def test_windows_in_parts_equal_the_oracle():
    # The widest group, padded to nothing; pages that are no power of two, and cut by steps.
    layout = Layout(24, 2, 16, 64, "float32")
    page_len = layout.page_len
    case = make_case([0, 1, 2 * page_len, 4 * page_len - 1, 4 * page_len + 5], layout, max_pages=5)
    window = {"window_len": 2 * page_len - 3, "sink_len": 19}
    tuning = Tuning(num_splits=3, tokens_per_step=16)
    got = contract.run("paged_decode", "triton", case, tuning=tuning, **window)
    wanted = reference_paged_decode(*case.arguments("paged_decode"), **window)
    contract.assert_close(got.out, wanted.out, contract.TOLERANCE["float32"], "out")
    contract.assert_close(got.lse, wanted.lse, contract.LSE_TOLERANCE["float32"], "lse")


@pytest.mark.parametrize(
    ("dtype", "page_dtype", "page_len", "group"),
    [("float16", None, 128, 16), ("float32", "int8", 48, 5), ("bfloat16", "float8_e4m3fn", 16, 4)],
)
def test_lowers_for_a_gpu(dtype, page_dtype, page_len, group):
    """JAX accepts every operation of the kernels, and its warning of the backend's end raises no error."""
    head_dim, max_pages = 128, 1000
    pages = shape(900, 2, page_len, head_dim, dtype=page_dtype or dtype)
    scales = dict.fromkeys(("key_scales", "value_scales"), shape(900, 2, page_len)) if page_dtype else {}
    table, lengths = shape(3, max_pages, dtype="int32"), shape(3, dtype="int32")
    q, probe = shape(3, 2 * group, head_dim, dtype=dtype), shape(3, 2, 2 * head_dim, dtype="float32")
    arrays = q, pages, pages, probe, shape(900, 2, 2 * head_dim, dtype=dtype), table, lengths
    counts = {"num_blocks": 64, "num_sink_blocks": 1, "num_local_blocks": 1}
    decodes = {
        ("_score_kernel", "_select_kernel", "_attend_kernel"): (_triton.block_topk_decode, arrays, counts),
        ("_attend_kernel",): (_triton.paged_decode, (*arrays[:3], table, lengths), {"window_len": 99, "sink_len": 3}),
    }
    for kernels, (decode, shapes, options) in decodes.items():
        assert_lowers(partial(decode, scale=0.1, **options), shapes, kernels, **scales)


@pytest.mark.parametrize(("dtype", "page_len", "group"), [("float32", 128, 5), ("bfloat16", 16, 2)])
def test_appends_lower_for_a_gpu(dtype, page_len, group):
    pages, table, lengths = (
        shape(900, 2, page_len, 128, dtype=dtype),
        shape(3, 99, dtype="int32"),
        shape(3, dtype="int32"),
    )
    held = pages, pages, shape(900, 2, 128, dtype=dtype), table, lengths
    q, keys = (shape(3, heads, 128, dtype=dtype) for heads in (2 * group, 2))
    angles = (shape(3, 64, dtype="float32"),) * 2
    assert_lowers(_triton.append_kv, (*held, keys, keys), ("_append_kernel",))
    for norms in ((), (shape(128, dtype=dtype),) * 2):
        arrays = *held, q, keys, keys, *angles, *norms
        assert_lowers(partial(_triton.rotate_and_append_kv, epsilon=1e-6), arrays, ("_rotate_and_append_kernel",))


def assert_lowers(
    function: Callable[..., Any],
    arrays: tuple[jax.ShapeDtypeStruct, ...],
    kernels: tuple[str, ...],
    **named: jax.ShapeDtypeStruct,
) -> None:
    """Lower a function for a GPU, and count its kernels."""
    device = jax.sharding.AbstractDevice(device_kind="NVIDIA A100", num_cores=None, platform="gpu")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1,), ("x",), abstract_device=device)):
        program = jax.jit(function).trace(*arrays, **named).lower(lowering_platforms=("cuda",)).as_text()
    assert program.count("stablehlo.custom_call @") == len(kernels)
    assert all(f"triton{name}" in program for name in kernels)


def test_work_is_cut_where_rows_are_few_or_a_last_round_would_be():
    one_round = _triton._programs_at_once()
    assert _triton._num_splits(64 * 8, 16) <= 4
    assert _triton._num_splits(8, 1024) * 8 >= one_round
    assert _triton._num_splits(8, 3) == 1  # too short to be worth it
    assert _triton._num_splits(one_round, 64) == 1
    assert _triton._num_splits(one_round + 1, 64) > 1
    assert _triton._num_splits(one_round + 1, 3) == 1
    assert _triton._num_splits(one_round + one_round // 2, 64) == 1  # half a round is as fast as its bytes
    assert _triton._tokens_per_step(128, jnp.dtype("bfloat16")) == 64


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
    cases = {
        "head_dim 64 or 128; got 96": (shape(4, 16, 96), shape(99, 4, 16, 96), table),
        "pages of bfloat16, float16, float32, int8, float8_e4m3fn; got float8_e5m2": (
            q,
            shape(99, 4, 16, 128, dtype="float8_e5m2"),
            table,
        ),
        "8-bit pools of up to 2 GiB, or of more than 4; got 2684354560 entries": (
            q,
            shape(5 * 2**16, 4, 16, 128, dtype="int8"),
            table,
        ),
        "at most 16 query heads for each KV head; got 17": (shape(4, 68, 128), pages, table),
    }
    for words, arrays in cases.items():
        assert f"'triton' runs {words}. Use 'xla', or None to choose" in str(reason(*arrays))
    for num_pages in (4 * 2**16, 9 * 2**16):
        assert reason(q, shape(num_pages, 4, 16, 128, dtype="int8"), table) is None
    assert reason(q, shape(5 * 2**16, 4, 16, 128), table) is None
    long = shape(4, 2**16, dtype="int32")
    assert reason(q, pages, long) is None
    assert "selection among at most 32768 pages" in str(reason(q, pages, long, summaries=shape(99, 4, 128)))


@pytest.mark.parametrize(
    ("dtype", "page_dtype", "window_len", "runs"),
    [
        ("float32", "float32", None, True),
        ("bfloat16", "bfloat16", 100, True),
        ("float32", "int8", None, True),
        ("bfloat16", "float8_e4m3fn", 100, True),
        ("float32", "float8_e5m2", None, False),
    ],
)
def test_what_mosaic_cannot_run_on_hopper_comes_here(dtype, page_dtype, window_len, runs):
    shapes = shape(4, 16, 128, dtype=dtype), shape(99, 4, 16, 128, dtype=page_dtype), shape(4, 1024, dtype="int32")
    chosen = []
    with _dispatch.targeting("cuda"):
        asked = {"window_len": window_len, "sink_len": 0}
        jax.eval_shape(lambda *arrays: chosen.append(_dispatch._choose(None, None, arrays, asked)), *shapes)
    assert chosen == ["triton" if runs else "xla"]


@pytest.mark.parametrize(("capability", "runs"), [("7.5", False), ("8.0", True), ("8.9", True), ("gfx942", False)])
def test_gpus_before_ampere_are_left_to_xla(monkeypatch, capability, runs):
    device = types.SimpleNamespace(platform="gpu", compute_capability=capability)
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    why = reason(shape(4, 16, 128), shape(99, 4, 16, 128), shape(4, 1024, dtype="int32"))
    assert why is None if runs else f"compute capability 8.0 or higher; got {capability}" in str(why)


def test_bad_tuning():
    for bad in ({"num_splits": 0}, {"num_stages": 0}, {"tokens_per_step": 8}, {"num_warps": 3}):
        with pytest.raises(ValueError, match="got"):
            Tuning(**bad)
