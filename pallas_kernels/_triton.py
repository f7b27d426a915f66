"""The Triton implementation, for NVIDIA GPUs from Ampere on: score, select and attend, in three launches.

Called by `_dispatch` with validated arguments. Every sequence b and KV head k has one program of a launch, or several:

    page table [B, M], summaries [R, K, C] -> scores [B, K, M] -> selected pages [B, K, J] -> out [X, B, N, H] -> out
                                    _score_kernel        _select_kernel            _attend_kernel  merge_partials

All gathers go through arrays of page ids, so pages may have any length. What is not to be read is masked in the load:
no address is formed from a garbage id, and no NaN enters a product.

Quantised pages are loaded as they are and widened in registers; the scale of a key multiplies its logits, that of a
value its weights. An A100 knows no float8, so its bits are taken apart: s eeee mmm are the upper bits of a float16 that
is 2^-8 of it, exactly, subnormal numbers too, and the scale makes up for 2^8. (NaN in what is read becomes 480.)

Pallas' Triton backend is deprecated since JAX 0.11. The modules `_triton*`, and the word "triton" in `_dispatch`,
`_interpret` and `_validate`, are all that goes with it; where JAX has none, the import fails and `_dispatch` takes
XLA's. Left out: GPUs before Ampere (XLA compiles no Triton for a T4), masks of tokens.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt
from jaxtyping import Array, Float, Int, Real

from ._merge import merge_partials
from ._quantise import LARGEST, is_quantised, operand_dtype
from ._triton_append import append_kv as append_kv
from ._triton_append import rotate_and_append_kv as rotate_and_append_kv
from ._triton_launch import launch, load_entries, load_rows, rows_of, sequence_and_head
from ._triton_select import MAX_PAGES, score_pages, select_pages

_ROWS = 16  # of the smallest matrix product: a group of query heads is padded to it
_FIRST_CAPABILITY = 8  # Ampere
_HEAD_DIMS = (64, 128)
_DTYPES = ("bfloat16", "float16", "float32")
_PAGE_DTYPES = (*_DTYPES, *LARGEST)
_DEFAULT_SMS = 108  # A100
_SIGNED_BYTES = 2**31
_PROGRAMS_PER_SM = 4
_MIN_STEPS = 4  # of a part: fewer do not repay its merging
# Of the time that a step of a full round takes: a step of a round of few programs (16 of them, at 68 sequences of 4,096
# tokens in benchmarks/results/decode_serving_h100.json), and about what merging the parts takes.
_LEAST_ROUND, _MERGE_STEPS = 0.15, 0.6
_MAX_ROUNDS = 8
_TILE_BYTES = 16 * 1024  # of keys in one step, as much again of values: two programs share an L4's 100 KiB


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """Say how the work is laid out on the GPU; None is chosen by formula.

    Attributes:
        num_splits: Parts into which the tokens of one sequence and KV head are cut, merged by log-sum-exp.
        tokens_per_step: Tokens that a program multiplies at a time, a power of two of at least 16: some pages, or a
            part of one.
        num_warps: Warps of the program that attends, a power of two.
        num_stages: Stages of the compiler's pipeline: 3 loads entries one step ahead and page ids two, 5 doubles that
            and the shared memory.
    """

    num_splits: int | None = None
    tokens_per_step: int | None = None
    num_warps: int | None = None
    num_stages: int = 3

    def __post_init__(self) -> None:
        for name in ("num_splits", "num_stages"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}")
        for name, least in (("tokens_per_step", _ROWS), ("num_warps", 1)):
            value = getattr(self, name)
            if value is not None and (value < least or value & (value - 1)):
                raise ValueError(f"{name} must be a power of two of at least {least}; got {value}")


def unsupported(
    q: Float[Array, "B N H"],
    key_pages: Real[Array, "R K P H"],
    page_table: Int[Array, "B M"],
    *,
    summaries: Float[Array, "R K C"] | None = None,
    num_blocks: int | None = None,
    window_len: int | None = None,
    sink_len: int = 0,
) -> str | None:
    """Return why this implementation cannot run these arrays, or None if it can."""
    num_kv_heads, _, head_dim = key_pages.shape[1:]
    group, max_pages = q.shape[1] // num_kv_heads, page_table.shape[1]
    device = jax.local_devices()[0]
    capability = str(getattr(device, "compute_capability", None))
    wanted = [
        # Elsewhere it is interpreted, or lowered for a device that is not here.
        (
            device.platform != "gpu" or _major(capability) >= _FIRST_CAPABILITY,
            f"on NVIDIA GPUs of compute capability {_FIRST_CAPABILITY}.0 or higher; got {capability}",
        ),
        (key_pages.dtype.name in _PAGE_DTYPES, f"pages of {', '.join(_PAGE_DTYPES)}; got {key_pages.dtype}"),
        (head_dim in _HEAD_DIMS, f"head_dim 64 or 128; got {head_dim}"),
        # Pallas counts offsets up to 2^32 bytes in signed 32 bits.
        (
            key_pages.dtype.itemsize > 1 or not _SIGNED_BYTES < key_pages.size <= 2 * _SIGNED_BYTES,
            f"8-bit pools of up to 2 GiB, or of more than 4; got {key_pages.size} entries",
        ),
        (group <= _ROWS, f"at most {_ROWS} query heads for each KV head; got {group}"),
    ]
    if summaries is not None:
        wanted += [
            (summaries.dtype.name in _DTYPES, f"summaries of {', '.join(_DTYPES)}; got {summaries.dtype}"),
            (max_pages <= MAX_PAGES, f"selection among at most {MAX_PAGES} pages; got {max_pages}"),
        ]
    missing = [what for holds, what in wanted if not holds]
    return f"implementation 'triton' runs {'; '.join(missing)}. Use 'xla', or None to choose" if missing else None


def unsupported_append(
    heads: Float[Array, "B N H"], key_pages: Real[Array, "R K P H"], page_table: Int[Array, "B M"]
) -> str | None:
    """Return why this implementation cannot append to these pages, or None if it can."""
    reason, page_len = unsupported(heads, key_pages, page_table), key_pages.shape[2]
    if reason is None and page_len & (page_len - 1):
        reason = f"implementation 'triton' appends to pages of a power of two of tokens; got {page_len}. Use 'xla'"
    if reason is None and is_quantised(key_pages):
        reason = f"implementation 'triton' appends to pages of {', '.join(_DTYPES)}; got {key_pages.dtype}. Use 'xla'"
    return reason


def block_topk_decode(
    q: Float[Array, "B N H"],
    key_pages: Real[Array, "R K P H"],
    value_pages: Real[Array, "R K P H"],
    probe: Float[Array, "B K C"],
    summaries: Float[Array, "R K C"],
    page_table: Int[Array, "B M"],
    lengths: Int[Array, " B"],
    *,
    num_blocks: int,
    num_sink_blocks: int,
    num_local_blocks: int,
    scale: float,
    key_scales: Float[Array, "R K P"] | None = None,
    value_scales: Float[Array, "R K P"] | None = None,
    tuning: Tuning | None = None,
) -> tuple[Float[Array, "B N H"], Float[Array, "B N"], Int[Array, "B K J"]]:
    """Select pages by their summaries and attend to them; also the log-sum-exp and the selected pages."""
    page_len = key_pages.shape[2]
    page_table, lengths = page_table.astype(jnp.int32), lengths.astype(jnp.int32)
    scores = score_pages(probe, summaries, page_table, lengths, page_len=page_len)
    selected, page_ids, num_tokens = select_pages(
        scores,
        page_table,
        lengths,
        page_len=page_len,
        num_blocks=num_blocks,
        num_sink_blocks=num_sink_blocks,
        num_local_blocks=num_local_blocks,
    )
    arrays = (q, key_pages, value_pages, key_scales, value_scales, page_ids, num_tokens)
    return *_attend(*arrays, scale=scale, tuning=tuning), selected


def paged_decode(
    q: Float[Array, "B N H"],
    key_pages: Real[Array, "R K P H"],
    value_pages: Real[Array, "R K P H"],
    page_table: Int[Array, "B M"],
    lengths: Int[Array, " B"],
    *,
    scale: float,
    window_len: int | None = None,
    sink_len: int = 0,
    key_scales: Float[Array, "R K P"] | None = None,
    value_scales: Float[Array, "R K P"] | None = None,
    tuning: Tuning | None = None,
) -> tuple[Float[Array, "B N H"], Float[Array, "B N"]]:
    """Read the whole context, or its newest `window_len` and first `sink_len` tokens; also the log-sum-exp."""
    page_ids, num_tokens = page_table.astype(jnp.int32)[:, None], lengths.astype(jnp.int32)[:, None]
    arrays = (q, key_pages, value_pages, key_scales, value_scales, page_ids, num_tokens)
    return _attend(*arrays, scale=scale, tuning=tuning, window_len=window_len, sink_len=sink_len)


def _attend(
    q: Float[Array, "B N H"],
    key_pages: Real[Array, "R K P H"],
    value_pages: Real[Array, "R K P H"],
    key_scales: Float[Array, "R K P"] | None,
    value_scales: Float[Array, "R K P"] | None,
    page_ids: Int[Array, "B #K J"],
    num_tokens: Int[Array, "B #K"],
    *,
    scale: float,
    tuning: Tuning | None,
    window_len: int | None = None,
    sink_len: int = 0,
) -> tuple[Float[Array, "B N H"], Float[Array, "B N"]]:
    """Attend to the first `num_tokens` of the listed pages, or to the window and the sinks among them."""
    tuning = Tuning() if tuning is None else tuning
    batch_size, num_heads, head_dim = q.shape
    num_kv_heads, page_len = key_pages.shape[1:3]
    operand = operand_dtype(q, key_pages)
    tokens_per_step = tuning.tokens_per_step or _tokens_per_step(head_dim, operand)
    max_len = page_ids.shape[2] * page_len
    if window_len is not None:
        max_len = min(max_len, window_len + sink_len)
    num_splits = tuning.num_splits or _num_splits(batch_size * num_kv_heads, pl.cdiv(max_len, tokens_per_step))
    kernel = partial(
        _attend_kernel,
        group=num_heads // num_kv_heads,
        tokens_per_step=tokens_per_step,
        scale=scale,
        window_len=window_len,
        sink_len=sink_len,
    )
    out_dtype = q.dtype if num_splits == 1 else jnp.float32
    out, lse = launch(
        kernel,
        grid=(batch_size * num_kv_heads, num_splits),
        out_shape=(
            jax.ShapeDtypeStruct((num_splits, batch_size, num_heads, head_dim), out_dtype),
            jax.ShapeDtypeStruct((num_splits, batch_size, num_heads), jnp.float32),
        ),
        # Float32 products are not for tensor cores: the operands lie in registers, of which four warps have too few.
        num_warps=tuning.num_warps or (8 if operand == jnp.float32 else 4),
        num_stages=tuning.num_stages,
    )(q.astype(operand), key_pages, value_pages, key_scales, value_scales, page_ids, num_tokens)
    if num_splits == 1:
        return out[0], lse[0]
    merged = merge_partials(out, lse)
    return merged.out.astype(q.dtype), merged.lse


def _attend_kernel(
    q_ref: Any,  # [B, N, H]
    key_ref: Any,  # [R, K, P, H]
    value_ref: Any,  # [R, K, P, H]
    key_scale_ref: Any,  # [R, K, P]; None where pages are not quantised
    value_scale_ref: Any,  # [R, K, P] or None
    page_id_ref: Any,  # [B, K or 1, J] int32
    num_tokens_ref: Any,  # [B, K or 1] int32
    out_ref: Any,  # [X, B, N, H]
    lse_ref: Any,  # [X, B, N] float32
    *,
    group: int,
    tokens_per_step: int,
    scale: float,
    window_len: int | None,
    sink_len: int,
) -> None:
    num_kv_heads, page_len, head_dim = key_ref.shape[1:]
    b, k = sequence_and_head(num_kv_heads)
    part, num_splits = pl.program_id(1), out_ref.shape[0]
    own = k if page_id_ref.shape[1] > 1 else 0
    length = jnp.minimum(num_tokens_ref[b, own], page_id_ref.shape[2] * page_len)
    # The steps run over the sinks that the window does not reach, then over the window, and are cut into even parts.
    window_start = jnp.int32(0) if window_len is None else jnp.maximum(length - window_len, 0)
    sink_end = jnp.minimum(window_start, sink_len)
    num_sink_steps, first_step = pl.cdiv(sink_end, tokens_per_step), lax.div(window_start, tokens_per_step)
    num_steps = num_sink_steps + pl.cdiv(length, tokens_per_step) - first_step
    steps_per_part = pl.cdiv(num_steps, num_splits)
    begin = part * steps_per_part
    end = jnp.minimum(begin + steps_per_part, num_steps)

    row = jnp.arange(_ROWS, dtype=jnp.int32)
    head = k * group + row
    q = load_rows(q_ref, (b, head), row < group)  # [16, H]
    dot = partial(plt.dot, precision=lax.Precision.HIGHEST if q.dtype == jnp.float32 else None)
    load = partial(load_entries, dtype=q.dtype)

    def step(i: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        total_out, total, peak = state
        in_sinks = i < num_sink_steps
        start = jnp.where(in_sinks, i, i - num_sink_steps + first_step) * tokens_per_step
        position = start + jnp.arange(tokens_per_step, dtype=jnp.int32)
        is_read = position < jnp.where(in_sinks, sink_end, length)
        if window_len is not None:
            is_read &= position >= jnp.where(in_sinks, 0, window_start)
        page = lax.div(position, jnp.full_like(position, page_len))
        page_id = plt.load(page_id_ref.at[b, own, page], mask=is_read, other=0)
        entry = page_id, k, position - page * page_len
        keys, key_scale = load(key_ref, key_scale_ref, entry, is_read)  # [T, H], [1, T]
        values, value_scale = load(value_ref, value_scale_ref, entry, is_read)
        logits = dot(q, keys, trans_b=True) * (key_scale * (scale * math.log2(math.e)))  # [16, T], in powers of two
        logits = jnp.where(is_read[None, :], logits, -jnp.inf)
        new_peak = jnp.maximum(peak, jnp.max(logits, axis=1))
        base = jnp.where(new_peak == -jnp.inf, 0.0, new_peak)
        weights = jnp.exp2(logits - base[:, None])
        fade = jnp.exp2(peak - base)
        total_out = total_out * fade[:, None] + dot((weights * value_scale).astype(values.dtype), values)
        return total_out, total * fade + jnp.sum(weights, axis=1), new_peak

    nothing = jnp.zeros((_ROWS, head_dim), jnp.float32), jnp.zeros(_ROWS, jnp.float32), jnp.full(_ROWS, -jnp.inf)
    total_out, total, peak = lax.fori_loop(begin, end, step, nothing)
    safe = jnp.where(total > 0, total, 1.0)
    lse = jnp.where(total > 0, peak * math.log(2) + jnp.log(safe), -jnp.inf)
    plt.store(lse_ref.at[part, b, head], lse, mask=row < group)
    out = (total_out / safe[:, None]).astype(out_ref.dtype)
    plt.store(out_ref.at[rows_of(out_ref, (part, b, head))], out, mask=(row < group)[:, None])


def _tokens_per_step(head_dim: int, operand: jnp.dtype) -> int:
    return _TILE_BYTES // (head_dim * operand.itemsize)


def _num_splits(num_rows: int, max_steps: int) -> int:
    """Return into how many parts to cut each row: to fill all multiprocessors once, or to end in a short last round.

    A last round of few programs takes longer than its share of the bytes: they wait for memory, and do not fill it.
    """
    slots, most = _programs_at_once(), max(1, max_steps // _MIN_STEPS)
    if num_rows <= slots:
        return min(slots // num_rows, most)

    def cost(num_splits: int) -> float:
        rounds, rest = divmod(num_rows * num_splits, slots)
        last = max(rest / slots, _LEAST_ROUND) if rest else 0.0
        return pl.cdiv(max_steps, num_splits) * (rounds + last) + (_MERGE_STEPS if num_splits > 1 else 0.0)

    return min(range(1, min(most, _MAX_ROUNDS) + 1), key=cost)


def _programs_at_once() -> int:
    device = jax.local_devices()[0]
    num_sms = getattr(device, "core_count", None) if device.platform == "gpu" else None
    return _PROGRAMS_PER_SM * int(num_sms or _DEFAULT_SMS)


def _major(capability: str) -> int:
    # AMD devices name an architecture ("gfx942").
    major = capability.split(".")[0]
    return int(major) if major.isdigit() else 0
