"""The public decode that reads everything, or a window or a mask of it. Called by `kinetics_jax.attention`."""

from typing import Literal, overload

from jaxtyping import Array, Bool, Float, Int, Real

from . import _dispatch, _validate
from ._results import DecodeResult
from ._validate import Implementation


@overload
def paged_decode(
    q: Float[Array, "B N H"],
    key_pages: Real[Array, "R K P H"],
    value_pages: Real[Array, "R K P H"],
    page_table: Int[Array, "B M"],
    lengths: Int[Array, " B"],
    *,
    window_len: int | None = None,
    sink_len: int = 0,
    token_mask: Bool[Array, "B K S"] | None = None,
    key_scales: Float[Array, "R K P"] | None = None,
    value_scales: Float[Array, "R K P"] | None = None,
    scale: float | None = None,
    implementation: Implementation | None = None,
    tuning: object | None = None,
    return_residuals: Literal[False] = False,
) -> Float[Array, "B N H"]: ...


@overload
def paged_decode(
    q: Float[Array, "B N H"],
    key_pages: Real[Array, "R K P H"],
    value_pages: Real[Array, "R K P H"],
    page_table: Int[Array, "B M"],
    lengths: Int[Array, " B"],
    *,
    window_len: int | None = None,
    sink_len: int = 0,
    token_mask: Bool[Array, "B K S"] | None = None,
    key_scales: Float[Array, "R K P"] | None = None,
    value_scales: Float[Array, "R K P"] | None = None,
    scale: float | None = None,
    implementation: Implementation | None = None,
    tuning: object | None = None,
    return_residuals: Literal[True],
) -> DecodeResult: ...


def paged_decode(
    q: Float[Array, "B N H"],
    key_pages: Real[Array, "R K P H"],
    value_pages: Real[Array, "R K P H"],
    page_table: Int[Array, "B M"],
    lengths: Int[Array, " B"],
    *,
    window_len: int | None = None,
    sink_len: int = 0,
    token_mask: Bool[Array, "B K S"] | None = None,
    key_scales: Float[Array, "R K P"] | None = None,
    value_scales: Float[Array, "R K P"] | None = None,
    scale: float | None = None,
    implementation: Implementation | None = None,
    tuning: object | None = None,
    return_residuals: bool = False,
) -> Float[Array, "B N H"] | DecodeResult:
    """Attend to the whole context: out = softmax(q k^T scale) v, optionally within a window or a mask.

    Args:
        q: Queries of the newest token.
        key_pages: Pool of key pages; slots past a sequence's length may hold anything, NaN included.
        value_pages: Pool of value pages.
        page_table: Page ids of each sequence in order; entries past its last page may hold anything.
        lengths: Tokens held [tokens], the newest included. Length 0 gives zeros.
        window_len: Read only the newest tokens [tokens]; only their pages, and those of the sinks, are touched.
        sink_len: First tokens that are read on top of the window [tokens].
        token_mask: Read only these positions, S = M * P.
        key_scales: Factor of each key vector, for pages of int8 or float8_e4m3fn (`quantise_pages`); None for others.
        value_scales: Factor of each value vector; likewise.
        scale: Logit scale; None is 1/sqrt(H).
        implementation: None picks what works here; a name never falls back silently.
        tuning: Settings of the named implementation; None takes its own choice.
        return_residuals: Also return the log-sum-exp of the logits.

    Returns:
        Output [B, N, H] in the dtype of q; on request with the log-sum-exp [B, N] of the logits read.

    Raises:
        ValueError: If a shape does not fit, both a window and a mask are given, or sinks without a window.
        NotImplementedError: If the named implementation cannot run this here.

    Example:
        >>> import jax.numpy as jnp
        >>> pages = jnp.ones((2, 1, 4, 8))
        >>> paged_decode(jnp.ones((1, 2, 8)), pages, pages, jnp.array([[1, 0]]), jnp.array([5])).shape
        (1, 2, 8)
    """
    scales = _validate.check_decode(
        q, key_pages, value_pages, page_table, lengths, key_scales, value_scales, scale, implementation
    )
    _validate.check_window(window_len, sink_len, token_mask, key_pages, page_table)
    out, lse = _dispatch.paged_decode(
        implementation,
        (q, key_pages, value_pages, page_table, lengths),
        scales,
        tuning,
        token_mask=token_mask,
        scale=scale,
        window_len=window_len,
        sink_len=sink_len,
    )
    return DecodeResult(out, lse) if return_residuals else out
