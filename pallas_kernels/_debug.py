"""Find page ids and lengths that no shape check can see: they are data. For debugging; no decode calls this."""

import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Int

from . import _validate


def check_page_ids(page_table: Int[Array, "B M"], lengths: Int[Array, " B"], num_pages: int, page_len: int) -> None:
    """Check that the lengths fit the table, and that it names pages of the pool wherever a sequence holds tokens.

    The decodes themselves never fault: an id out of range reads some page, a length beyond the table reads the table.
    Inside `jit` the check works in a function wrapped by `jax.experimental.checkify.checkify`, and is a trace-time
    error in any other.

    Args:
        page_table: Page ids of each sequence in order; entries past its last page may hold anything.
        lengths: Tokens held [tokens].
        num_pages: Pages in the pool, R.
        page_len: Tokens in a page, P.

    Raises:
        ValueError: If a shape does not fit; outside `jit` also if a length or an id is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> check_page_ids(jnp.array([[2, -1]]), jnp.array([4]), num_pages=3, page_len=4)
        >>> check_page_ids(jnp.array([[2, -1]]), jnp.array([5]), num_pages=3, page_len=4)
        Traceback (most recent call last):
        ...
        ValueError: a page that holds tokens must be one of the pool, 0 <= id < 3; got page_table[0, 1]=-1 ...
    """
    _validate.check_table(page_table, lengths)
    table_len = page_table.shape[1] * page_len
    bad_length = (lengths < 0) | (lengths > table_len)
    page = jnp.arange(page_table.shape[1], dtype=lengths.dtype)[None, :]
    is_held = page * page_len < lengths[:, None]
    bad_id = is_held & ((page_table < 0) | (page_table >= num_pages))
    # What to report: the first sequence that is wrong, and in it the first page.
    b = jnp.argmax(jnp.any(bad_id, axis=1))
    m = jnp.argmax(bad_id[b])
    _require(
        ~jnp.any(bad_length),
        f"lengths must lie in 0..{table_len} = M * P; got lengths[{{b}}]={{length}}. Use a wider page_table",
        b=jnp.argmax(bad_length),
        length=lengths[jnp.argmax(bad_length)],
    )
    _require(
        ~jnp.any(bad_id),
        f"a page that holds tokens must be one of the pool, 0 <= id < {num_pages}; "
        "got page_table[{b}, {m}]={entry} with lengths[{b}]={length}. "
        "Reserve the page before its first token is appended",
        b=b,
        m=m,
        entry=page_table[b, m],
        length=lengths[b],
    )


def _require(holds: Array, message: str, **numbers: Array) -> None:
    if any(isinstance(value, Tracer) for value in (holds, *numbers.values())):
        from jax.experimental import checkify  # 20 ms to import, for debugging only

        checkify.check(holds, message, debug=False, **numbers)
    elif not holds:
        raise ValueError(message.format(**{name: int(value) for name, value in numbers.items()}))
