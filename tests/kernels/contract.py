"""What every implementation of the decodes keeps, as plain functions of an implementation and a case.

Small cases are held to the float64 oracle, real sizes to XLA's implementation in float32. A kernel of a device that is
not here is interpreted. On the device: `python -m pytest tests/kernels --kernel-implementation mosaic_gpu`.
"""

import contextlib
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import BlockTopKResult, DecodeResult, _xla, block_topk_decode, paged_decode, quest_decode
from pallas_kernels._dispatch import _PLATFORMS
from pallas_kernels._interpret import interpreted
from pallas_kernels._reference import (
    Reference,
    _slots,
    reference_attend,
    reference_block_topk_decode,
    reference_paged_decode,
    reference_quest_decode,
)
from tests.kernels.cases import Case

# The one tolerance table of the room: absolute error against the float64 oracle, for unit-normal inputs.
# float32: a few hundred terms of size 1 at eps 6e-8. bfloat16: weights and output are rounded to 8 bits (eps 4e-3),
# and the oracle sees the same rounded inputs. The log-sum-exp is float32 throughout, but may be the sum of the rounded
# weights: one weight of 8 bits is off by 2^-9. The dtype is that of q: quantised pages lose nothing in it.
TOLERANCE = {"float32": 3e-6, "bfloat16": 2e-2}
LSE_TOLERANCE = {"float32": 3e-6, "bfloat16": 4e-3}

_DECODES = {"block_topk_decode": block_topk_decode, "quest_decode": quest_decode, "paged_decode": paged_decode}
_ORACLES = {
    "block_topk_decode": reference_block_topk_decode,
    "quest_decode": reference_quest_decode,
    "paged_decode": reference_paged_decode,
}
SELECTING = ("block_topk_decode", "quest_decode")


def is_native(implementation: str) -> bool:
    """Return whether the implementation's device is here."""
    backend = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    return _PLATFORMS.get(implementation, backend) == backend


def mode(implementation: str) -> contextlib.AbstractContextManager[None]:
    """Return the context that the implementation runs in: interpreted where its device is not here."""
    return contextlib.nullcontext() if is_native(implementation) else interpreted()


@lru_cache
def _compiled(operation: str, implementation: str, options: tuple[tuple[str, Any], ...]) -> Any:
    decode = partial(_DECODES[operation], implementation=implementation, return_residuals=True, **dict(options))
    return jax.jit(decode)


def run(operation: str, implementation: str, case: Case, **options: Any) -> Any:
    """Run a public decode, compiled once for all cases of one shape, where freed memory holds NaN."""
    with mode(implementation):
        decode = _compiled(operation, implementation, tuple(sorted(options.items())))
        # What a kernel leaves unwritten should show: outputs are likely to be allocated where these lay.
        for shape in (case.q.shape, case.q.shape, case.q.shape[:2]):
            jnp.full(shape, jnp.nan, case.q.dtype).delete()
        return jax.block_until_ready(decode(*case.arguments(operation), **case.scales))


def check_block_topk(implementation: str, case: Case, **counts: Any) -> None:
    """Check `block_topk_decode` against the oracle: pages selected, output, log-sum-exp."""
    _check_selecting("block_topk_decode", implementation, case, counts)


def check_quest(implementation: str, case: Case, **counts: Any) -> None:
    """Check `quest_decode` against the oracle: pages selected, output, log-sum-exp."""
    _check_selecting("quest_decode", implementation, case, counts)


def check_paged(implementation: str, case: Case, **options: Any) -> None:
    """Check `paged_decode`, with or without a window, against the oracle: output and log-sum-exp."""
    got = run("paged_decode", implementation, case, **options)
    wanted = reference_paged_decode(*case.arguments("paged_decode"), **case.scales, **options)
    assert isinstance(got, DecodeResult)
    _check_result(got.out, got.lse, wanted.out, wanted.lse, case, f"paged_decode {options}")


