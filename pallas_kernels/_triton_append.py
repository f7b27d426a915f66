"""Append a token to its page on the GPU: one launch where XLA makes four. Called by `_triton`.

Every sequence and KV head has a program, which reads the keys of the page that are held and writes one row of each
pool, in place.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt
from jaxtyping import Array, Float, Int

from ._triton_launch import launch, load_rows, sequence_and_head


def append_kv(
    key_pages: Float[Array, "R K P H"],
    value_pages: Float[Array, "R K P H"],
    key_means: Float[Array, "R K H"],
    page_table: Int[Array, "B M"],
    lengths: Int[Array, " B"],
    keys: Float[Array, "B K H"],
    values: Float[Array, "B K H"],
) -> tuple[Float[Array, "R K P H"], Float[Array, "R K P H"], Float[Array, "R K H"]]:
    """Write one token per sequence and renew its page's mean, as `_xla.append_kv`."""
    pools = key_pages, value_pages, key_means
    return launch(
        partial(_append_kernel),
        grid=(keys.shape[0] * keys.shape[1],),
        out_shape=tuple(jax.ShapeDtypeStruct(pool.shape, pool.dtype) for pool in pools),
        num_warps=4,
        aliases={0: 0, 1: 1, 2: 2},
    )(
        *pools,
        page_table.astype(jnp.int32),
        lengths.astype(jnp.int32),
        keys.astype(key_pages.dtype),
        values.astype(value_pages.dtype),
    )


def _append_kernel(
    key_in_ref: Any,  # [R, K, P, H]; the outputs of the same name lie in the same memory
    value_in_ref: Any,  # [R, K, P, H]
    mean_in_ref: Any,  # [R, K, H]
    page_table_ref: Any,  # [B, M] int32
    lengths_ref: Any,  # [B] int32
    new_key_ref: Any,  # [B, K, H]
    new_value_ref: Any,  # [B, K, H]
    key_ref: Any,
    value_ref: Any,
    mean_ref: Any,
) -> None:
    del value_in_ref, mean_in_ref
    num_pages, num_kv_heads, page_len, head_dim = key_ref.shape
    b, k = sequence_and_head(num_kv_heads)
    position = lengths_ref[b] - 1
    page = lax.div(position, page_len)
    in_table = (position >= 0) & (page < page_table_ref.shape[1])
    page_id = plt.load(page_table_ref.at[b, jnp.where(in_table, page, 0)])
    slot = position - page * page_len

    @pl.when(in_table & (page_id >= 0) & (page_id < num_pages))
    def _():
        slots, columns = (jnp.arange(size, dtype=jnp.int32) for size in (page_len, head_dim))
        held = load_rows(key_in_ref, (page_id, k, slots), slots < slot)
        key, value = (plt.load(ref.at[b, k, columns]) for ref in (new_key_ref, new_value_ref))
        total = jnp.sum(held.astype(jnp.float32), axis=0) + key.astype(jnp.float32)
        mean = total / (slot + 1).astype(jnp.float32)
        plt.store(key_ref.at[page_id, k, slot, columns], key)
        plt.store(value_ref.at[page_id, k, slot, columns], value)
        plt.store(mean_ref.at[page_id, k, columns], mean.astype(mean_ref.dtype))
