"""Appending what is ready to be attended to: a rotation by nothing, of heads without norms."""

import jax
import jax.numpy as jnp

from kinetics_jax.attention import PagedCache, Rotation, rotate_and_append


def append(cache: PagedCache, layer: int | jax.Array, keys: jax.Array, values: jax.Array) -> PagedCache:
    """Return the cache with keys and values [B, K, H] of the newest token, as they are."""
    sin = jnp.zeros((keys.shape[0], 1, keys.shape[2] // 2))
    _, cache = rotate_and_append(cache, layer, keys, keys, values, Rotation(cos=sin + 1, sin=sin))
    return cache