def check_ties(implementation: str, case: Case, *, operations: tuple[str, ...] = SELECTING, **counts: Any) -> None:
    """Check that equal scores go to the lowest page, 0.0 and -0.0 being equal.

    Small integers make every score exact in any order of summation, so that the oracle's choice is the only one.
    """
    rng = np.random.default_rng(0)
    num_heads, num_kv_heads = case.q.shape[1], case.key_pages.shape[1]
    signs, held = rng.choice([-1.0, 1.0], case.key_means.shape), ~np.isnan(np.asarray(case.key_means, np.float32))
    # Few dimensions count: of so few scores many are equal.
    means = rng.integers(0, 2, case.key_means.shape) * (np.arange(case.key_means.shape[2]) < 3) * signs
    means = jnp.asarray(np.where(held, means, np.nan), case.key_means.dtype)
    q = num_heads // num_kv_heads * rng.integers(-1, 2, case.q.shape)
    for queries in (q, 0 * q):  # 0 * -1 = -0.0
        tied = case._replace(q=jnp.asarray(queries, case.q.dtype), key_means=means)
        bounds = jnp.stack([means, jnp.abs(means)], axis=2)
        tied = tied._replace(key_bounds=bounds)
        for operation in operations:
            wanted = _ORACLES[operation](*tied.arguments(operation), **tied.scales, **counts)
            got = run(operation, implementation, tied, **counts)
            assert _as_lists(got.selected, case.max_pages) == wanted.read, f"{operation} {counts}: ties"


def check_full_budget(implementation: str, case: Case, *, operations: tuple[str, ...] = SELECTING) -> None:
    """Check that a budget that covers the table gives the dense result, bit for bit, and every page held."""
    dense = run("paged_decode", implementation, case)
    for operation, num_blocks in zip(operations, (case.max_pages, case.max_pages + 1), strict=False):
        got = run(operation, implementation, case, num_blocks=num_blocks)
        for name in ("out", "lse"):
            np.testing.assert_array_equal(np.asarray(getattr(got, name)), np.asarray(getattr(dense, name)))
        wanted = np.where(_held_pages(case), np.arange(case.max_pages), case.max_pages)[:, None]
        np.testing.assert_array_equal(got.selected, np.broadcast_to(wanted, got.selected.shape))


def check_short(implementation: str, case: Case, *, operations: tuple[str, ...] = SELECTING, **counts: Any) -> None:
    """Check that a budget that covers all that the sequences hold, not the table, gives the dense result."""
    assert (_held_pages(case).sum(axis=1) <= counts["num_blocks"]).all()
    dense = run("paged_decode", implementation, case)
    for operation in operations:
        got = run(operation, implementation, case, **counts)
        _check_result(got.out, got.lse, dense.out, dense.lse, case, f"{operation}: all held pages fit")


def check_same_bits(
    implementation: str, case: Case, *, operations: tuple[str, ...] = tuple(_DECODES), **counts: Any
) -> None:
    """Check what must not change a bit: a second run, another order of the pool, what lies in unused memory."""
    num_pages = case.key_pages.shape[0]
    order = np.random.default_rng(0).permutation(num_pages)
    table = np.asarray(case.page_table)
    inside = (table >= 0) & (table < num_pages)
    place = np.argsort(order)[np.clip(table, 0, num_pages - 1)]
    pools = ("key_pages", "value_pages", "key_means", "key_bounds", *case.scales)
    moved = case._replace(
        page_table=jnp.asarray(np.where(inside, place, table), case.page_table.dtype),
        **{name: getattr(case, name)[order] for name in pools},
    )
    cleaned = case._replace(
        page_table=jnp.asarray(np.where(_held_pages(case), table, 0), case.page_table.dtype),
        **{name: _without_poison(getattr(case, name)) for name in pools},
    )
    for operation in operations:
        options = counts if operation in SELECTING else {}
        first = run(operation, implementation, case, **options)
        for what, other in {"a second run": case, "another order of the pool": moved, "clean padding": cleaned}.items():
            again = run(operation, implementation, other, **options)
            for name, left, right in zip(first._fields, first, again, strict=True):
                np.testing.assert_array_equal(
                    np.asarray(left), np.asarray(right), err_msg=f"{operation}: {what} changes {name}"
                )


def check_against_xla(operation: str, implementation: str, case: Case, **options: Any) -> None:
    """Check a decode of a real size against XLA's arithmetic in float32, on the device: the oracle takes too long.

    The pages selected must score as XLA selects, within rounding; output and log-sum-exp are those of these pages.
    """
    got = run(operation, implementation, case, **options)
    if operation == "paged_decode":
        everything = (case.q.shape[0], case.key_pages.shape[1], case.max_pages)
        selected = jax.lax.broadcasted_iota(jnp.int32, everything, 2)
    else:
        selected = got.selected
        lost = _score_lost(operation, case, selected, **options)
        assert float(lost.max()) <= 1.0, f"{operation} {options}: a page was left that scores more; {_quantiles(lost)}"
    out, lse = _attend_exactly(case, selected)
    _check_result(got.out, got.lse, np.asarray(out), np.asarray(lse), case, f"{operation} {options}")


