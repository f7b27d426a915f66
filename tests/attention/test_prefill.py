"""causal_attention: prefill agrees with decoding one token at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kinetics_jax.attention import causal_attention
from pallas_kernels import paged_decode


@pytest.mark.parametrize("num_kv_heads", [1, 2, 6])
def test_every_token_equals_a_decode_step(key, num_kv_heads):
    q = jax.random.normal(key, (2, 7, 6, 8))
    k, v = jax.random.normal(jax.random.fold_in(key, 1), (2, 2, 7, num_kv_heads, 8))
    out = causal_attention(q, k, v, scale=0.3)
    pools = k.swapaxes(1, 2), v.swapaxes(1, 2)  # each sequence is one page of 7 tokens
    decode = jax.jit(paged_decode, static_argnames="scale")
    for t in range(7):
        step = decode(q[:, t], *pools, jnp.array([[0], [1]]), jnp.full(2, t + 1), scale=0.3)
        np.testing.assert_allclose(out[:, t], step, atol=3e-6)


def test_padding_after_the_prompt_changes_nothing(key):
    q = jax.random.normal(key, (1, 9, 2, 8))
    padded = q.at[:, 5:].set(1e4)
    short = causal_attention(q[:, :5], q[:, :5, :1], q[:, :5, :1])
    np.testing.assert_allclose(causal_attention(padded, padded[:, :, :1], padded[:, :, :1])[:, :5], short, atol=1e-6)


def test_bad_heads():
    with pytest.raises(ValueError, match="got N=5, K=2"):
        causal_attention(jnp.ones((1, 3, 5, 8)), jnp.ones((1, 3, 2, 8)), jnp.ones((1, 3, 2, 8)))
