"""Int8 weights: one float32 scale an output channel, rounded when a model is converted, cast back in the product.

Rounded are the kernels of projections, MLP or experts and of an untied head: nearly all of a large model. Embedding
(and so a tied head), norms, biases and the router of a mixture keep their floats. No data is looked at.
"""

import math

import jax.numpy as jnp
import numpy as np
from flax import nnx

from kinetics_jax.models import Decoder, abstract_decoder

from ._rules import num_kernel_axes

SCALE = "_scale"
"""Ends the name of the leaf that holds the scales of the leaf before it."""
_BLOCK_LEN = 1 << 18  # weights that are float32 at one time: few enough for the caches


def quantise_rows(name: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Round output channels, the rows of a matrix as Hugging Face stores it, and return int8 and scales.

    For each channel: scale = max |w| / 127, q = w / scale rounded to the nearest, ties to even; all in float32. So
    |w - q scale| <= scale / 2. A channel without a weight of at least 1.5e-36 becomes zero.

    Args:
        name: Of the tensor, for the error.
        rows: Floats [outputs, inputs].

    Returns:
        int8 [outputs, inputs] and float32 scales [outputs].

    Raises:
        ValueError: If a weight is not finite.

    Example:
        >>> values, scale = quantise_rows("lm_head.weight", np.array([[127.0, 0.5, -1.5], [0.5, -0.25, 0.0]]))
        >>> values.tolist(), (scale * 127).tolist()
        ([[127, 0, -2], [127, -64, 0]], [127.0, 0.5])

    References:
        Symmetric rounding by channel: Integer Quantization for Deep Learning Inference (arXiv 2004.09602), section 3.
    """
    values, scale = np.empty(rows.shape, np.int8), np.empty(len(rows), np.float32)
    num_rows = max(1, _BLOCK_LEN // rows.shape[1])
    for first in range(0, len(rows), num_rows):
        block = slice(first, first + num_rows)
        floats = rows[block].astype(np.float32)
        steps = np.maximum(floats.max(axis=1), -floats.min(axis=1)) / np.float32(127)
        if not np.isfinite(steps).all():
            raise ValueError(f"{name} must have finite weights; got {floats[~np.isfinite(floats)][0]}")
        steps[steps < np.finfo(np.float32).tiny] = 0  # too small to divide by
        scale[block] = steps
        floats /= np.where(steps > 0, steps, np.inf)[:, None]
        values[block] = np.rint(floats, out=floats)
    return values, scale


def quantise_leaf(path: str, leaf: np.ndarray) -> dict[str, np.ndarray]:
    """Return the leaf and its scales if it is one that int8 models round, else the leaf as it is.

    Args:
        path: Dotted path of the leaf: "layers.0.q_proj.kernel".
        leaf: The floats, the whole leaf or one expert's part of it; any view.

    Returns:
        {path: int8 of the same shape, path + "_scale": float32 of the output axes}, or {path: leaf}.

    Raises:
        ValueError: If a weight is not finite, or is rounded already.

    Example:
        >>> leaves = quantise_leaf("lm_head.kernel", np.array([[127.0, 0.5], [0.5, -0.25], [-1.5, 0]], np.float32))
        >>> leaves["lm_head.kernel"].tolist()
        [[127, 127], [0, -64], [-2, 0]]
        >>> (leaves["lm_head.kernel_scale"] * 127).tolist()
        [127.0, 0.5]
    """
    axes = num_kernel_axes(path)
    if axes is None:
        return {path: leaf}
    if leaf.dtype == np.int8:
        raise ValueError(f"leaf {path} is int8 already: quantise the model that has floats")
    num_inputs, num_outputs = axes
    first_input = leaf.ndim - num_inputs - num_outputs  # 1 in a stack of experts
    first_output = first_input + num_inputs
    kernels = leaf.reshape(-1, math.prod(leaf.shape[first_input:first_output]), math.prod(leaf.shape[first_output:]))
    values = np.empty(kernels.shape, np.int8)
    scale = np.empty((kernels.shape[0], kernels.shape[2]), np.float32)
    for index, kernel in enumerate(kernels):
        rows, scale[index] = quantise_rows(f"leaf {path}", kernel.T)
        values[index] = rows.T
    scale_shape = leaf.shape[:first_input] + leaf.shape[first_output:]
    return {path: values.reshape(leaf.shape), path + SCALE: scale.reshape(scale_shape)}


def quantise(model: Decoder) -> Decoder:
    """Return a decoder that holds the rounded weights of a model of floats.

    It prefills and decodes as the model does. The weights of its kernels take one byte each, in memory too.

    Args:
        model: The decoder, which stays as it is.

    Returns:
        The int8 decoder, on the default device; the leaves that are not rounded are shared with the model.

    Raises:
        ValueError: If a weight is not finite, or the model is int8 already.
    """
    graphdef, state = nnx.split(abstract_decoder(model.spec, dtype=model.dtype, int8=True))
    rounded: dict[str, np.ndarray] = {}
    kept: dict[str, nnx.Variable] = {}
    for path, leaf in nnx.to_flat_state(nnx.state(model)):
        name = ".".join(map(str, path))
        if num_kernel_axes(name) is None:
            kept[name] = leaf
        else:
            rounded |= quantise_leaf(name, np.asarray(leaf[...]))
    filled = []
    for path, leaf in nnx.to_flat_state(state):
        name = ".".join(map(str, path))
        filled.append((path, kept[name] if name in kept else leaf.replace(jnp.asarray(rounded.pop(name)))))
    return nnx.merge(graphdef, nnx.from_flat_state(filled))
