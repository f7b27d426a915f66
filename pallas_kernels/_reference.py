"""The oracle: decode attention over pages, one sequence and head at a time, in float64 NumPy.

Called by tests only, and itself tested by hand-worked cases. Slow and obvious on purpose; it shares nothing with the
implementations but the validator.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int, Real

from . import _validate


class Reference(NamedTuple):
    """Hold what a decode should return, in float64.

    Attributes:
        out: Attention output [B, N, H].
        lse: Log-sum-exp of the logits read [B, N]; -inf where none was.
        read: Pages, or tokens, read by each sequence and KV head, ascending.
        scores: Score of each page, or token, that a sequence holds; empty where nothing is selected.
    """

    out: np.ndarray
    lse: np.ndarray
    read: list[list[list[int]]]
    scores: list[list[np.ndarray]]


def reference_key_means(
    key_pages: Real[Array, "R K P H"],
    page_table: Int[Array, "B M"],
    lengths: Int[Array, " B"],
    *,
    key_scales: Float[Array, "R K P"] | None = None,
) -> np.ndarray:
    """Return the mean key [R, K, H] over the held slots of each page that a sequence holds; NaN for the others."""
    keys_RKPH = _entries(key_pages, key_scales)
    means_RKH = np.full(keys_RKPH.shape[:2] + keys_RKPH.shape[3:], np.nan)
    for page, held in _held_slots(page_table, lengths, keys_RKPH.shape[2]):
        means_RKH[page] = keys_RKPH[page, :, :held].mean(axis=1)
    return means_RKH


def reference_key_bounds(
    key_pages: Real[Array, "R K P H"],
    page_table: Int[Array, "B M"],
    lengths: Int[Array, " B"],
    *,
    key_scales: Float[Array, "R K P"] | None = None,
) -> np.ndarray:
    """Return the smallest and largest key [R, K, 2, H] over the held slots of each page that a sequence holds."""
    keys_RKPH = _entries(key_pages, key_scales)
    bounds_RK2H = np.full((*keys_RKPH.shape[:2], 2, keys_RKPH.shape[3]), np.nan)
    for page, held in _held_slots(page_table, lengths, keys_RKPH.shape[2]):
        bounds_RK2H[page, :, 0] = keys_RKPH[page, :, :held].min(axis=1)
        bounds_RK2H[page, :, 1] = keys_RKPH[page, :, :held].max(axis=1)
    return bounds_RK2H


def reference_block_topk_decode(
    q: Float[Array, "B N H"],
    key_pages: Real[Array, "R K P H"],
    value_pages: Real[Array, "R K P H"],
    key_means: Float[Array, "R K H"],
    page_table: Int[Array, "B M"],
    lengths: Int[Array, " B"],
    *,
    num_blocks: int,
    num_sink_blocks: int = 0,
    num_local_blocks: int = 1,
    key_scales: Float[Array, "R K P"] | None = None,
    value_scales: Float[Array, "R K P"] | None = None,
    scale: float | None = None,
) -> Reference:
    """Read the pages with the largest group-mean product of query and mean key."""
    _validate.check_pages(key_pages, value_pages, page_table, lengths, key_scales, value_scales)
    _validate.check_query(q, key_pages, page_table, scale)
    _validate.check_key_means(key_means, key_pages)
    _validate.check_blocks(num_blocks, num_sink_blocks, num_local_blocks)
    (num_kv_heads, page_len), group = key_pages.shape[1:3], q.shape[1] // key_pages.shape[1]
    means_RKH, q_BNH = np.asarray(key_means, np.float64), np.asarray(q, np.float64)
    scores = []
    for b, length in enumerate(np.asarray(lengths).tolist()):
        pages = np.asarray(page_table)[b, : _num_pages(length, page_len)]
        scores.append([])
        for k in range(num_kv_heads):
            q_GH = q_BNH[b, k * group : (k + 1) * group]
            scores[b].append((q_GH @ means_RKH[pages, k].T).mean(axis=0) / math.sqrt(q.shape[2]))
    counts = (num_blocks, num_sink_blocks, num_local_blocks)
    selected = [[_choose(score_M, *counts) for score_M in score_KM] for score_KM in scores]
    pools, slots = (key_pages, value_pages, page_table, lengths), _slots(selected, page_len)
    found = reference_attend(q, *pools, slots, scale, key_scales=key_scales, value_scales=value_scales)
    return Reference(*found, selected, scores)


def reference_quest_decode(
    q: Float[Array, "B N H"],
    key_pages: Real[Array, "R K P H"],
    value_pages: Real[Array, "R K P H"],
    key_bounds: Float[Array, "R K 2 H"],
    page_table: Int[Array, "B M"],
    lengths: Int[Array, " B"],
    *,
    num_blocks: int,
    num_sink_blocks: int = 0,
    num_local_blocks: int = 1,
    key_scales: Float[Array, "R K P"] | None = None,
    value_scales: Float[Array, "R K P"] | None = None,
    scale: float | None = None,
) -> Reference:
    """Read the pages with the largest group-mean bound of query . key."""
    _validate.check_pages(key_pages, value_pages, page_table, lengths, key_scales, value_scales)
    _validate.check_query(q, key_pages, page_table, scale)
    _validate.check_key_bounds(key_bounds, key_pages)
    _validate.check_blocks(num_blocks, num_sink_blocks, num_local_blocks)
    group, page_len = q.shape[1] // key_pages.shape[1], key_pages.shape[2]
    q_BNH, bounds_RK2H = np.asarray(q, np.float64), np.asarray(key_bounds, np.float64)
    scores = []
    for b, length in enumerate(np.asarray(lengths).tolist()):
        scores.append([])
        for k in range(key_pages.shape[1]):
            score_M = np.zeros(_num_pages(length, page_len))
            for m in range(len(score_M)):
                low_H, high_H = bounds_RK2H[np.asarray(page_table)[b, m], k]
                for n in range(k * group, (k + 1) * group):
                    score_M[m] += np.maximum(q_BNH[b, n] * low_H, q_BNH[b, n] * high_H).sum() / group
            scores[b].append(score_M)
    counts = (num_blocks, num_sink_blocks, num_local_blocks)
    selected = [[_choose(score_M, *counts) for score_M in score_KM] for score_KM in scores]
    pools, slots = (key_pages, value_pages, page_table, lengths), _slots(selected, page_len)
    found = reference_attend(q, *pools, slots, scale, key_scales=key_scales, value_scales=value_scales)
    return Reference(*found, selected, scores)


def reference_paged_decode(
    q: Float[Array, "B N H"],
    key_pages: Real[Array, "R K P H"],
    value_pages: Real[Array, "R K P H"],
    page_table: Int[Array, "B M"],
    lengths: Int[Array, " B"],
    *,
    window_len: int | None = None,
    sink_len: int = 0,
    key_scales: Float[Array, "R K P"] | None = None,
    value_scales: Float[Array, "R K P"] | None = None,
    scale: float | None = None,
) -> Reference:
    """Read the whole context, or its newest and first tokens."""
    _validate.check_pages(key_pages, value_pages, page_table, lengths, key_scales, value_scales)
    _validate.check_query(q, key_pages, page_table, scale)
    _validate.check_window(window_len, sink_len, None, key_pages, page_table)
    read = [
        [[s for s in range(length) if window_len is None or s < sink_len or s >= length - window_len]]
        * key_pages.shape[1]
        for length in np.asarray(lengths).tolist()
    ]
    pools = (key_pages, value_pages, page_table, lengths)
    found = reference_attend(q, *pools, read, scale, key_scales=key_scales, value_scales=value_scales)
    return Reference(*found, read, [])


def reference_topk_decode(
    q: Float[Array, "B N H"],
    key_pages: Real[Array, "R K P H"],
    value_pages: Real[Array, "R K P H"],
    page_table: Int[Array, "B M"],
    lengths: Int[Array, " B"],
    *,
    budget_len: int,
    sink_len: int = 0,
    local_len: int = 0,
    scale: float | None = None,
) -> Reference:
    """Read the first, the newest and the tokens with the largest group-mean product of query and key."""
    group, page_len = q.shape[1] // key_pages.shape[1], key_pages.shape[2]
    q_BNH, keys_RKPH = np.asarray(q, np.float64), np.asarray(key_pages, np.float64)
    scores = []
    for b, length in enumerate(np.asarray(lengths).tolist()):
        scores.append([])
        for k in range(key_pages.shape[1]):
            key_SH = _tokens(keys_RKPH[:, k], np.asarray(page_table)[b], length, page_len)
            scores[b].append((q_BNH[b, k * group : (k + 1) * group] @ key_SH.T).mean(axis=0))
    read = [[_choose(score_S, budget_len, sink_len, local_len) for score_S in score_KS] for score_KS in scores]
    return Reference(*reference_attend(q, key_pages, value_pages, page_table, lengths, read, scale), read, scores)


def reference_attend(
    q: Float[Array, "B N H"],
    key_pages: Real[Array, "R K P H"],
    value_pages: Real[Array, "R K P H"],
    page_table: Int[Array, "B M"],
    lengths: Int[Array, " B"],
    read: list[list[list[int]]],
    scale: float | None,
    *,
    key_scales: Float[Array, "R K P"] | None = None,
    value_scales: Float[Array, "R K P"] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Attend with every head to the positions `read[b][k]` below the sequence's length: output and log-sum-exp."""
    group, page_len = q.shape[1] // key_pages.shape[1], key_pages.shape[2]
    q_BNH = np.asarray(q, np.float64) * (1 / math.sqrt(q.shape[2]) if scale is None else scale)
    keys_RKPH, values_RKPH = _entries(key_pages, key_scales), _entries(value_pages, value_scales)
    out_BNH, lse_BN = np.zeros(q.shape), np.full(q.shape[:2], -np.inf)
    for b, length in enumerate(np.asarray(lengths).tolist()):
        for n in range(q.shape[1]):
            positions = [s for s in read[b][n // group] if s < length]
            if not positions:
                continue
            pages = np.asarray(page_table)[b]
            key_SH = _tokens(keys_RKPH[:, n // group], pages, length, page_len)[positions]
            value_SH = _tokens(values_RKPH[:, n // group], pages, length, page_len)[positions]
            logit_S = key_SH @ q_BNH[b, n]
            weight_S = np.exp(logit_S - logit_S.max())
            out_BNH[b, n] = weight_S @ value_SH / weight_S.sum()
            lse_BN[b, n] = logit_S.max() + math.log(weight_S.sum())
    return out_BNH, lse_BN


def _entries(pages: Real[Array, "R K P H"], scales: Float[Array, "R K P"] | None) -> np.ndarray:
    """Return what the pages stand for: quantised ones times the scale of each vector."""
    entries_RKPH = np.asarray(pages, np.float64)
    return entries_RKPH if scales is None else entries_RKPH * np.asarray(scales, np.float64)[..., None]


def _choose(score_M: np.ndarray, num_read: int, num_first: int, num_newest: int) -> list[int]:
    """Return the first, the newest and then the best of the scored pages or tokens, `num_read` in all, ascending."""
    num_held = len(score_M)
    always = [m for m in range(num_held) if m < num_first or m >= num_held - num_newest]
    rest = sorted(set(range(num_held)) - set(always), key=lambda m: (-score_M[m], m))
    return sorted(always + rest[: num_read - len(always)])


def _slots(selected: list[list[list[int]]], page_len: int) -> list[list[list[int]]]:
    """Return the positions of the slots of the selected pages."""
    return [[[m * page_len + p for m in pages for p in range(page_len)] for pages in sequence] for sequence in selected]


def _held_slots(page_table: Int[Array, "B M"], lengths: Int[Array, " B"], page_len: int) -> list[tuple[int, int]]:
    """Return every page that a sequence holds, with the number of its held slots."""
    return [
        (int(pages[m]), min(page_len, length - m * page_len))
        for pages, length in zip(np.asarray(page_table), np.asarray(lengths).tolist(), strict=True)
        for m in range(_num_pages(length, page_len))
    ]


def _tokens(pool_RPH: np.ndarray, pages_M: np.ndarray, length: int, page_len: int) -> np.ndarray:
    """Return the entries [S, H] that one sequence holds, in order of position."""
    held = pool_RPH[pages_M[: _num_pages(length, page_len)]]
    return held.reshape(-1, pool_RPH.shape[-1])[:length]


def _num_pages(length: int, page_len: int) -> int:
    return -(-length // page_len)
