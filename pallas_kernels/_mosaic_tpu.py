"""The TPU implementation: decode attention that reads pages in place, with Pallas' Mosaic backend.

Called by `_dispatch`. Three kernels; the pools stay in HBM, whatever is read comes by copies that the kernels start:

    page table, lengths -> SMEM                                    HBM traffic of a step, B = 64, K = 8, H = 128,
                                                                   context 16,384, page 16, 64 pages read, bf16
    summaries [R, K, C] --- 2 KiB a page, or ---> ring -> VPU      65,536 copies of 2 KiB     134 MB
      HBM                   32 KiB a run of 16            |        (4,096 of 32 KiB where ids are consecutive)
    scores [B, K, M]  <-----------------------------------+                                   2 MB
            |
            +--> blocks of 64 rows -> bisection, prefix counts, compaction (VPU, MXU)         2 MB
    selected [B, K, J] <--------------------------------------+
            |
            +--> SMEM -> page ids
    key, value pages [R, K, P, H] -- 4 KiB each --> rings -> q k (MXU), softmax, p v (MXU)    65,536 copies of 4 KiB
      HBM, only what was selected                        |                                    268 MB
    out [B, N, H], lse [B, N] <--------------------------+                                    1 MB

Dense decode is the last kernel alone, where one copy brings a page of up to 8 heads: 32 KiB.

Why three calls. Each is one stream without a bubble: `_mosaic_tpu_stream` keeps copies under way across rows, which a
kernel that had to finish a row's selection before its pages could be fetched would break. The selection works on 64
rows (sequences and heads) at once, so that the waits of its 32 dependent passes are shared. The price is that scores
go through HBM once, 1% of the bytes, and two more launches.

What bounds it. Each copy is issued by the scalar unit, tens of cycles. At the bandwidth of a v5e (819 GB/s) 2 KiB take
2.5 ns and 4 KiB take 5 ns, 2 to 5 cycles: with pages of 16 tokens both streams are most likely bound by issuing copies,
not by bytes. Pages of 64 tokens (a quarter of the copies, 16 KiB each) and pages with consecutive ids (`run_len`) mend
that; a dense decode (32 KiB, 40 ns) is near the balance. The rings hold up to 8 MiB, as latency times bandwidth asks.

What could not be measured without hardware: every time and rate above. Known are the results (interpreted, against the
oracle, races looked for), that every size compiles for v5e, v5p, v6e and 7x, the VMEM it takes, and that no pool is
copied. No two sequences or KV halves share the work of one long sequence: a batch of one uses one core of two.

head_dim 64. TPU memory is tiled in 128 lanes. Row-major, a page [P, 64] fills half of each tile: the pool takes twice
the bytes, and so do the copies. XLA's own choice for such a pool puts the pages into the lanes ({0,3,2,1}, no padding):
there one page is scattered over R * P * 64 elements, and whoever reads pages, XLA's gather as well, copies the pool
first. Create it as `jax.experimental.layout.Format(Layout((0, 1, 2, 3)), sharding)`, and nothing is copied; the same
holds for summaries of width 64. With head_dim 128 the row-major layout is XLA's choice.

Sizes that do not fit SMEM (page ids of all sequences) are run in several calls, some sequences at a time.

Quantised pages are copied as they are, half the bytes by as many copies, and widened in VMEM; their scales are gathered
by XLA (`_mosaic_tpu_scales`). A page of 16 tokens is not padded: XLA and Mosaic take tiles of 8 rows for it, of 32 for
longer ones. What holds for head_dim 64 holds for scales of pages shorter than 128: by default XLA puts the pages into
the lanes, and copies both pools of scales to gather from them, or gathers single lanes where the pools are large.
Row-major they are padded to 128 lanes (a tenth more memory in all for pages of 16 and head_dim 128, less for longer
ones), and nothing is copied.

Left out: a mask of tokens; splitting one sequence over cores.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Real

from . import _mosaic_tpu_attend, _mosaic_tpu_score, _mosaic_tpu_select
from ._mosaic_tpu_scales import chunk_scales, pages_read
from ._mosaic_tpu_sizes import Tuning as Tuning
from ._mosaic_tpu_sizes import attend_spec, heads_per_row, padded_pages, score_spec, select_spec, vmem_bytes
from ._mosaic_tpu_stream import SUBLANES, VMEM_LIMIT_BYTES
from ._quantise import LARGEST, operand_dtype

HEAD_DIMS = (64, 128)
PAGE_LENS = (16, 32, 64, 128)
DTYPES = ("bfloat16", "float32")
PAGE_DTYPES = (*DTYPES, *LARGEST)
MAX_GROUP = 16
# Of 1 MiB per core: page ids, and what the compiler adds.
SMEM_LIMIT_BYTES = 640 * 2**10


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
    """Select pages by probe . summary and attend to them; also the log-sum-exp and the selected pages."""
    tuning = tuning or Tuning()
    max_pages, page_len = page_table.shape[1], key_pages.shape[2]
    page_table = jnp.clip(page_table, 0, key_pages.shape[0] - 1)
    lengths = jnp.clip(lengths, 0, max_pages * page_len)
    num_held = _num_held(lengths, page_len)
    selected = _select(
        _score(probe, summaries, page_table, num_held, tuning),
        num_held,
        num_blocks=num_blocks,
        num_sink_blocks=num_sink_blocks,
        num_local_blocks=num_local_blocks,
        max_pages=max_pages,
        tuning=tuning,
    )
    # Ascending, so that only the last page can be partial: what is read is the first `stop` tokens of the list.
    num_read = jnp.minimum(num_held, num_blocks)[:, None]
    has_newest = jnp.any(selected == num_held[:, None, None] - 1, axis=2)
    missing = (num_held * page_len - lengths)[:, None]
    stop = num_read * page_len - jnp.where(has_newest, missing, 0)
    zeros = jnp.zeros_like(stop)
    ranges = jnp.stack([jnp.broadcast_to(num_read, stop.shape), zeros, zeros, stop], axis=-1)
    pools = _pools(key_pages, value_pages, key_scales, value_scales)
    out, lse = _attend(
        q, pools, page_table, selected, ranges, scale=scale, num_sinks=(0, 0), max_read=num_blocks, tuning=tuning
    )
    return out, lse, selected


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
    max_pages, page_len = page_table.shape[1], key_pages.shape[2]
    page_table = jnp.clip(page_table, 0, key_pages.shape[0] - 1)
    lengths = jnp.clip(lengths, 0, max_pages * page_len)
    start = jnp.zeros_like(lengths) if window_len is None else jnp.maximum(lengths - window_len, 0)
    num_sink_pages = -(-sink_len // page_len)
    skipped = jnp.maximum(start // page_len - num_sink_pages, 0)
    ranges = jnp.stack([_num_held(lengths, page_len) - skipped, skipped, start, lengths], axis=-1)
    # A window of W tokens touches at most ceil((W - 1) / P) + 1 pages.
    max_read = max_pages if window_len is None else (window_len + 2 * page_len - 2) // page_len + num_sink_pages
    return _attend(
        q,
        _pools(key_pages, value_pages, key_scales, value_scales),
        page_table,
        None,
        ranges[:, None],
        scale=scale,
        num_sinks=(num_sink_pages, sink_len),
        max_read=min(max_read, max_pages),
        tuning=tuning or Tuning(),
    )


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
    """Say why these kernels cannot run that; None where they can. Every window and sink can be had."""
    _, num_kv_heads, page_len, head_dim = key_pages.shape
    group, max_pages = q.shape[1] // num_kv_heads, page_table.shape[1]
    pages_dtype, dtypes = key_pages.dtype.name, [array.dtype.name for array in (q, summaries) if array is not None]
    num_bytes = vmem_bytes(q, key_pages, page_table, summaries=summaries, num_blocks=num_blocks)
    per_sequence = max_pages if summaries is None else padded_pages(max_pages) + num_kv_heads * (num_blocks or 0)
    reasons = {
        f"head_dim must be one of {HEAD_DIMS}; got {head_dim}": head_dim in HEAD_DIMS,
        f"page_len must be one of {PAGE_LENS}; got {page_len}": page_len in PAGE_LENS,
        f"q and summaries must be {' or '.join(DTYPES)}; got {', '.join(dtypes)}": set(dtypes) <= set(DTYPES),
        f"pages must be {', '.join(PAGE_DTYPES)}; got {pages_dtype}": pages_dtype in PAGE_DTYPES,
        f"at most {MAX_GROUP} query heads may share a KV head; got {group}": group <= MAX_GROUP,
        f"page ids of one sequence must fit the scalar memory, {SMEM_LIMIT_BYTES} bytes; got {4 * per_sequence}, "
        f"{max_pages} pages": 4 * per_sequence <= SMEM_LIMIT_BYTES,
        f"buffers must fit {VMEM_LIMIT_BYTES} bytes of VMEM; got {num_bytes}": num_bytes <= VMEM_LIMIT_BYTES,
    }
    for reason, holds in reasons.items():
        if not holds:
            return f"mosaic_tpu: {reason}. Use 'xla', or None to choose"
    return None


def _score(
    probe: Float[Array, "B K C"],
    summaries: Float[Array, "R K C"],
    page_table: Int[Array, "B M"],
    num_held: Int[Array, " B"],
    tuning: Tuning,
) -> Float[Array, "B K X"]:
    """Score the pages of all sequences, X = M rounded up to what the selection wants."""
    padded = padded_pages(page_table.shape[1])
    page_table = jnp.pad(page_table, ((0, 0), (0, padded - page_table.shape[1])))
    spec = score_spec(summaries, tuning)

    def score(probe: Array, page_table: Array, num_held: Array) -> Array:
        return _mosaic_tpu_score.score_pages(probe, summaries, page_table, num_held, spec)

    return _by_batch(
        score, (probe.astype(jnp.float32), page_table, num_held), 4 * (padded + padded // spec.run_len + 1)
    )


def _select(
    scores: Float[Array, "B K X"],
    num_held: Int[Array, " B"],
    *,
    num_blocks: int,
    num_sink_blocks: int,
    num_local_blocks: int,
    max_pages: int,
    tuning: Tuning,
) -> Int[Array, "B K J"]:
    batch_size, num_kv_heads, padded = scores.shape
    num_rows = batch_size * num_kv_heads
    spec = select_spec(num_rows, max_pages, num_blocks, (num_sink_blocks, num_local_blocks), tuning)
    missing = -num_rows % spec.num_rows
    scores = jnp.pad(scores.reshape(num_rows, padded), ((0, missing), (0, 0)))
    held = jnp.pad(jnp.repeat(num_held, num_kv_heads), (0, missing))
    return _mosaic_tpu_select.select_pages(scores, held, spec)[:num_rows].reshape(batch_size, num_kv_heads, num_blocks)


def _attend(
    q: Float[Array, "B N H"],
    pools: tuple[Array, ...],
    page_table: Int[Array, "B M"],
    selected: Int[Array, "B K J"] | None,
    ranges: Int[Array, "B #X 4"],
    *,
    scale: float,
    num_sinks: tuple[int, int],
    max_read: int,
    tuning: Tuning,
) -> tuple[Float[Array, "B N H"], Float[Array, "B N"]]:
    """Attend to the pages listed, or to those of the table; `num_sinks` are sink pages and sink tokens.

    `pools` are key and value pages, and the scales of quantised ones; no row reads more than `max_read` pages.
    """
    key_pages, value_pages, *scales = pools
    (batch_size, num_heads, head_dim), num_kv_heads = q.shape, key_pages.shape[1]
    max_pages, group = page_table.shape[1], num_heads // num_kv_heads
    heads = heads_per_row(num_kv_heads) if selected is None else 1
    num_listed = 0 if selected is None else selected.shape[2]
    spec = attend_spec(key_pages, max_pages, num_listed, tuning, scale, num_sinks)
    rows_per_sequence = num_kv_heads // heads
    queries = q.astype(operand_dtype(q, key_pages)).reshape(batch_size, rows_per_sequence, heads, group, head_dim)
    queries = jnp.pad(queries, ((0, 0),) * 3 + ((0, -group % SUBLANES), (0, 0)))
    ranges = jnp.broadcast_to(ranges, (batch_size, rows_per_sequence, 4))

    def run(queries: Array, page_table: Array, ranges: Array, *selected: Array) -> tuple[Array, Array]:
        listed = selected[0].reshape(-1, num_listed) if selected else None
        rows, ranges_of_rows = queries.reshape(-1, *queries.shape[2:]), ranges.reshape(-1, 4)
        chunks = None
        if scales:
            ids = pages_read(page_table, selected[0] if selected else None, ranges[:, 0], num_sinks[0], max_read)
            chunks = chunk_scales(scales, ids, heads, spec.pages_per_buffer)
        entries = (key_pages, value_pages, chunks)
        return _mosaic_tpu_attend.attend(rows, entries, page_table, listed, ranges_of_rows, spec, q.dtype)

    arrays = (queries, page_table, ranges) if selected is None else (queries, page_table, ranges, selected)
    per_sequence = 4 * (max_pages + rows_per_sequence * (4 + num_listed))
    out, lse = _by_batch(run, arrays, per_sequence)
    out = out[:, :, :group].reshape(batch_size, num_heads, head_dim)
    return out, lse[:, :, :group].reshape(batch_size, num_heads)


def _pools(*pools: Array | None) -> tuple[Array, ...]:
    return tuple(pool for pool in pools if pool is not None)


def _by_batch(run: Callable[..., Any], arrays: tuple[Array, ...], bytes_per_sequence: int) -> Any:
    """Run on as many sequences at a time as have their page ids fit SMEM, and join the results."""
    batch_size = arrays[0].shape[0]
    size = max(1, SMEM_LIMIT_BYTES // bytes_per_sequence)
    if size < batch_size:
        size = -(-batch_size // -(-batch_size // size))  # of equal size, if possible
    parts = [run(*(array[b : b + size] for array in arrays)) for b in range(0, batch_size, size)]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts) if len(parts) > 1 else parts[0]


def _num_held(lengths: Int[Array, " B"], page_len: int) -> Int[Array, " B"]:
    return (lengths + page_len - 1) // page_len
