"""The Mosaic GPU implementation, for Hopper: score every page, then select and attend, in two launches.

Called by `_dispatch` with validated arguments. What moves, for one layer of one step (bf16, G = N / K):

                 page means [R, K, C]                      key and value pages [R, K, P, H]
                        |  every page held, once                   |  the selected pages, once
                        v                                          v
    q [B, N, H] -> scores [B, K, M] float32 (L2) -> bit mask in shared memory -> out [B, N, H]
                 `_mosaic_gpu_score`                   `_mosaic_gpu_select`, `_mosaic_gpu_attend`

Both launches are bound by the bytes of the top row. Left out: float32 pages (no exact product on tensor cores), windows
and masks of tokens; Blackwell, whose tensor cores have instructions of their own (tcgen05, not Hopper's wgmma).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Real

from . import _xla
from ._merge import merge_partials
from ._mosaic_gpu_attend import attend
from ._mosaic_gpu_score import PAGES_PER_BLOCK, can_score, score_pages
from ._mosaic_gpu_tuning import Tuning as Tuning
from ._mosaic_gpu_tuning import tuned
from ._mosaic_gpu_work import Work
from ._quantise import is_quantised

_FIRST_JAX = (0, 11, 0)
_MAX_PAGES = 8192  # what one warpgroup holds in registers while it selects
_MAX_GROUP = 8
_SHARED_BYTES = 227 * 1024
_DEFAULT_SMS = 132  # H100 and H200


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
    num_kv_heads, page_len, head_dim = key_pages.shape[1:]
    group, max_pages = q.shape[1] // num_kv_heads, page_table.shape[1]
    if jax.__version_info__ < _FIRST_JAX:
        return f"implementation 'mosaic_gpu' needs jax >= 0.11; got {jax.__version__}. Use 'xla', or None to choose"
    dtypes = f"bfloat16 or quantised pages and bfloat16 q; got {key_pages.dtype}, {q.dtype}"
    device = jax.local_devices()[0]
    capability = str(getattr(device, "compute_capability", None))
    wanted = [
        # Elsewhere it is interpreted, or lowered for a device that is not here.
        (device.platform != "gpu" or capability.startswith("9."), f"on Hopper, capability 9.0; got {capability}"),
        (q.dtype == jnp.bfloat16 and (key_pages.dtype == jnp.bfloat16 or is_quantised(key_pages)), dtypes),
        (head_dim in (64, 128), f"head_dim 64 or 128; got {head_dim}"),
        (page_len in (8, 16, 32, 64, 128), f"pages of 8, 16, 32, 64 or 128 tokens; got {page_len}"),
        (group <= _MAX_GROUP, f"at most {_MAX_GROUP} query heads for each KV head; got {group}"),
        (max_pages <= _MAX_PAGES, f"at most {_MAX_PAGES} pages in the table; got {max_pages}"),
        (window_len is None and sink_len == 0, f"no window; got window_len={window_len}"),
    ]
    if summaries is not None:
        dtype = summaries.dtype
        wanted.append((dtype in (jnp.bfloat16, jnp.float32), f"bfloat16 or float32 summaries; got {dtype}"))
    missing = [what for holds, what in wanted if not holds]
    return f"implementation 'mosaic_gpu' runs {'; '.join(missing)}. Use 'xla', or None to choose" if missing else None


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
    tuning = tuning or tuned("block_topk_decode", q, key_pages, page_table, num_blocks)
    page_len = key_pages.shape[2]
    if can_score(summaries, q.shape[2]):
        in_flight = tuning.num_pages_in_flight
        scores = score_pages(q, summaries, page_table, lengths, page_len=page_len, num_in_flight=in_flight)
    else:  # rows too few or too short to share among 128 lanes
        scores = _xla.score_pages(probe, summaries, page_table)
        scores = jnp.pad(scores, ((0, 0), (0, 0), (0, -scores.shape[2] % PAGES_PER_BLOCK)))
    pools = _pools(key_pages, value_pages, key_scales, value_scales)
    work = _plan(q, pools, page_table, tuning, num_blocks, num_sink_blocks, num_local_blocks)
    out, lse, words = attend(work, q, pools, page_table, lengths, scores=scores, scale=scale)
    return *_merged(out, lse), _pages_of(words, page_table.shape[1], num_blocks)


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
    """Read the whole context; also the log-sum-exp."""
    assert window_len is None, "`unsupported` sends windows elsewhere"
    tuning = tuning or tuned("paged_decode", q, key_pages, page_table, None)
    pools = _pools(key_pages, value_pages, key_scales, value_scales)
    work = _plan(q, pools, page_table, tuning, page_table.shape[1], 0, 0)
    out, lse, _ = attend(work, q, pools, page_table, lengths, scores=None, scale=scale)
    return _merged(out, lse)


def _pools(key_pages: Array, value_pages: Array, *scales: Array | None) -> tuple[Array, ...]:
    return (key_pages, value_pages, *(pool for pool in scales if pool is not None))


def _plan(
    q: Array,
    pools: tuple[Array, ...],
    page_table: Array,
    tuning: Tuning,
    num_blocks: int,
    num_sinks: int,
    num_local: int,
) -> Work:
    """Fill what the tuning leaves open: as many stages as fit, as many parts as keep all multiprocessors busy."""
    (batch_size, num_heads, head_dim), max_pages = q.shape, page_table.shape[1]
    num_kv_heads, page_len = pools[0].shape[1:3]
    num_ctas = tuning.num_ctas or _num_sms()
    work = Work(
        batch_size=batch_size,
        num_kv_heads=num_kv_heads,
        group=num_heads // num_kv_heads,
        head_dim=head_dim,
        page_len=page_len,
        max_pages=max_pages,
        num_blocks=min(num_blocks, max_pages),
        num_sinks=num_sinks,
        num_local=num_local,
        num_splits=1,
        num_stages=1,
        num_ctas=num_ctas,
        entry_bytes=pools[0].dtype.itemsize,
        scale_bytes=max((scales.dtype.itemsize for scales in pools[2:]), default=0),
    )
    num_splits = tuning.num_splits or _best_splits(work)
    work = work.replace(num_splits=num_splits, num_ctas=min(num_ctas, num_splits * batch_size * num_kv_heads))
    fitting = (_SHARED_BYTES - work.fixed_bytes) // work.stage_bytes
    return work.replace(num_stages=tuning.num_stages or max(1, min(6, fitting)))


def _best_splits(work: Work) -> int:
    """Return into how many parts to cut each row: a part costs its tiles and about two more, in rounds over all SMs."""
    num_rows = work.batch_size * work.num_kv_heads
    num_tiles = -(-work.num_blocks // work.pages_per_tile)

    def cost(num_splits: int) -> int:
        rounds = -(-num_rows * num_splits // work.num_ctas)
        return rounds * (-(-num_tiles // num_splits) + 2) + (0 if num_splits == 1 else 3)

    return min(range(1, max(1, min(64, num_tiles)) + 1), key=cost)


def _num_sms() -> int:
    devices = jax.local_devices()
    return (
        int(getattr(devices[0], "core_count", None) or _DEFAULT_SMS) if devices[0].platform == "gpu" else _DEFAULT_SMS
    )


def _merged(
    out: Float[Array, "X B N H"], lse: Float[Array, "X B N"]
) -> tuple[Float[Array, "B N H"], Float[Array, "B N"]]:
    if out.shape[0] == 1:
        return out[0], lse[0]
    merged = merge_partials(out, lse)
    return merged.out.astype(jnp.bfloat16), merged.lse


def _pages_of(words: Int[Array, "B K W"], max_pages: int, num_blocks: int) -> Int[Array, "B K J"]:
    """Return the pages whose bits are set, ascending, filled up with `max_pages`."""
    page = jnp.arange(max_pages, dtype=jnp.int32)
    chosen = (words[..., page // 32] >> (page % 32)[None, None, :]) & 1
    place = jnp.where(chosen == 1, jnp.cumsum(chosen, axis=-1) - 1, num_blocks)
    empty = jnp.full((*words.shape[:2], min(num_blocks, max_pages)), max_pages, jnp.int32)
    pages = jnp.broadcast_to(page[None, None, :], place.shape)
    return jnp.put_along_axis(empty, place, pages, axis=-1, inplace=False, mode="drop")
