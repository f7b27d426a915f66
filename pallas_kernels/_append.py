"""The public operations that append a token to its page and keep the page's summaries.

Called by `kinetics_jax.attention`.
"""

from typing import overload

from jaxtyping import Array, Float, Int, Real

from . import _dispatch, _validate, _xla
from ._validate import Implementation


@overload
def append_kv(
    key_pages: Float[Array, "R K P H"],
    value_pages: Float[Array, "R K P H"],
    key_means: Float[Array, "R K H"],
    page_table: Int[Array, "B M"],
    lengths: Int[Array, " B"],
    keys: Float[Array, "B K H"],
    values: Float[Array, "B K H"],
    *,
    key_scales: None = None,
    value_scales: None = None,
    implementation: Implementation | None = None,
) -> tuple[Float[Array, "R K P H"], Float[Array, "R K P H"], Float[Array, "R K H"]]: ...


@overload
def append_kv(
    key_pages: Real[Array, "R K P H"],
    value_pages: Real[Array, "R K P H"],
    key_means: Float[Array, "R K H"],
    page_table: Int[Array, "B M"],
    lengths: Int[Array, " B"],
    keys: Float[Array, "B K H"],
    values: Float[Array, "B K H"],
    *,
    key_scales: Float[Array, "R K P"],
    value_scales: Float[Array, "R K P"],
    implementation: Implementation | None = None,
) -> tuple[
    Real[Array, "R K P H"],
    Real[Array, "R K P H"],
    Float[Array, "R K H"],
    Float[Array, "R K P"],
    Float[Array, "R K P"],
]: ...


def append_kv(
    key_pages: Real[Array, "R K P H"],
    value_pages: Real[Array, "R K P H"],
    key_means: Float[Array, "R K H"],
    page_table: Int[Array, "B M"],
    lengths: Int[Array, " B"],
    keys: Float[Array, "B K H"],
    values: Float[Array, "B K H"],
    *,
    key_scales: Float[Array, "R K P"] | None = None,
    value_scales: Float[Array, "R K P"] | None = None,
    implementation: Implementation | None = None,
) -> tuple[Array, ...]:
    """Write one token per sequence at position lengths - 1 and renew the mean key of its page.

    Under `jit` with donated pools, or with the pools as loop carry, the update is in place. A sequence of length 0,
    beyond its table, or whose table names no page of the pool, is not written. No two sequences may share the page
    that they write.

    Quantised pages take the new token as `quantise_pages` rounds it. The mean is that of the keys as the page then
    holds them, page * scale, since those are what a decode attends to.

    Args:
        key_pages: Pool of key pages.
        value_pages: Pool of value pages.
        key_means: Mean key of the held slots of each page.
        page_table: Page ids of each sequence in order.
        lengths: Tokens held [tokens], the new one included (the same lengths that the decode step then takes).
        keys: The new keys.
        values: The new values.
        key_scales: Factor of each key vector, for pages of int8 or float8_e4m3fn; None for others.
        value_scales: Factor of each value vector; likewise.
        implementation: None picks what works here; a name never falls back silently, but under `vmap` XLA's runs.

    Returns:
        The new key_pages, value_pages and key_means; of quantised pages also the new key_scales and value_scales.

    Raises:
        ValueError: If a shape does not fit, or scales are missing or too many.
        NotImplementedError: If the named implementation does not exist here.

    Example:
        >>> import jax.numpy as jnp
        >>> pages, means = jnp.zeros((1, 1, 2, 4)), jnp.zeros((1, 1, 4))
        >>> token = jnp.ones((1, 1, 4))
        >>> keys, _, means = append_kv(pages, pages, means, jnp.array([[0]]), jnp.array([1]), token, token)
        >>> keys[0, 0, :, 0].tolist(), means[0, 0, 0].item()
        ([1.0, 0.0], 1.0)
    """
    _validate.check_implementation(implementation)
    _validate.check_pages(key_pages, value_pages, page_table, lengths, key_scales, value_scales)
    _validate.check_key_means(key_means, key_pages)
    _validate.check_new_kv(keys, values, key_pages, page_table)
    scales = tuple(pool for pool in (key_scales, value_scales) if pool is not None)
    arrays = (key_pages, value_pages, key_means, page_table, lengths, keys, values, *scales)
    return _dispatch.append(implementation, "append_kv", arrays)


