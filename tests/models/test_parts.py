"""Rotary embedding and the look-up whose gradient is a product: their theory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kinetics_jax.models._embedding import look_up
from kinetics_jax.models._rope import apply_rope


def test_rope_scores_depend_on_the_distance_only(key: jax.Array):
    query, cached = jax.random.normal(key, (2, 1, 8))
    places = jnp.array([0, 3, 11, 40])

    def score(shift: int) -> jax.Array:
        turned_q = apply_rope(jnp.broadcast_to(query, (4, 1, 8)), places + 5 + shift, theta=100.0)
        turned_k = apply_rope(jnp.broadcast_to(cached, (4, 1, 8)), places + shift, theta=100.0)
        return jnp.sum(turned_q * turned_k, axis=-1)

    np.testing.assert_allclose(score(0), np.full((4, 1), score(0)[0, 0]), atol=1e-5)
    np.testing.assert_allclose(score(0), score(9), atol=1e-5)


def test_rope_keeps_the_norm_and_turns_nothing_at_zero(key: jax.Array):
    heads = jax.random.normal(key, (5, 2, 8))
    turned = apply_rope(heads, jnp.arange(5), theta=10.0)
    np.testing.assert_array_equal(turned[0], heads[0])
    np.testing.assert_allclose(jnp.linalg.norm(turned, axis=-1), jnp.linalg.norm(heads, axis=-1), rtol=1e-6)
    assert jnp.abs(turned[1:] - heads[1:]).max() > 0.1


def test_rope_by_hand():
    """One pair, theta^0 = 1: (1, 0) at position 2 is (cos 2, sin 2)."""
    turned = apply_rope(jnp.array([[[1.0, 0.0]]]), jnp.array([2]), theta=1e6)
    np.testing.assert_allclose(turned[0, 0], [np.cos(2.0), np.sin(2.0)], rtol=1e-6)


@pytest.mark.parametrize("vocab_size", [16, 5000])  # below and above the size where a scatter takes over
def test_look_up_gradient_is_the_sum_over_the_tokens_of_a_word(vocab_size: int, key: jax.Array):
    table = jax.random.normal(key, (vocab_size, 3))
    token_ids = jnp.array([[1, 5, 1], [1, 0, 15]])
    np.testing.assert_array_equal(look_up(table, token_ids), table[token_ids])
    seen = np.asarray(jax.random.normal(key, (2, 3, 3)))
    gradient = jax.grad(lambda table: jnp.sum(look_up(table, token_ids) * seen))(table)
    wanted = np.zeros((vocab_size, 3))
    np.add.at(wanted, np.asarray(token_ids), seen)
    np.testing.assert_allclose(gradient, wanted, atol=1e-6)
