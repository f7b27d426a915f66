"""How the TPU kernels lay out their work: settings, what each kernel is compiled for, and the VMEM that it needs.

Called by `_mosaic_tpu`. All of it follows from shapes, dtypes and the `Tuning`.
"""

from dataclasses import dataclass

from jaxtyping import Array, Float, Int, Real

from . import _mosaic_tpu_attend, _mosaic_tpu_score, _mosaic_tpu_select
from ._mosaic_tpu_attend import AttendSpec
from ._mosaic_tpu_score import CHUNK, ScoreSpec
from ._mosaic_tpu_select import SelectSpec
from ._mosaic_tpu_stream import LANES, SUBLANES, rounded, tile_bytes

_MAX_HEADS_PER_ROW = 8
_RING_BYTES = 8 * 2**20
_CHUNK_LEN = 512  # tokens: the matrix unit is then busy for longer than a step of the loop takes to turn around
_MIN_TILES = 8  # of 128 pages: the sublanes of a register


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """Settings of the TPU kernels; None stands for a formula of the shapes.

    Attributes:
        pages_per_buffer: Pages of keys and of values copied at a time by the attention.
        num_buffers: Such chunks in VMEM; all but one are under way.
        score_buffers: Chunks of 128 page summaries in VMEM.
        run_len: Summaries that one copy brings where page ids are consecutive; divides 128.
        select_rows: Rows (sequence, KV head) selected at once; a multiple of 8.
    """

    pages_per_buffer: int | None = None
    num_buffers: int = 3
    score_buffers: int = 3
    run_len: int = 16
    select_rows: int | None = None

    def __post_init__(self) -> None:
        """Check the limits."""
        if min(self.num_buffers, self.score_buffers) < 2 or (
            self.pages_per_buffer is not None and self.pages_per_buffer < 1
        ):
            raise ValueError(f"a ring needs 2 buffers of 1 page or more; got {self}")
        if self.run_len < 1 or CHUNK % self.run_len:
            raise ValueError(f"run_len must divide {CHUNK}; got {self.run_len}. Use 1, 2, 4, 8, 16, ...")
        if self.select_rows is not None and (self.select_rows < 8 or self.select_rows % SUBLANES):
            raise ValueError(f"select_rows must be a multiple of {SUBLANES}; got {self.select_rows}")


def vmem_bytes(
    q: Float[Array, "B N H"],
    key_pages: Real[Array, "R K P H"],
    page_table: Int[Array, "B M"],
    *,
    summaries: Float[Array, "R K C"] | None = None,
    num_blocks: int | None = None,
    tuning: Tuning | None = None,
) -> int:
    """Return the VMEM that the largest of the kernels needs for its buffers [bytes]."""
    tuning = tuning or Tuning()
    (batch_size, max_pages), num_kv_heads = page_table.shape, key_pages.shape[1]
    num_listed = 0 if summaries is None or num_blocks is None else min(num_blocks, max_pages)
    heads = 1 if num_listed else heads_per_row(num_kv_heads)
    group = rounded(q.shape[1] // num_kv_heads, SUBLANES)
    spec = attend_spec(key_pages, max_pages, num_listed, tuning)
    attend = _mosaic_tpu_attend.vmem_bytes((batch_size, heads, group, q.shape[2]), key_pages, spec)
    if summaries is None:
        return attend
    padded = padded_pages(max_pages)
    score = _mosaic_tpu_score.vmem_bytes(summaries, padded, score_spec(summaries, tuning))
    select = select_spec(batch_size * num_kv_heads, max_pages, num_listed, (0, 0), tuning)
    return max(attend, score, _mosaic_tpu_select.vmem_bytes(padded, select))


def score_spec(summaries: Float[Array, "R K C"], tuning: Tuning) -> ScoreSpec:
    """Return the sizes of the kernel that scores."""
    run_len = tuning.run_len if summaries.shape[0] >= tuning.run_len else 1
    return ScoreSpec(run_len=run_len, num_buffers=tuning.score_buffers)


def select_spec(num_rows: int, max_pages: int, num_blocks: int, always: tuple[int, int], tuning: Tuning) -> SelectSpec:
    """Return the sizes of the kernel that selects; `always` are the first and the newest pages."""
    most = max(SUBLANES, min(64, 2**17 // padded_pages(max_pages)))
    return SelectSpec(
        num_blocks=num_blocks,
        num_sink_blocks=always[0],
        num_local_blocks=always[1],
        num_rows=tuning.select_rows or min(rounded(num_rows, SUBLANES), most // SUBLANES * SUBLANES),
        fill=max_pages,
    )


def attend_spec(
    key_pages: Real[Array, "R K P H"],
    max_pages: int,
    num_listed: int,
    tuning: Tuning,
    scale: float = 1.0,
    num_sinks: tuple[int, int] = (0, 0),
) -> AttendSpec:
    """Return the sizes of the kernel that attends: a chunk has enough tokens, the rings no more bytes than they may."""
    _, num_kv_heads, page_len, head_dim = key_pages.shape
    heads = 1 if num_listed else heads_per_row(num_kv_heads)
    pages = tuning.pages_per_buffer
    if pages is None:
        page_bytes = 2 * tuning.num_buffers * heads * tile_bytes(page_len, head_dim, key_pages.dtype)
        pages = max(1, min(_CHUNK_LEN // page_len, _RING_BYTES // page_bytes, num_listed or max_pages))
        pages = 2 ** (pages.bit_length() - 1)
    return AttendSpec(
        num_listed=num_listed,
        max_pages=max_pages,
        num_sink_pages=num_sinks[0],
        sink_len=num_sinks[1],
        scale=scale,
        pages_per_buffer=min(pages, num_listed or max_pages),
        num_buffers=tuning.num_buffers,
    )


def heads_per_row(num_kv_heads: int) -> int:
    """Return the KV heads of a sequence that a dense decode reads together."""
    return max(heads for heads in range(1, _MAX_HEADS_PER_ROW + 1) if num_kv_heads % heads == 0)


def padded_pages(max_pages: int) -> int:
    """Return the pages of a row of scores, as many as the selection wants."""
    return rounded(max_pages, _MIN_TILES * LANES)
