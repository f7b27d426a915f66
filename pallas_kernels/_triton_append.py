"""Append a token to its page on the GPU: one launch where XLA makes four, and more with what comes before it.

Called by `_triton`. Every sequence and KV head has a program, which reads the keys of the page that are held and
writes one row of each pool, in place. The heads may come as the projections give them: the program then norms and
rotates its key, and the queries of its group beside it. A head is two halves throughout: those are the pairs that turn.

    heads [B, N + K + K, H]
      | q: G rows    -> norm, rotate -> q_ref
      | k: one row   -> norm, rotate -> key_ref[page, slot];  mean of held and new -> mean_ref[page]
      | v: one row   ----------------> value_ref[page, slot]

One array of all heads, since XLA makes one product of the three projections: this is that product, with the sum of its
parts and the cast behind it. Three arrays would be cut out of it by a kernel each.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt
from jaxtyping import Array, Float, Int

from ._triton_launch import launch, sequence_and_head

_ENTRIES_PER_WARP = 1024  # of the page that a program holds in registers
_MAX_WARPS = 8


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
    return _launch(partial(_append_kernel), pools, page_table, lengths, (keys, values), ())


def rotate_and_append_kv(
    key_pages: Float[Array, "R K P H"],
    value_pages: Float[Array, "R K P H"],
    key_means: Float[Array, "R K H"],
    page_table: Int[Array, "B M"],
    lengths: Int[Array, " B"],
    q: Float[Array, "B N H"],
    keys: Float[Array, "B K H"],
    values: Float[Array, "B K H"],
    cos: Float[Array, "B half"],
    sin: Float[Array, "B half"],
    *norms: Float[Array, " H"],
    epsilon: float,
) -> tuple[Array, ...]:
    """Norm and rotate queries and keys, then append, as `_xla.rotate_and_append_kv`."""
    pools = key_pages, value_pages, key_means
    heads = jnp.concatenate([q, keys, values], axis=1)
    query_norm, key_norm = norms or (None, None)
    kernel = partial(_rotate_and_append_kernel, group=q.shape[1] // keys.shape[1], epsilon=epsilon)
    out_shape = (jax.ShapeDtypeStruct(q.shape, q.dtype),)
    *pools, queries = _launch(kernel, pools, page_table, lengths, (heads, cos, sin, query_norm, key_norm), out_shape)
    return queries, *pools


def _launch(
    kernel: partial[None],
    pools: tuple[Array, ...],
    page_table: Int[Array, "B M"],
    lengths: Int[Array, " B"],
    inputs: tuple[Array | None, ...],
    out_shape: tuple[jax.ShapeDtypeStruct, ...],
) -> Any:
    num_kv_heads, page_len, head_dim = pools[0].shape[1:]
    return launch(
        kernel,
        grid=(page_table.shape[0] * num_kv_heads,),
        out_shape=(*(jax.ShapeDtypeStruct(pool.shape, pool.dtype) for pool in pools), *out_shape),
        num_warps=min(max(1, page_len * head_dim // _ENTRIES_PER_WARP), _MAX_WARPS),
        aliases={0: 0, 1: 1, 2: 2},
    )(*pools, page_table.astype(jnp.int32), lengths.astype(jnp.int32), *inputs)


class _Place(NamedTuple):
    """Hold where the token of this program goes, and the keys of its page that are held already.

    Attributes:
        sequence: The sequence.
        kv_head: The KV head.
        page_id: The page; 0 where there is no place.
        slot: Its slot.
        exists: Whether there is a place.
        held: Both halves of the keys before it [P, H / 2] in float32, zeros in other slots.
    """

    sequence: Array
    kv_head: Array
    page_id: Array
    slot: Array
    exists: Array
    held: list[Array]


def _append_kernel(
    key_in_ref: Any,  # [R, K, P, H]; the outputs of the same name lie in the same memory
    value_in_ref: Any,  # [R, K, P, H]
    mean_in_ref: Any,  # [R, K, H]
    page_table_ref: Any,  # [B, M] int32
    lengths_ref: Any,  # [B] int32
    new_key_ref: Any,  # [B, K, H]
    new_value_ref: Any,  # [B, K, H]
    key_ref: Any,  # [R, K, P, H]
    value_ref: Any,  # [R, K, P, H]
    mean_ref: Any,  # [R, K, H]
) -> None:
    del value_in_ref, mean_in_ref
    place = _find_place(key_in_ref, page_table_ref, lengths_ref)
    b, k = place.sequence, place.kv_head
    halves = _halves(key_ref.shape[-1])
    key, value = ([plt.load(ref.at[b, k, columns]) for columns in halves] for ref in (new_key_ref, new_value_ref))
    _write(place, key, value, key_ref, value_ref, mean_ref)


def _rotate_and_append_kernel(
    key_in_ref: Any,  # [R, K, P, H]; the outputs of the same name lie in the same memory
    value_in_ref: Any,  # [R, K, P, H]
    mean_in_ref: Any,  # [R, K, H]
    page_table_ref: Any,  # [B, M] int32
    lengths_ref: Any,  # [B] int32
    heads_ref: Any,  # [B, N + K + K, H]
    cos_ref: Any,  # [B, H / 2]
    sin_ref: Any,  # [B, H / 2]
    query_norm_ref: Any,  # [H], or None
    key_norm_ref: Any,  # [H], or None
    key_ref: Any,  # [R, K, P, H]
    value_ref: Any,  # [R, K, P, H]
    mean_ref: Any,  # [R, K, H]
    q_ref: Any,  # [B, N, H]
    *,
    group: int,
    epsilon: float,
) -> None:
    del value_in_ref, mean_in_ref
    # All loads come before the first store, so that none has to wait for it.
    place = _find_place(key_in_ref, page_table_ref, lengths_ref)
    b, k, num_kv_heads, num_heads = place.sequence, place.kv_head, key_ref.shape[1], q_ref.shape[1]
    halves = _halves(key_ref.shape[-1])
    value = [plt.load(heads_ref.at[b, num_heads + num_kv_heads + k, columns]) for columns in halves]
    cos, sin = (plt.load(ref.at[b, halves[0]])[None, :] for ref in (cos_ref, sin_ref))

    def turned(first: Array, count: int, norm_ref: Any) -> list[Array]:
        """Return both halves of `count` heads from the first on, in float32, padded to a power of two of rows."""
        row = jnp.arange(pl.next_power_of_2(count), dtype=jnp.int32)[:, None]
        mask = jnp.broadcast_to(row < count, (row.shape[0], halves[0].shape[0]))
        left, right = (
            plt.load(heads_ref.at[b, first + row, columns[None, :]], mask=mask, other=0.0).astype(jnp.float32)
            for columns in halves
        )
        if norm_ref is not None:
            square = jnp.sum(left * left, axis=1) + jnp.sum(right * right, axis=1)
            root = lax.rsqrt(square / q_ref.shape[-1] + epsilon)[:, None]
            weights = [plt.load(norm_ref.at[columns]).astype(jnp.float32)[None, :] for columns in halves]
            left, right = (
                (part * root * weight).astype(heads_ref.dtype).astype(jnp.float32)
                for part, weight in zip((left, right), weights, strict=True)
            )
        return [left * cos - right * sin, right * cos + left * sin]

    queries = turned(k * group, group, query_norm_ref)
    # Rounded to the dtype of the heads first, as XLA's are.
    key = [jnp.sum(part, axis=0).astype(heads_ref.dtype) for part in turned(num_heads + k, 1, key_norm_ref)]
    row = jnp.arange(queries[0].shape[0], dtype=jnp.int32)[:, None]
    for columns, part in zip(halves, queries, strict=True):
        mask = jnp.broadcast_to(row < group, part.shape)
        plt.store(q_ref.at[b, k * group + row, columns[None, :]], part.astype(q_ref.dtype), mask=mask)
    _write(place, key, value, key_ref, value_ref, mean_ref)


def _find_place(key_ref: Any, page_table_ref: Any, lengths_ref: Any) -> _Place:
    num_pages, num_kv_heads, page_len, head_dim = key_ref.shape
    b, k = sequence_and_head(num_kv_heads)
    position = lengths_ref[b] - 1
    page = lax.div(position, page_len)
    in_table = (position >= 0) & (page < page_table_ref.shape[1])
    page_id = plt.load(page_table_ref.at[b, jnp.where(in_table, page, 0)])
    exists = in_table & (page_id >= 0) & (page_id < num_pages)
    page_id, slot = jnp.where(exists, page_id, 0), position - page * page_len
    slots = jnp.arange(page_len, dtype=jnp.int32)[:, None]
    mask = jnp.broadcast_to((slots < slot) & exists, (page_len, head_dim // 2))
    held = [
        plt.load(key_ref.at[page_id, k, slots, columns[None, :]], mask=mask, other=0.0).astype(jnp.float32)
        for columns in _halves(head_dim)
    ]
    return _Place(b, k, page_id, slot, exists, held)


def _write(place: _Place, key: list[Array], value: list[Array], key_ref: Any, value_ref: Any, mean_ref: Any) -> None:
    _, k, page_id, slot, exists, all_held = place
    for columns, new_key, new_value, held in zip(_halves(key_ref.shape[-1]), key, value, all_held, strict=True):
        new_key = new_key.astype(key_ref.dtype)
        mean = (jnp.sum(held, axis=0) + new_key.astype(jnp.float32)) / (slot + 1).astype(jnp.float32)
        mask = jnp.broadcast_to(exists, columns.shape)
        plt.store(key_ref.at[page_id, k, slot, columns], new_key, mask=mask)
        plt.store(value_ref.at[page_id, k, slot, columns], new_value.astype(value_ref.dtype), mask=mask)
        plt.store(mean_ref.at[page_id, k, columns], mean.astype(mean_ref.dtype), mask=mask)


def _halves(head_dim: int) -> tuple[Array, Array]:
    """Return the columns of each half of a head [H / 2]."""
    left = jnp.arange(head_dim // 2, dtype=jnp.int32)
    return left, left + head_dim // 2
