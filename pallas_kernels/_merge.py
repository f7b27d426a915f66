"""Merge what several decodes found in different parts of a context: sequence shards, split KV."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from . import _validate
from ._results import DecodeResult


def merge_partials(out: Float[Array, "X B N H"], lse: Float[Array, "X B N"]) -> DecodeResult:
    """Merge partial attention outputs by log-sum-exp: out = sum_x exp(lse_x - lse) out_x, lse = log sum_x exp(lse_x).

    The parts are disjoint sets of entries of the same context, each attended to with `return_residuals=True`: the
    result is what one decode over all entries gives. Under `shard_map` over sequence shards gather `out` and `lse`
    (`jax.lax.all_gather`) and merge on every device.

    Args:
        out: Output of each part.
        lse: Log-sum-exp of each part; one of -inf (nothing read) counts nothing, whatever its output holds.

    Returns:
        The merged output in the dtype of `out`, zeros where no part read anything, and the merged log-sum-exp.

    Raises:
        ValueError: If the shapes do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> out = jnp.array([4.0, 8.0]).reshape(2, 1, 1, 1)
        >>> lse = jnp.log(jnp.array([1.0, 3.0])).reshape(2, 1, 1)
        >>> merged = merge_partials(out, lse)
        >>> round(merged.out.item(), 5), round(jnp.exp(merged.lse).item(), 5)
        (7.0, 4.0)
    """
    _validate.check_partials(out, lse)
    lse = lse.astype(jnp.float32)
    peak = jnp.max(lse, axis=0, keepdims=True)
    weights = jnp.where(lse == -jnp.inf, 0.0, jnp.exp(lse - jnp.where(peak == -jnp.inf, 0.0, peak)))
    total = jnp.sum(weights, axis=0)
    # 0 * NaN = NaN: the output of a part that read nothing must be blanked.
    parts = jnp.where(weights[..., None] > 0, out.astype(jnp.float32), 0.0) * weights[..., None]
    merged = jnp.sum(parts, axis=0) / jnp.where(total > 0, total, 1.0)[..., None]
    return DecodeResult(merged.astype(out.dtype), jnp.log(total) + peak[0])
