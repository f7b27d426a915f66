"""Rotary embedding: its theory, cases by hand, and the two ways of stretching it."""

from functools import partial

import jax
import numpy as np
import pytest

from kinetics_jax.models._rope import rope_angles, rope_frequencies
from kinetics_jax.specs import Llama3Rope, YarnRope
from pallas_kernels import rotate

LLAMA_3_1 = Llama3Rope(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_len=8192)
QWEN_YARN = YarnRope(factor=4.0, original_max_len=32_768)


@partial(jax.jit, static_argnames="scaling")
def rope(heads: jax.Array, positions: jax.Array, scaling: YarnRope | None) -> jax.Array:
    return rotate(heads, *rope_angles(positions, heads.shape[-1], theta=100.0, scaling=scaling))


def turned(heads: np.ndarray, positions: np.ndarray, scaling: YarnRope | None = None) -> np.ndarray:
    return np.asarray(rope(heads.astype(np.float32), positions, scaling))


def test_rope_scores_depend_on_the_distance_only():
    query, cached = np.random.default_rng(0).normal(size=(2, 1, 2, 8)).repeat(5, axis=1)
    places = np.array([0, 3, 11, 40, 41])
    score = (turned(query, places + 5) * turned(cached, places)).sum(axis=-1)
    np.testing.assert_allclose(score, score[:1].repeat(5, axis=0), atol=1e-5)
    assert np.abs(score - (turned(query, places + 6) * turned(cached, places)).sum(axis=-1)).max() > 0.1


def test_rope_keeps_the_norm_and_turns_nothing_at_zero():
    heads = np.random.default_rng(1).normal(size=(5, 2, 8)).astype(np.float32)
    result = turned(heads, np.arange(5))
    np.testing.assert_array_equal(result[0], heads[0])
    np.testing.assert_allclose(np.linalg.norm(result, axis=-1), np.linalg.norm(heads, axis=-1), rtol=1e-6)
    assert np.abs(result[1:] - heads[1:]).max() > 0.1


def test_rope_by_hand():
    """The pair (x_0, x_4) turns by the position, the pair (x_1, x_5) by position * 100^(-1/4)."""
    heads = np.zeros((5, 2, 8))
    heads[:, :, :2] = 1.0
    result = turned(heads, np.full(5, 2))[0, 0]
    slow = 2 * 100 ** (-1 / 4)
    wanted = [np.cos(2.0), np.cos(slow), 0, 0, np.sin(2.0), np.sin(slow), 0, 0]
    np.testing.assert_allclose(result, wanted, atol=1e-6)


def test_llama_3_slows_the_slow_keeps_the_fast_and_blends_between():
    """Wavelengths of 2,048 tokens and less stay, those of 8,192 and more are eight times slower."""
    plain = rope_frequencies(128, theta=500_000.0)
    scaled = rope_frequencies(128, theta=500_000.0, scaling=LLAMA_3_1)
    wavelength = 2 * np.pi / plain
    np.testing.assert_array_equal(scaled[wavelength < 2048], plain[wavelength < 2048])
    np.testing.assert_allclose(scaled[wavelength > 8192], plain[wavelength > 8192] / 8, rtol=1e-12)
    # Pair 32 has 707.1^-1 turns of 2 pi: 1.84378 turns over 8,192 tokens, so (1.84378 - 1) / 3 of it is kept.
    kept = (8192 / (2 * np.pi * 500_000**0.5) - 1) / 3
    assert kept == pytest.approx(0.2812826, abs=1e-7)
    assert scaled[32] == pytest.approx(500_000**-0.5 * (kept + (1 - kept) / 8), rel=1e-12)


def test_yarn_by_hand():
    """Qwen's settings: 64 pairs at base 10^6 over 32,768 tokens; 32 turns at pair 23.6, one at pair 39.6."""
    plain = rope_frequencies(128, theta=1e6)
    scaled = rope_frequencies(128, theta=1e6, scaling=QWEN_YARN)
    np.testing.assert_array_equal(scaled[:24], plain[:24])
    np.testing.assert_allclose(scaled[40:], plain[40:] / 4, rtol=1e-12)
    assert scaled[24] == pytest.approx(plain[24] * (16 / 17 + 1 / 17 / 4), rel=1e-12)
    assert scaled[31] == pytest.approx(plain[31] * (9 / 17 + 8 / 17 / 4), rel=1e-12)


def test_yarn_lengthens_queries_and_keys():
    """0.1 ln 4 + 1 = 1.138629 unless the attention factor is given."""
    heads = np.random.default_rng(2).normal(size=(5, 2, 8)).astype(np.float32)
    given = YarnRope(factor=4.0, original_max_len=64, attention_factor=0.7)
    for scaling, length in ((YarnRope(factor=4.0, original_max_len=64), 1.138629), (given, 0.7)):
        result = np.linalg.norm(turned(heads, np.arange(5), scaling), axis=-1)
        np.testing.assert_allclose(result, length * np.linalg.norm(heads, axis=-1), rtol=1e-5)
