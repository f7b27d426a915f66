"""Rotary embedding: its theory, and a case by hand."""

import jax
import numpy as np

from kinetics_jax.models._rope import apply_rope

rope = jax.jit(apply_rope, static_argnames="theta")


def turned(heads: np.ndarray, positions: np.ndarray) -> np.ndarray:
    return np.asarray(rope(heads.astype(np.float32), positions, theta=100.0))


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
