"""Token embedding look-up whose gradient is a matrix product where the vocabulary is small."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

_LARGEST_PRODUCT_VOCAB = 4096


@jax.custom_vjp
def look_up(table: Float[Array, "V D"], token_ids: Int[Array, "*batch"]) -> Float[Array, "*batch D"]:
    """Return the table's rows.

    The gradient of a gather is a scatter-add; with 64 words and 100,000 tokens all rows collide and the atomics
    take longer than the rest of a training step, so small tables use one_hot^T . gradient instead.

    Args:
        table: Embedding [V, D].
        token_ids: Ids in 0..V-1 [...].
    """
    return table[token_ids]


def _forward(table: Array, token_ids: Array) -> tuple[Array, tuple[Array, Array]]:
    return table[token_ids], (table, token_ids)


def _backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, None]:
    table, token_ids = saved
    if table.shape[0] > _LARGEST_PRODUCT_VOCAB:
        return jnp.zeros_like(table).at[token_ids].add(gradient.astype(table.dtype)), None
    one_hot = jax.nn.one_hot(token_ids, table.shape[0], dtype=gradient.dtype)
    summed = jnp.einsum("...V,...D->VD", one_hot, gradient, preferred_element_type=jnp.float32)
    return summed.astype(table.dtype), None


look_up.defvjp(_forward, _backward)
