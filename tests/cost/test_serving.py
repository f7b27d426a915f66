"""Decode steps and streams by hand, and the paper's block top-k speed-ups."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinetics_jax.cost import Throughput, capacity, decode_step_s, throughput
from kinetics_jax.specs import HARDWARE, MODELS, AttentionSpec, BlockTopK, Dense, HardwareSpec, Local, Quest, TopK

MODEL, MOE = MODELS["Qwen3-8B"], MODELS["Qwen3-30B-A3B"]
H200 = HARDWARE["H200-SXM"]
SPARSE = BlockTopK.from_budget(budget_len=1024, page_len=16)


def without_links(chip: HardwareSpec) -> HardwareSpec:
    sources = {field: text for field, text in chip.sources.items() if field != "link_bytes_per_s"}
    return dataclasses.replace(chip, link_bytes_per_s=None, sources=sources)


def test_a_step_by_hand() -> None:
    """2 P = 15,136,811,008; an entry is 147,456 bytes; each sequence reads 1000 of them and writes one."""
    weights_s, cache_s = 15_136_811_008 / 4.8e12, 10 * 1001 * 147_456 / 4.8e12
    assert decode_step_s(MODEL, Dense(), H200, context_len=1000, batch_size=10) == pytest.approx(
        weights_s + cache_s, rel=1e-12
    )
    # 64 pages of 16 are read of 125 summarised; the newest page's mean is written. A page mean is 73,728 bytes.
    sparse_s = 10 * (1025 * 147_456 + 126 * 73_728) / 4.8e12
    found = decode_step_s(MODEL, SPARSE, H200, context_len=2000, batch_size=10)
    assert found == pytest.approx(weights_s + sparse_s, rel=1e-12)


def test_a_large_batch_is_bound_by_arithmetic_in_the_weights_and_by_bytes_in_the_cache() -> None:
    """Kernels run one after another, so the two bounds add up and neither hides the other."""
    found = decode_step_s(MODEL, Dense(), H200, context_len=100, batch_size=1000)
    assert found == pytest.approx(1000 * 15_136_811_008 / 989.4e12 + 1000 * 101 * 147_456 / 4.8e12, rel=1e-12)
    added = decode_step_s(MODEL, Dense(), H200, context_len=100, batch_size=1000, combine="add")
    # 4 x 36 layers x 32 heads x 128 FLOP an entry.
    assert added == pytest.approx(found + 15_136_811_008 / 4.8e12 + 1000 * 100 * 589_824 / 989.4e12, rel=1e-12)


def test_all_reduces_by_hand() -> None:
    """Two a layer of [10, 4096] bfloat16 over 4 chips: 3/4 of it sent twice, at 450 GB/s each way."""
    options: dict[str, Any] = {"context_len": 1000, "batch_size": 10, "num_devices": 4}
    linked, free = (decode_step_s(MODEL, Dense(), chip, **options) for chip in (H200, without_links(H200)))
    assert free == pytest.approx((15_136_811_008 + 10 * 1001 * 147_456) / 4 / 4.8e12, rel=1e-12)
    assert linked - free == pytest.approx(2 * 36 * 2 * 0.75 * 10 * 4096 * 2 / 450e9, rel=1e-9)


def test_copies_of_the_cache_are_read_by_more_chips_than_kv_heads() -> None:
    """4 KV heads on 8 chips: every byte of the cache and of the summaries is read twice, weights once."""
    chip, spec = without_links(H200), Quest(page_len=16, num_pages=4)
    one, eight = (
        [decode_step_s(MOE, spec, chip, context_len=1600, batch_size=size, num_devices=n) for size in (4, 8)]
        for n in (1, 8)
    )
    cache_bytes = (64 + 1) * 98_304 + 101 * 98_304
    weights_s = [step - size * cache_bytes / 4.8e12 for step, size in zip(one, (4, 8), strict=True)]
    wanted = [(w + 2 * size * cache_bytes / 4.8e12) / 8 for w, size in zip(weights_s, (4, 8), strict=True)]
    assert eight == pytest.approx(wanted, rel=1e-9)
    assert weights_s[1] > 1.5 * weights_s[0]  # Twice the tokens meet more experts.


@pytest.mark.parametrize(
    ("name", "at_capacity", "at_one"), [("Qwen3-0.6B", 10.3, 2.0), ("Qwen3-8B", 8.2, 1.1), ("Qwen3-32B", 6.4, 1.1)]
)
def test_block_top_k_speed_ups_of_errata_11(name: str, at_capacity: float, at_one: float) -> None:
    """8 H200 at the largest batch with 0.9 of the memory (523, 400, 214), free links, published parameters."""
    model, chip = MODELS[name], without_links(H200)
    largest = capacity(model, SPARSE, chip, context_len=16_384, num_devices=8).num_sequences

    def speed_up(batch_size: int, chip: HardwareSpec, convention: Any) -> Any:
        dense_s, sparse_s = (
            decode_step_s(
                model,
                spec,
                chip,
                context_len=16_384,
                batch_size=batch_size,
                num_devices=8,
                convention=convention,
            )
            for spec in (Dense(), SPARSE)
        )
        return dense_s / sparse_s

    assert round(speed_up(largest, chip, "paper"), 1) == at_capacity
    assert round(speed_up(1, chip, "paper"), 1) == at_one
    # The tied embedding counted once helps 0.6B most; the all-reduces of a real machine cost up to a fifth.
    assert speed_up(largest, chip, "exact") == pytest.approx(at_capacity, rel=0.02)
    assert 0.8 * at_capacity < speed_up(largest, H200, "exact") < at_capacity


def test_the_papers_batch_is_refused_unless_asked_not_to() -> None:
    options: dict[str, Any] = {"context_len": 16_384, "batch_size": 4096, "num_devices": 8}
    with pytest.raises(ValueError, match=r"4,096 x 1\.879 GB = 7\.697 TB of cache .* 8 x 141 GB .* at most 539"):
        decode_step_s(MODELS["Qwen3-0.6B"], Dense(), H200, **options)
    assert decode_step_s(MODELS["Qwen3-0.6B"], Dense(), H200, **options, check_fits=False) > 0


def test_in_arrays_what_does_not_fit_is_nan() -> None:
    batches = np.array([0.5, 1.0, 45.0, 46.0, np.nan])
    contexts = np.array([[16_384.0], [0.0]])

    def step_s(batches: Any, contexts: Any, **options: Any) -> Any:
        return decode_step_s(MODEL, Dense(), H200, context_len=contexts, batch_size=batches, **options)

    assert capacity(MODEL, Dense(), H200, context_len=16_384).num_sequences == 45
    for found in (step_s(batches, contexts), jax.jit(step_s)(batches, contexts)):
        np.testing.assert_array_equal(np.isfinite(found), [[False, True, True, False, False], [False] * 5])
    unchecked = step_s(batches, contexts, check_fits=False)
    np.testing.assert_array_equal(np.isfinite(unchecked[0]), [False, True, True, True, False])
    with pytest.raises(ValueError, match="the weights of Qwen3-8B alone do not fit"):
        decode_step_s(MODEL, Dense(), HARDWARE["T4"], context_len=contexts, batch_size=batches)


def test_gradients_jit_vmap_and_float32() -> None:
    def step_s(context_len: Any, batch_size: Any) -> Any:
        return decode_step_s(
            MOE, SPARSE, H200, context_len=context_len, batch_size=batch_size, num_devices=2, combine=4.0
        )

    contexts, batches = np.array([500.3, 2000.4, 9000.7]), np.array([30.2, 3.3, 90.1])
    with jax.enable_x64(True):
        values, slopes = jax.jit(jax.vmap(jax.value_and_grad(step_s, (0, 1))))(contexts, batches)
    by_numpy = step_s(contexts, batches)
    np.testing.assert_allclose(values, by_numpy, rtol=1e-12)
    for slope, (step, other) in zip(slopes, ((1e-4, 0.0), (0.0, 1e-4)), strict=True):
        above, below = step_s(contexts + step, batches + other), step_s(contexts - step, batches - other)
        np.testing.assert_allclose(slope, (above - below) / 2e-4, rtol=1e-5)
    single = jax.jit(step_s)(jnp.asarray(contexts, jnp.float32), jnp.asarray(batches, jnp.float32))
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, by_numpy, rtol=1e-5)


@pytest.mark.parametrize("spec", [Dense(), SPARSE, Local(window_len=9, dense_layers=1)], ids=str)
def test_a_stream_takes_the_mean_of_its_steps(spec: AttentionSpec) -> None:
    contexts = 1020 + np.arange(1, 41)
    mean_s = np.mean(np.asarray(decode_step_s(MODEL, spec, H200, context_len=contexts, batch_size=20)))
    stream = throughput(MODEL, spec, H200, prompt_len=1020, gen_len=40, num_trials=5, batch_size=20)
    assert stream.step_s == pytest.approx(mean_s, rel=1e-12)
    assert stream.tokens_per_s == pytest.approx(20 / mean_s, rel=1e-12)
    assert stream.problems_per_hour == pytest.approx(3600 * 20 / mean_s / (5 * 40), rel=1e-12)


@given(
    model=st.sampled_from([MODEL, MOE]),
    spec=st.sampled_from([Dense(), SPARSE, Quest(page_len=16, num_pages=4, dense_layers=2), Local(window_len=64)]),
    context_len=st.integers(1, 20_000),
    batch_size=st.integers(1, 2000),
    num_devices=st.sampled_from([1, 2, 4]),
)
def test_a_larger_batch_is_slower_a_step_and_faster_a_token(
    model: Any, spec: AttentionSpec, context_len: int, batch_size: int, num_devices: int
) -> None:
    sizes = batch_size * np.array([1.0, 1.5, 2.0])

    def step_s(**changed: Any) -> Any:
        options = {"context_len": context_len, "batch_size": sizes, "num_devices": num_devices} | changed
        return decode_step_s(model, spec, H200, **options, check_fits=False)

    found = step_s()
    assert (np.diff(found) > 0).all()
    assert (np.diff(sizes / found) >= -1e-9 * (sizes / found)[1:]).all()
    assert (step_s(combine="add") >= found).all()
    assert (step_s(kv_dtype="int8") <= found).all()
    # More chips divide the work and add all-reduces to it; 4 KV heads divide evenly by all of these.
    assert (step_s() * num_devices >= (1 - 1e-12) * step_s(num_devices=1)).all()


def test_a_stream_takes_the_largest_batch() -> None:
    stream = throughput(MODEL, TopK(budget_len=64), H200, prompt_len=1000, gen_len=9000, num_devices=2)
    room = capacity(MODEL, TopK(budget_len=64), H200, context_len=10_000, num_devices=2)
    assert stream.batch_size == room.num_sequences == 161
    with pytest.raises(ValueError, match=r"1 sequences of 900,500 tokens of Qwen3-8B do not fit: .* at most 0"):
        throughput(MODEL, Dense(), H200, prompt_len=500, gen_len=900_000)
    with pytest.raises(ValueError, match="162 sequences of 10,000 tokens"):
        throughput(MODEL, Dense(), H200, prompt_len=1000, gen_len=9000, num_devices=2, batch_size=162)


def test_a_stream_of_arrays_is_a_pytree_under_jit() -> None:
    @jax.jit
    def stream(gen_lens: Any) -> Throughput:
        return throughput(MODEL, SPARSE, H200, prompt_len=500, gen_len=gen_lens, batch_size=40)

    found = stream(jnp.array([100.0, 5000.0, 90_000.0]))
    assert found.batch_size.shape == (3,)
    np.testing.assert_array_equal(np.isfinite(found.tokens_per_s), [True, True, False])
    wanted = throughput(MODEL, SPARSE, H200, prompt_len=500, gen_len=5000, batch_size=40)
    np.testing.assert_allclose(found.tokens_per_s[1], wanted.tokens_per_s, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gen_len": 0}, "gen_len must be at least 1; got 0"),
        ({"prompt_len": -1}, "prompt_len must be finite and at least 0; got -1"),
        ({"num_trials": 0}, "num_trials must be finite and at least 1; got 0"),
        ({"batch_size": 0}, "batch_size must be finite and at least 1; got 0"),
        ({"num_devices": 0}, "num_devices must be at least 1; got 0"),
        ({"gen_len": np.array([3.0])}, "batch_size must be given where a length is an array; got None"),
        ({"compute_dtype": "int3"}, "unknown dtype 'int3'. Known: float32"),
    ],
)
def test_bad_input(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        throughput(MODEL, Dense(), H200, **{"prompt_len": 5, "gen_len": 7, **options})
    if not options.keys() & {"gen_len", "prompt_len", "num_trials"}:
        with pytest.raises(ValueError, match=message):
            decode_step_s(MODEL, Dense(), H200, **{"context_len": 5, "batch_size": 2, **options})


def test_an_empty_context_is_refused() -> None:
    with pytest.raises(ValueError, match="context_len must be at least 1; got 0"):
        decode_step_s(MODEL, Dense(), H200, context_len=0, batch_size=1)