def assert_close(got: Any, wanted: Any, tolerance: float, what: str) -> None:
    """Check absolute errors; where one is too large say how all are spread."""
    got, wanted = np.asarray(got, np.float64), np.asarray(wanted, np.float64)
    assert got.shape == wanted.shape, f"{what}: shape {got.shape}, wanted {wanted.shape}"
    with np.errstate(invalid="ignore"):
        error = np.where(got == wanted, 0.0, np.abs(got - wanted))  # -inf equals -inf
    is_bad = ~(error <= tolerance)  # NaN is bad
    if is_bad.any():
        worst = tuple(int(i) for i in np.argwhere(is_bad)[np.argmax(np.nan_to_num(error, nan=np.inf)[is_bad])])
        raise AssertionError(
            f"{what}: {is_bad.sum()} of {is_bad.size} off by more than {tolerance}; {_quantiles(error)}; "
            f"at {worst} got {got[worst]}, wanted {wanted[worst]}"
        )


def _check_selecting(operation: str, implementation: str, case: Case, counts: dict[str, Any]) -> None:
    got = run(operation, implementation, case, **counts)
    assert isinstance(got, BlockTopKResult)
    wanted = _ORACLES[operation](*case.arguments(operation), **case.scales, **counts)
    what = f"{operation} {counts}"
    num_listed = min(counts["num_blocks"], case.max_pages)
    assert got.selected.shape == (case.q.shape[0], case.key_pages.shape[1], num_listed), what
    selected = _as_lists(got.selected, case.max_pages)
    for b, row in enumerate(np.asarray(got.selected).tolist()):
        for k, listed in enumerate(row):
            chosen, best = selected[b][k], wanted.read[b][k]
            padding = [case.max_pages] * (num_listed - len(best))
            assert listed == sorted(set(chosen)) + padding, f"{what}: {listed} at {b, k}, wanted {best + padding}"
            if chosen != best:
                _check_swap(operation, wanted, case, b, k, chosen)
    read, scale = _slots(selected, case.page_len), counts.get("scale")
    out, lse = reference_attend(*case.arguments("paged_decode"), read=read, scale=scale, **case.scales)
    _check_result(got.out, got.lse, out, lse, case, what)


def _check_swap(operation: str, wanted: Reference, case: Case, b: int, k: int, chosen: list[int]) -> None:
    """Allow another page where the oracle's scores differ by no more than float32 products may be off."""
    scores, best = wanted.scores[b][k], wanted.read[b][k]
    gap = max(scores[m] for m in set(best) - set(chosen)) - min(scores[m] for m in set(chosen) - set(best))
    group, head_dim = case.q.shape[1] // case.key_pages.shape[1], case.q.shape[2]
    pages = np.asarray(case.page_table)[b, : len(scores)]
    if operation == "quest_decode":
        largest = np.abs(np.asarray(case.key_bounds, np.float64)[pages, k]).max(axis=1)
    else:
        largest = np.abs(np.asarray(case.key_means, np.float64)[pages, k]) / np.sqrt(head_dim)
    q = np.abs(np.asarray(case.q[b, k * group : (k + 1) * group], np.float64))
    rounding = 2 * (head_dim + group) * 2.0**-24 * (q @ largest.T).mean(axis=0).max()
    assert gap <= rounding, f"{operation}: read {chosen} at {b, k}, wanted {best}; its score is lower by {gap}"


def _check_result(out: jax.Array, lse: jax.Array, wanted: Any, wanted_lse: Any, case: Case, what: str) -> None:
    assert out.dtype == case.q.dtype, f"{what}: out is {out.dtype}, wanted {case.q.dtype}"
    assert lse.dtype == jnp.float32, f"{what}: lse is {lse.dtype}, wanted float32"
    dtype = case.q.dtype.name
    assert_close(out, wanted, TOLERANCE[dtype], f"{what}: out")
    assert_close(lse, wanted_lse, LSE_TOLERANCE[dtype], f"{what}: lse")