def rotate_and_append_kv(
    key_pages: Float[Array, "R K P H"],
    value_pages: Float[Array, "R K P H"],
    key_means: Float[Array, "R K H"],
    page_table: Int[Array, "B M"],
    lengths: Int[Array, " B"],
    q: Float[Array, "B N H"],
    keys: Float[Array, "B K H"],
    values: Float[Array, "B K H"],
    cos: Float[Array, "B half"],
    sin: Float[Array, "B half"],
    *,
    norms: tuple[Float[Array, " H"], Float[Array, " H"]] | None = None,
    epsilon: float = 1e-6,
    implementation: Implementation | None = None,
) -> tuple[Float[Array, "B N H"], Float[Array, "R K P H"], Float[Array, "R K P H"], Float[Array, "R K H"]]:
    """Take heads as the projections give them: norm and rotate queries and keys, then append as `append_kv`.

    The same as `rms_norm` (cast to the dtype of the heads), `rotate` and `append_kv` one after the other. On a GPU it
    is one kernel: a decode step of a small model is short enough for the launches to count. Under `vmap` XLA's runs,
    whatever the name, as of `append_kv`.

    Args:
        key_pages: Pool of key pages.
        value_pages: Pool of value pages.
        key_means: Mean key of the held slots of each page.
        page_table: Page ids of each sequence in order.
        lengths: Tokens held [tokens], the new one included.
        q: Queries of the new token as projected.
        keys: Its keys as projected, in the dtype of q.
        values: Its values, likewise.
        cos: Cosine of the angle by which each pair of a head turns, in float32, times what lengthens the heads (YaRN).
        sin: Sine, likewise.
        norms: Weights of the RMSNorm of query heads and of key heads; None for models without.
        epsilon: Added to the mean square.
        implementation: None picks what works here; a name never falls back silently, but under `vmap`.

    Returns:
        The queries to attend with, and the new key_pages, value_pages and key_means.

    Raises:
        ValueError: If a shape or dtype does not fit, or the pages are quantised.
        NotImplementedError: If the named implementation does not exist here.

    Example:
        >>> import jax.numpy as jnp
        >>> pages, means = jnp.zeros((1, 1, 1, 2)), jnp.zeros((1, 1, 2))
        >>> x, right_angle = jnp.array([[[1.0, 2.0]]]), (jnp.array([[0.0]]), jnp.array([[1.0]]))
        >>> q, keys, *_ = rotate_and_append_kv(
        ...     pages, pages, means, jnp.array([[0]]), jnp.array([1]), x, 2 * x, x, *right_angle
        ... )
        >>> q.tolist(), keys[0, 0].tolist()
        ([[[-2.0, 1.0]]], [[-4.0, 2.0]])

    References:
        Qwen3 technical report (arXiv 2505.09388), section 2: the norm of queries and keys.
    """
    _validate.check_implementation(implementation)
    _validate.check_not_quantised(key_pages)
    _validate.check_pages(key_pages, value_pages, page_table, lengths)
    _validate.check_key_means(key_means, key_pages)
    _validate.check_query(q, key_pages, page_table, None)
    _validate.check_new_kv(keys, values, key_pages, page_table)
    _validate.check_rotation(cos, sin, norms, q, keys, values)
    scales = () if norms is None else norms
    arrays = (key_pages, value_pages, key_means, page_table, lengths, q, keys, values, cos, sin, *scales)
    queries, *pools = _dispatch.append(implementation, "rotate_and_append_kv", arrays, epsilon=epsilon)
    key_pages, value_pages, key_means = pools
    return queries, key_pages, value_pages, key_means


def append_bounds(
    key_bounds: Float[Array, "R K 2 H"],
    page_table: Int[Array, "B M"],
    lengths: Int[Array, " B"],
    keys: Float[Array, "B K H"],
    *,
    page_len: int,
) -> Float[Array, "R K 2 H"]:
    """Widen the bounds of the page that each new key goes to: the (min, max) over its slots that `quest_decode` reads.

    Called beside `append_kv` with the same table, lengths and keys. The first key of a page starts its bounds anew.
    A sequence that `append_kv` does not write changes no bounds either. Bounds of quantised pages are those of what the
    pages hold: `append_bounds(..., dequantise_pages(*quantise_pages(keys, key_pages.dtype)), ...)`.

    Args:
        key_bounds: Smallest and largest key of each page by dimension, in the dtype of the pages.
        page_table: Page ids of each sequence in order.
        lengths: Tokens held [tokens], the new one included.
        keys: The new keys.
        page_len: Tokens in a page, P.

    Returns:
        The new key_bounds.

    Raises:
        ValueError: If a shape does not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> bounds, table = jnp.full((1, 1, 2, 1), jnp.nan), jnp.array([[0]])
        >>> for length, key in ((1, 5.0), (2, -3.0)):
        ...     bounds = append_bounds(bounds, table, jnp.array([length]), jnp.full((1, 1, 1), key), page_len=2)
        >>> bounds.ravel().tolist()
        [-3.0, 5.0]
    """
    _validate.check_new_bounds(key_bounds, page_table, lengths, keys, page_len)
    return _xla.append_bounds(key_bounds, page_table, lengths, keys, page_len=page_len)
