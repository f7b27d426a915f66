"""How many sequences fit: divisions by hand, whole pages, scales, copies, and refusals that show the arithmetic."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinetics_jax.cost import capacity
from kinetics_jax.specs import HARDWARE, MODELS, AttentionSpec, BlockTopK, Dense, Local, Quest, TopK

SMALL, LARGE, MOE = MODELS["Qwen3-0.6B"], MODELS["Qwen3-32B"], MODELS["Qwen3-30B-A3B"]
H200, H100, T4 = HARDWARE["H200-SXM"], HARDWARE["H100-SXM"], HARDWARE["T4"]


@pytest.mark.parametrize(
    ("spec", "kv_bytes", "summary_bytes"),
    [
        # 28 layers x 8 heads x 128 x 2 bytes: 57,344 a vector, 114,688 an entry. 1001 tokens: 63 pages of 16.
        (Dense(), 63 * 16 * 114_688, 0),
        (TopK(budget_len=64), 63 * 16 * 114_688, 0),
        (Local(window_len=64), 63 * 16 * 114_688, 0),
        (BlockTopK(page_len=64, num_pages=4), 16 * 64 * 114_688, 16 * 57_344),
        (BlockTopK(page_len=64, num_pages=4, dense_layers=7), 16 * 64 * 114_688, 16 * 57_344 * 21 // 28),
        (Quest(page_len=64, num_pages=4), 16 * 64 * 114_688, 2 * 16 * 57_344),
    ],
    ids=str,
)
def test_a_sequence_holds_whole_pages_and_their_summaries(
    spec: AttentionSpec, kv_bytes: int, summary_bytes: int
) -> None:
    room = capacity(SMALL, spec, H100, context_len=1001)
    assert (room.kv_bytes, room.summary_bytes) == (kv_bytes, summary_bytes)
    assert room.num_sequences == int((72e9 - 2 * 596_049_920) // (kv_bytes + summary_bytes))
    assert capacity(SMALL, spec, H100, context_len=1008).num_sequences == room.num_sequences


@pytest.mark.parametrize(
    ("kv_dtype", "vector_bytes", "summary_bytes"),
    [("float32", 512, 512), ("float8", 130, 256), ("int8", 130, 256), ("int4", 66, 256)],
)
def test_a_quantised_cache_keeps_scales_and_summaries_in_bfloat16(
    kv_dtype: str, vector_bytes: int, summary_bytes: int
) -> None:
    room = capacity(LARGE, BlockTopK(page_len=16, num_pages=4), H200, context_len=160, kv_dtype=kv_dtype)
    assert room.kv_bytes == 160 * 2 * 64 * 8 * vector_bytes
    assert room.summary_bytes == 10 * 64 * 8 * summary_bytes


def test_every_expert_is_held_in_its_dtype() -> None:
    assert capacity(MOE, Dense(), H100, context_len=16).weight_bytes == 2 * 30_532_122_624
    assert capacity(MOE, Dense(), H100, context_len=16, weight_dtype="int4").weight_bytes == 30_532_122_624 / 2


@pytest.mark.parametrize(("num_devices", "num_copies"), [(1, 1.0), (2, 1.0), (4, 1.0), (8, 2.0), (16, 4.0), (3, 1.5)])
def test_kv_heads_go_to_devices_whole(num_devices: int, num_copies: float) -> None:
    """4 KV heads: 3 devices hold at most 2 each, so room for 6."""
    room = capacity(MOE, Quest(page_len=16, num_pages=4), H200, context_len=1600, num_devices=num_devices)
    assert room.num_kv_copies == num_copies
    assert room.kv_bytes == num_copies * 1600 * 98_304
    assert room.summary_bytes == num_copies * 100 * 98_304
    assert room.usable_bytes == num_devices * 141e9 * 0.9


def test_the_arithmetic_is_shown() -> None:
    room = capacity(SMALL, Dense(), H200, context_len=16_384, num_devices=8)
    assert room.num_sequences == 539  # (1015.2e9 - 1.192e9) / 1,879,048,192 = 539.6
    text = "(8 x 141 GB (H200-SXM) x 0.9 = 1.015 TB, less 1.192 GB of weights) / 1.879 GB a sequence of 16,384 tokens"
    assert room.arithmetic() == text + " = 539 sequences"
    shared = capacity(MOE, Quest(page_len=16, num_pages=4), H200, context_len=1600, num_devices=8).arithmetic()
    assert "(19.66 MB of page summaries and 2 copies of the cache included)" in shared


def test_the_papers_batch_is_refused_with_the_arithmetic() -> None:
    """Errata 11: batch 4096 at 16k would need 7.7 TB of KV."""
    room = capacity(SMALL, Dense(), H200, context_len=16_384, num_devices=8)
    wanted = (
        "4,096 sequences of 16,384 tokens of Qwen3-0.6B do not fit: 4,096 x 1.879 GB = 7.697 TB of cache and 1.192 GB "
        "of weights, but 8 x 141 GB (H200-SXM) x 0.9 = 1.015 TB. Use at most 539 sequences, a shorter context"
    )
    with pytest.raises(ValueError, match=re.escape(wanted)):
        room.require(4096)
    with pytest.raises(ValueError, match="Use at most 539 sequences"):
        room.require(540)
    room.require(539)


def test_weights_that_do_not_fit_are_refused_with_the_chips_they_need() -> None:
    wanted = (
        "the weights of Qwen3-32B alone do not fit: 32.76e9 parameters in bfloat16 = 65.52 GB, but 4 x 16 GB (T4) x "
        "0.9 = 57.6 GB. Use at least 5 chips or a narrower weight_dtype."
    )
    with pytest.raises(ValueError, match=re.escape(wanted)):
        capacity(LARGE, Dense(), T4, context_len=16, num_devices=4)
    assert capacity(LARGE, Dense(), T4, context_len=16, num_devices=5).num_sequences > 0
    assert capacity(LARGE, Dense(), T4, context_len=100_000, num_devices=5).num_sequences == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context_len": 0}, "context_len must be at least 1; got 0"),
        ({"context_len": float("nan")}, "context_len must be finite and at least 0; got nan"),
        ({"num_devices": 0}, "num_devices must be finite and at least 1; got 0"),
        ({"memory_share": 0.0}, r"memory_share must lie in \(0, 1\]; got 0.0"),
        ({"memory_share": 1.5}, r"memory_share must lie in \(0, 1\]; got 1.5"),
        ({"kv_dtype": "int3"}, "unknown kv_dtype 'int3'. Known: float32"),
        ({"weight_dtype": "int3"}, "unknown weight_dtype 'int3'. Known: float32"),
    ],
)
def test_bad_input(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        capacity(SMALL, Dense(), H100, **{"context_len": 100, **options})


@given(
    model=st.sampled_from([SMALL, LARGE, MOE]),
    spec=st.sampled_from([Dense(), BlockTopK(page_len=48, num_pages=4), Quest(page_len=16, num_pages=2)]),
    context_len=st.integers(1, 60_000),
    num_devices=st.integers(2, 16),
    kv_dtype=st.sampled_from(["bfloat16", "int8"]),
)
def test_the_batch_fits_and_one_more_does_not(
    model: Any, spec: AttentionSpec, context_len: int, num_devices: int, kv_dtype: str
) -> None:
    def room(**changed: Any) -> Any:
        options = {"context_len": context_len, "num_devices": num_devices, "kv_dtype": kv_dtype} | changed
        return capacity(model, spec, H200, **options)

    found = room()
    left_bytes = found.usable_bytes - found.weight_bytes
    assert found.num_sequences * found.sequence_bytes <= left_bytes
    assert (found.num_sequences + 1) * found.sequence_bytes > left_bytes
    assert room(context_len=context_len + 1).num_sequences <= found.num_sequences
    assert room(kv_dtype="int4").num_sequences >= found.num_sequences
    assert room(memory_share=0.8).num_sequences <= found.num_sequences
    assert room(num_devices=2 * num_devices).num_sequences >= found.num_sequences