@partial(jax.jit, static_argnames=("operation", "num_blocks", "num_sink_blocks", "num_local_blocks"))
def _score_lost(
    operation: str,
    case: Case,
    selected: jax.Array,
    *,
    num_blocks: int,
    num_sink_blocks: int = 0,
    num_local_blocks: int = 1,
) -> jax.Array:
    """Return [B, K] by how much the best page left out beats the worst one read, in units of the rounding."""
    batch_size, num_heads, head_dim = case.q.shape
    group = num_heads // case.key_pages.shape[1]
    q = case.q.astype(jnp.float32).reshape(batch_size, -1, group, head_dim)
    summaries = case.key_bounds if operation == "quest_decode" else case.key_means
    summaries = _xla.gather_heads(summaries, case.page_table[:, None, :]).astype(jnp.float32)
    dot = partial(jnp.einsum, "BKGH,BKMH->BKM", precision=jax.lax.Precision.HIGHEST)
    if operation == "quest_decode":
        scores = dot(jnp.minimum(q, 0), summaries[:, :, :, 0]) + dot(jnp.maximum(q, 0), summaries[:, :, :, 1])
        summaries = jnp.max(jnp.abs(summaries), axis=3)
    else:
        scores = dot(q, summaries)
    num_held = -(-case.lengths // case.page_len)[:, None, None]
    page = jnp.arange(case.max_pages, dtype=jnp.int32)[None, None]
    is_read = jnp.any(selected[..., None] == page[None], axis=2)
    is_held = page < num_held
    always = is_held & ((page < num_sink_blocks) | (page >= num_held - num_local_blocks))
    assert_all = jnp.all(is_read | ~always, axis=2) & jnp.all(is_held | ~is_read, axis=2)
    assert_all &= jnp.sum(is_read, axis=2) == jnp.minimum(num_held[..., 0], num_blocks)
    worst = jnp.min(jnp.where(is_read & ~always, scores, jnp.inf), axis=2)
    best = jnp.max(jnp.where(is_held & ~is_read, scores, -jnp.inf), axis=2)
    largest = jnp.max(jnp.where(is_held, dot(jnp.abs(q), jnp.abs(summaries)), 0.0), axis=2)
    # Both sides round.
    rounding = 4 * (head_dim + group) * 2.0**-24 * largest
    lost = jnp.where(best == -jnp.inf, 0.0, jnp.where(worst == jnp.inf, 0.0, (best - worst) / rounding))
    return jnp.where(assert_all, lost, jnp.inf)


@jax.jit
def _attend_exactly(case: Case, selected: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Attend to the selected pages in float32, one sequence at a time so that the copies fit."""

    def attend(row: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        q, table, length, pages = (array[None] for array in row)
        ids = jnp.take_along_axis(table[:, None, :], pages, axis=2, mode="clip")
        keys, values = (_xla.gather_heads(pool, ids).astype(jnp.float32) for pool in (case.key_pages, case.value_pages))
        if case.scales:
            keys, values = (
                entries * _xla.gather_heads(scales, ids).astype(jnp.float32)[..., None]
                for entries, scales in ((keys, case.key_scales), (values, case.value_scales))
            )
        slots = pages[..., None] * case.page_len + jnp.arange(case.page_len, dtype=pages.dtype)[None, None, None]
        flat = (1, keys.shape[1], -1)
        mask = (slots < length[:, None, None, None]).reshape(flat)
        keys, values = (array.reshape(*flat, array.shape[-1]) for array in (keys, values))
        out, lse = _xla.attend(q.astype(jnp.float32), keys, values, mask, q.shape[2] ** -0.5)
        return out[0], lse[0]

    return jax.lax.map(attend, (case.q, case.page_table, case.lengths, selected))


def _without_poison(pool: jax.Array) -> jax.Array:
    """Return the pool with zeros for what `make_case` poisons it with."""
    return jnp.where(pool == -128, 0, pool) if pool.dtype == jnp.int8 else jnp.where(jnp.isnan(pool), 0.0, pool)


def _held_pages(case: Case) -> np.ndarray:
    return np.arange(case.max_pages) * case.page_len < np.asarray(case.lengths)[:, None]


def _as_lists(selected: jax.Array, max_pages: int) -> list[list[list[int]]]:
    return [[[m for m in pages if m < max_pages] for pages in sequence] for sequence in np.asarray(selected).tolist()]


def _quantiles(error: Any) -> str:
    found = np.quantile(np.nan_to_num(np.asarray(error, np.float64), nan=np.inf), [0.5, 0.9, 0.99, 1])
    return "quantiles 50/90/99/100%: " + ", ".join(f"{value:.2g}" for value in found)
