"""The scales of the pages that each row reads, in the order in which it reads them: for quantised pages on a TPU.

Called by `_mosaic_tpu`. Copied by the kernel they would double the number of its copies, each of a tile that they fill
in part, and have to be moved from the lanes of a page to those of a chunk. So XLA gathers them ahead of the kernel,
which brings those of a chunk of pages by one copy, in the shape in which they multiply rows of logits and weights:

    key, value scales [R, K, P] --gather--> [X, chunks, 2 Y, T]     Y rows of keys, Y of values; tokens in the lanes

With a window no more are gathered than it reads. By the layouts that XLA gives them, scales of bfloat16 move at least a
tenth of the bytes of int8 pages of 128 tokens and width 128, and two fifths of those of pages of 16, as it pads the row
of a page to 128 lanes wherever it reads or writes one: not measured, and a reason for longer pages.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from . import _xla


def pages_read(
    page_table: Int[Array, "B M"],
    selected: Int[Array, "B K J"] | None,
    ranges: Int[Array, "B 4"],
    num_sink_pages: int,
    max_read: int,
) -> Int[Array, "B #K J"]:
    """Return the ids of the pages selected, or of the first `max_read` that a dense decode reads, as it lists them."""
    if selected is None:
        place = jnp.arange(max_read, dtype=jnp.int32)[None]
        selected = (place + jnp.where(place < num_sink_pages, 0, ranges[:, 1:2]))[:, None]
    # Past the last page: of no matter which.
    return jnp.take_along_axis(page_table[:, None], jnp.minimum(selected, page_table.shape[1] - 1), axis=2)


def chunk_scales(
    scales: Sequence[Float[Array, "R K P"]], page_ids: Int[Array, "B #K J"], heads: int, pages_per_chunk: int
) -> Float[Array, "X C Z T"]:
    """Gather the scales of the pages by chunk, for rows of Z / 2 = `heads` KV heads: of keys, then of values."""
    page_ids = jnp.pad(page_ids, ((0, 0), (0, 0), (0, -page_ids.shape[2] % pages_per_chunk)))
    parts = []
    for pool in scales:
        part = _xla.gather_heads(pool, page_ids)  # [B, K, J, P]
        num_rows, chunk_len = part.shape[0] * part.shape[1] // heads, pages_per_chunk * pool.shape[2]
        parts.append(part.reshape(num_rows, heads, -1, chunk_len))
    return jnp.swapaxes(jnp.concatenate(parts, axis=1), 1, 2)
