"""Causal attention over whole sequences: prefill and training. Decode steps are in `_decode`."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def causal_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    *,
    scale: float | None = None,
    implementation: Literal["xla", "cudnn"] | None = None,
) -> Float[Array, "B T N H"]:
    """Attend from every token to itself and all before it: softmax(q k^T scale + causal mask) v.

    Args:
        q: Queries.
        k: Keys, one head per group of N / K query heads.
        v: Values.
        scale: Logit scale; None is 1/sqrt(H).
        implementation: "cudnn" (flash attention: NVIDIA GPU, 16-bit floats), "xla" (everywhere; materialises the
            [B, N, T, T] weights), or None: cudnn where it can run, else xla.

    Returns:
        Attention output in the dtype of q.

    Raises:
        ValueError: If N is no multiple of K.

    Example:
        >>> ones = jnp.ones((1, 3, 2, 8))
        >>> causal_attention(ones, ones[:, :, :1], ones[:, :, :1]).shape
        (1, 3, 2, 8)
    """
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"query heads must be a multiple of the KV heads; got N={q.shape[2]}, K={k.shape[2]}")
    chosen = implementation or ("cudnn" if _cudnn_runs(q) else "xla")
    return jax.nn.dot_product_attention(q, k, v, scale=scale, is_causal=True, implementation=chosen)


def _cudnn_runs(q: Array) -> bool:
    """Say whether cuDNN flash attention takes these arrays on the default device."""
    is_half = q.dtype in (jnp.bfloat16, jnp.float16)
    fits = q.shape[-1] % 8 == 0 and q.shape[-1] <= 128
    return is_half and fits and jax.default_backend() == "gpu" and _is_ampere_or_later()


def _is_ampere_or_later() -> bool:
    capability = getattr(jax.local_devices()[0], "compute_capability", "0")  # "9.0" on NVIDIA, "gfx..." on AMD
    major = capability.split(".")[0]
    return major.isdigit() and int(major) >= 8
