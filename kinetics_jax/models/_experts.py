"""A mixture of SwiGLU experts without dropped tokens: rows sorted by expert, then three grouped matrix products.

Called by `_mlp`. Left out: capacity limits, balancing losses, experts spread over devices.

A grouped product multiplies each run of rows by its own expert's kernel. TPUs have one (`jax.lax.ragged_dot`).
Elsewhere XLA (of jax 0.10) expands it to a dense product over [rows, E * inputs], E times the work and the memory:
on a CPU 60 times slower for a decode step of 128 experts. There the rows are cut into tiles of one expert each:

    rows by expert   a a a b | d d d d d |            9 rows, E = 4, tiles of 2 rows
    tiles            aa  a.  b.  dd  dd  d.           their kernels: a a b d d d
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap, sequential_vmap
from jaxtyping import Array, Float, Int, Int8


class Int8Experts(NamedTuple):
    """Kernels of all experts as int8, worth values * scale.

    Attributes:
        values: Rounded kernels.
        scale: One factor an expert and output channel.
    """

    values: Int8[Array, "E inputs outputs"]
    scale: Float[Array, "E outputs"]


@jax.custom_vjp
def mix_experts(
    hidden: Float[Array, "T D"],
    experts: Int[Array, "T J"],
    weights: Float[Array, "T J"],
    gate: Float[Array, "E D F"] | Int8Experts,
    up: Float[Array, "E D F"] | Int8Experts,
    down: Float[Array, "E F D"] | Int8Experts,
) -> Float[Array, "T D"]:
    """Return sum_j weights_j (silu(x gate_e) * (x up_e)) down_e, with e = experts_j, for every token x.

    `vmap` over tokens folds the axis into T; reverse-mode gradients recompute the products; there is no forward mode,
    and int8 experts have no gradient.

    Args:
        hidden: Tokens.
        experts: The J experts that each token is routed to.
        weights: Their float32 weights.
        gate: Gate kernels.
        up: Up kernels.
        down: Down kernels.

    Returns:
        The mixture, in the dtype of `hidden`.

    Raises:
        NotImplementedError: If it is differentiated with int8 experts.
    """
    return _mix_folded(hidden, experts, weights, gate, up, down)


_Kernels = Array | Int8Experts


def _mix(hidden: Array, experts: Array, weights: Array, gate: _Kernels, up: _Kernels, down: _Kernels) -> Array:
    num_tokens, num_active = experts.shape
    expert_of_row = experts.reshape(-1)
    order = jnp.argsort(expert_of_row)
    expert_of_row = expert_of_row[order]
    group_sizes = jnp.bincount(expert_of_row, length=jax.tree.leaves(gate)[0].shape[0])

    def project(rows: Array, kernels: _Kernels) -> Array:
        if not isinstance(kernels, Int8Experts):
            return grouped_matmul(rows, kernels, group_sizes)
        products = grouped_matmul(rows, kernels.values, group_sizes) * kernels.scale[expert_of_row]
        return products.astype(rows.dtype)

    rows = hidden[order // num_active]
    inner = jax.nn.silu(project(rows, gate)) * project(rows, up)
    place = jnp.zeros_like(order).at[order].set(jnp.arange(order.size, dtype=order.dtype), unique_indices=True)
    outputs = project(inner, down)[place]
    outputs = outputs.reshape(num_tokens, num_active, -1).astype(jnp.float32)
    return jnp.einsum("TJD,TJ->TD", outputs, weights).astype(hidden.dtype)


# `ragged_dot` has no batching rule for kernels that the batch shares, and one large product beats many small ones.
@custom_vmap
def _mix_folded(hidden: Array, experts: Array, weights: Array, gate: _Kernels, up: _Kernels, down: _Kernels) -> Array:
    return _mix(hidden, experts, weights, gate, up, down)


@_mix_folded.def_vmap
def _fold_batch(
    axis_size: int, in_batched: list, hidden: Array, experts: Array, weights: Array, *kernels: _Kernels
) -> tuple[Array, bool]:
    if any(jax.tree.leaves(in_batched[3:])):
        in_axes = jax.tree.map(lambda batched: 0 if batched else None, in_batched)
        return jax.vmap(sequential_vmap(_mix), in_axes)(hidden, experts, weights, *kernels), True
    tokens = [
        operand if batched else jnp.broadcast_to(operand, (axis_size, *operand.shape))
        for operand, batched in zip((hidden, experts, weights), in_batched[:3], strict=True)
    ]
    mixed = _mix_folded(*(operand.reshape(-1, operand.shape[-1]) for operand in tokens), *kernels)
    return mixed.reshape(axis_size, -1, mixed.shape[-1]), True


@sequential_vmap
def _mix_vjp(grad: Array, experts: Array, *operands: Array) -> tuple[Array, ...]:
    return jax.vjp(lambda hidden, *rest: _mix(hidden, experts, *rest), *operands)[1](grad)


def _forward(*operands: _Kernels) -> tuple[Array, tuple[_Kernels, ...]]:
    if any(isinstance(operand, Int8Experts) for operand in operands):
        raise NotImplementedError("int8 experts have no gradient. Load the model with float weights to train it.")
    return _mix_folded(*operands), operands


def _backward(operands: tuple[Array, ...], grad: Array) -> tuple[Array | None, ...]:
    hidden, experts, *rest = operands
    hidden_grad, *grads = _mix_vjp(grad, experts, hidden, *rest)
    return hidden_grad, None, *grads


mix_experts.defvjp(_forward, _backward)


def grouped_matmul(
    rows: Float[Array, "S D"], kernels: Float[Array, "E D F"] | Int8[Array, "E D F"], group_sizes: Int[Array, " E"]
) -> Float[Array, "S F"]:
    """Multiply the first group_sizes[0] rows by kernels[0], the next group_sizes[1] by kernels[1], and so on.

    Int8 kernels are cast to the dtype of the rows, and their products are float32, still to be scaled.
    """
    return jax.lax.platform_dependent(rows, kernels, group_sizes, tpu=_ragged_matmul, default=tiled_matmul)


def _ragged_matmul(rows: Array, kernels: Array, group_sizes: Array) -> Array:
    result_dtype = _result_dtype(rows, kernels)
    return jax.lax.ragged_dot(rows, kernels.astype(rows.dtype), group_sizes, preferred_element_type=result_dtype)


def _result_dtype(rows: Array, kernels: Array) -> jnp.dtype:
    return jnp.dtype(jnp.float32) if kernels.dtype == jnp.int8 else rows.dtype


def tiled_matmul(
    rows: Float[Array, "S D"], kernels: Float[Array, "E D F"] | Int8[Array, "E D F"], group_sizes: Int[Array, " E"]
) -> Float[Array, "S F"]:
    """Compute `grouped_matmul` in tiles of S / E rows: at most twice the arithmetic, and 2 E gathered kernels.

    Fewer rows than experts (a decode step) make tiles of one row, so that only the kernels in use are read.
    """
    num_rows, num_experts = rows.shape[0], kernels.shape[0]
    tile_len = max(num_rows // num_experts, 1)
    num_tiles = (num_rows + min(num_rows, num_experts) * (tile_len - 1)) // tile_len  # if every group ends in a tile
    tiles_each = -(-group_sizes // tile_len)
    row_ends, tile_ends = jnp.cumsum(group_sizes), jnp.cumsum(tiles_each)
    # A group's first row goes to its first slot; this is how far all its rows move.
    shift = (tile_ends - tiles_each) * tile_len - (row_ends - group_sizes)

    row = jnp.arange(num_rows, dtype=group_sizes.dtype)
    slot_of_row = row + shift[jnp.searchsorted(row_ends, row, side="right", method="compare_all")]
    tile = jnp.arange(num_tiles, dtype=group_sizes.dtype)
    expert_of_tile = jnp.searchsorted(tile_ends, tile, side="right", method="compare_all")
    expert_of_tile = jnp.minimum(expert_of_tile, num_experts - 1)  # spare tiles
    slot = jnp.arange(num_tiles * tile_len, dtype=group_sizes.dtype)
    row_of_slot = jnp.clip(slot - jnp.repeat(shift[expert_of_tile], tile_len), 0, num_rows - 1)  # unused: any row

    tiles = rows[row_of_slot].reshape(num_tiles, tile_len, -1)
    chosen = kernels[expert_of_tile].astype(rows.dtype)  # after the gather: only kernels in use leave int8
    products = jnp.einsum("TSD,TDF->TSF", tiles, chosen, preferred_element_type=_result_dtype(rows, kernels))
    return products.reshape(num_tiles * tile_len, -1)[slot_of_row]
