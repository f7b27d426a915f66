"""Score the pages of every sequence and KV head, and select the best: two Triton kernels.

Called by `_triton`. A page's score is the product of probe and summary; the threshold of the selection is found bit by
bit in the integers that order as the scores do, and pages that tie with it are taken from the lowest.
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

MAX_PAGES = 2**15  # what one program holds in registers while it selects
_PAGES_PER_SCORE_PROGRAM = 64
_INT32_MIN, _INT32_MAX = -(2**31), 2**31 - 1


def score_pages(
    probe: Float[Array, "B K C"],
    summaries: Float[Array, "R K C"],
    page_table: Int[Array, "B M"],
    lengths: Int[Array, " B"],
    *,
    page_len: int,
) -> Float[Array, "B K M"]:
    """Score the held pages; the others' scores are left unwritten."""
    (batch_size, num_kv_heads, _), max_pages = probe.shape, page_table.shape[1]
    return launch(
        partial(_score_kernel, page_len=page_len),
        grid=(batch_size * num_kv_heads, pl.cdiv(max_pages, _PAGES_PER_SCORE_PROGRAM)),
        out_shape=jax.ShapeDtypeStruct((batch_size, num_kv_heads, max_pages), jnp.float32),
        num_warps=4,
    )(probe, summaries, page_table, lengths)


def _score_kernel(
    probe_ref: Any,  # [B, K, C] float32
    summary_ref: Any,  # [R, K, C]
    table_ref: Any,  # [B, M] int32
    length_ref: Any,  # [B] int32
    score_ref: Any,  # [B, K, M] float32
    *,
    page_len: int,
) -> None:
    b, k = sequence_and_head(probe_ref.shape[1])
    num_held = jnp.minimum(pl.cdiv(length_ref[b], page_len), table_ref.shape[1])
    page = pl.program_id(1) * _PAGES_PER_SCORE_PROGRAM + jnp.arange(_PAGES_PER_SCORE_PROGRAM, dtype=jnp.int32)
    held = page < num_held
    page_id = plt.load(table_ref.at[b, page], mask=held, other=0)
    summary = load_rows(summary_ref, (page_id, k), held).astype(jnp.float32)
    plt.store(score_ref.at[b, k, page], jnp.sum(summary * probe_ref[b, k][None, :], axis=1), mask=held)


def select_pages(
    scores: Float[Array, "B K M"],
    page_table: Int[Array, "B M"],
    lengths: Int[Array, " B"],
    *,
    page_len: int,
    num_blocks: int,
    num_sink_blocks: int,
    num_local_blocks: int,
) -> tuple[Int[Array, "B K J"], Int[Array, "B K J"], Int[Array, "B K"]]:
    """Return the selected pages, ascending, the ids of those that are held, and how many tokens they hold."""
    batch_size, num_kv_heads, max_pages = scores.shape
    listed = jax.ShapeDtypeStruct((batch_size, num_kv_heads, min(num_blocks, max_pages)), jnp.int32)
    kernel = partial(_select_kernel, page_len=page_len, num_sinks=num_sink_blocks, num_local=num_local_blocks)
    return launch(
        kernel,
        grid=(batch_size * num_kv_heads,),
        out_shape=(listed, listed, jax.ShapeDtypeStruct((batch_size, num_kv_heads), jnp.int32)),
        num_warps=min(32, max(1, pl.next_power_of_2(max_pages) // 256)),
    )(scores, page_table, lengths)


def _select_kernel(
    score_ref: Any,  # [B, K, M] float32
    table_ref: Any,  # [B, M] int32
    length_ref: Any,  # [B] int32
    selected_ref: Any,  # [B, K, J] int32
    page_id_ref: Any,  # [B, K, J] int32
    num_tokens_ref: Any,  # [B, K] int32
    *,
    page_len: int,
    num_sinks: int,
    num_local: int,
) -> None:
    _, num_kv_heads, max_pages = score_ref.shape
    num_listed = selected_ref.shape[2]
    b, k = sequence_and_head(num_kv_heads)
    length = jnp.minimum(length_ref[b], max_pages * page_len)
    num_held = pl.cdiv(length, page_len)
    num_chosen = jnp.minimum(num_held, num_listed)

    page = jnp.arange(pl.next_power_of_2(max_pages), dtype=jnp.int32)
    held = page < num_held
    always = held & ((page < num_sinks) | (page >= num_held - num_local))
    rank = _ordered(plt.load(score_ref.at[b, k, page], mask=held, other=0.0))
    # No score has the rank of either end.
    rank = jnp.where(always, _INT32_MAX, jnp.where(held, rank, _INT32_MIN))

    threshold = _kth_largest(rank, num_chosen)
    above, tied = rank > threshold, (rank == threshold) & held
    num_tied = num_chosen - _count(above)
    chosen = above | (tied & (lax.cumsum(tied.astype(jnp.int32), axis=0) <= num_tied))

    # Out of range where nothing is stored: the interpreter writes the old value back there.
    place = jnp.where(chosen, lax.cumsum(chosen.astype(jnp.int32), axis=0) - 1, num_listed + page)
    plt.store(selected_ref.at[b, k, place], page, mask=chosen)
    plt.store(page_id_ref.at[b, k, place], plt.load(table_ref.at[b, page], mask=chosen, other=0), mask=chosen)
    place = jnp.arange(pl.next_power_of_2(num_listed), dtype=jnp.int32)
    empty = (place >= num_chosen) & (place < num_listed)
    plt.store(selected_ref.at[b, k, place], jnp.full_like(place, max_pages), mask=empty)
    # All selected pages are full, but for the newest one of the sequence.
    num_missing = num_held * page_len - length
    has_newest = _count(chosen & (page == num_held - 1))
    num_tokens_ref[b, k] = num_chosen * page_len - has_newest * num_missing


def _ordered(scores: Float[Array, " M"]) -> Int[Array, " M"]:
    """Return integers in the order of the scores; -0.0 ties with 0.0."""
    bits = lax.bitcast_convert_type(jnp.where(scores == 0, 0.0, scores), jnp.int32)
    # Of negative numbers the larger magnitude comes first: turn all bits but the sign.
    return bits ^ ((bits >> 31) & _INT32_MAX)


def _kth_largest(rank: Int[Array, " M"], k: Int[Array, ""]) -> Int[Array, ""]:
    """Return the largest integer that at least k elements reach, found bit by bit from the highest."""

    def set_bit(i: Int[Array, ""], threshold: Int[Array, ""]) -> Int[Array, ""]:
        # The sign bit is 1 in the smaller half, the others in the larger: as turning it, setting is exclusive or.
        candidate = threshold ^ (jnp.int32(1) << (31 - i))
        return jnp.where(_count(rank >= candidate) >= k, candidate, threshold)

    return lax.fori_loop(0, 32, set_bit, jnp.int32(_INT32_MIN))


def _count(flags: Array) -> Int[Array, ""]:
    return jnp.sum(flags.astype(jnp.int32))
