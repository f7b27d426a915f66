"""Sums over runs of equal entries in sorted rows: votes for one answer, trials of one score."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num


def runs(
    keys: Num[Array, "*batch R"], exists: Bool[Array, "*batch R"], is_descending: bool
) -> tuple[Int[Array, "*batch R"], Int[Array, "*batch R"]]:
    """Sort each row, existing entries first; return the order and the number of the run that each sorted entry is in.

    Entries that do not exist come last, in runs of their own.
    """
    order = jnp.lexsort((keys, exists if is_descending else ~exists), axis=-1)
    order = order[..., ::-1] if is_descending else order
    keys, exists = jnp.take_along_axis(keys, order, -1), jnp.take_along_axis(exists, order, -1)
    starts = (keys[..., 1:] != keys[..., :-1]) | (exists[..., 1:] != exists[..., :-1])
    # Rows without a trial have no first entry either.
    run = jnp.cumsum(jnp.concatenate([jnp.zeros_like(exists[..., :1]), starts], -1), -1, dtype=jnp.int32)
    return order, run


def sum_by_run(values: Float[Array, "*batch R"], run: Int[Array, "*batch R"]) -> Float[Array, "*batch R"]:
    """Return the sum of each run at the place of its number; 0 beyond the last run."""
    width = values.shape[-1]
    flat = run.reshape(-1, width)
    place = flat + width * jnp.arange(flat.shape[0], dtype=flat.dtype)[:, None]
    return jnp.zeros(values.size, values.dtype).at[place.reshape(-1)].add(values.reshape(-1)).reshape(values.shape)
