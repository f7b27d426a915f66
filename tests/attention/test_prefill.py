"""causal_attention: prefill agrees with decoding one token at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kinetics_jax.attention import causal_attention
from pallas_kernels import paged_decode


@pytest.mark.parametrize("num_kv_heads", [1, 2, 6])
def test_every_token_equals_a_decode_step(rng, num_kv_heads):
    q = jnp.asarray(rng.normal(size=(2, 7, 6, 8)), "float32")
    k, v = (jnp.asarray(rng.normal(size=(2, 7, num_kv_heads, 8)), "float32") for _ in range(2))
    out = causal_attention(q, k, v, scale=0.3)
    # Every (sequence, token) is a decode step of its own; each sequence is one page of 7 tokens.
    table, lengths = jnp.repeat(jnp.array([[0], [1]]), 7, axis=0), jnp.tile(jnp.arange(1, 8), 2)
    decode = jax.jit(paged_decode, static_argnames="scale")
    steps = decode(q.reshape(14, 6, 8), k.swapaxes(1, 2), v.swapaxes(1, 2), table, lengths, scale=0.3)
    np.testing.assert_allclose(out.reshape(14, 6, 8), steps, atol=3e-6)


def test_padding_after_the_prompt_changes_nothing(rng):
    q = jnp.asarray(rng.normal(size=(1, 9, 2, 8)), "float32")
    padded = q.at[:, 5:].set(1e4)
    short = causal_attention(q[:, :5], q[:, :5, :1], q[:, :5, :1])
    np.testing.assert_allclose(causal_attention(padded, padded[:, :, :1], padded[:, :, :1])[:, :5], short, atol=1e-6)


def test_bad_heads():
    with pytest.raises(ValueError, match="got N=5, K=2"):
        causal_attention(jnp.ones((1, 3, 5, 8)), jnp.ones((1, 3, 2, 8)), jnp.ones((1, 3, 2, 8)))
