"""A matrix product with weights, kept as floats or as int8 with one scale an output channel.

Called by `_layer`, `_mlp` and `_decoder`; experts, which multiply in groups, are in `_experts`. Int8 weights are for
running: `checkpoints_conversion` rounds them, and they have no gradient.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float


class Linear(nnx.Module):
    """Compute x kernel + bias over the last axes of x, or (x kernel) * kernel_scale + bias where the kernel is int8.

    The kernel has shape [*inputs, *outputs]. An int8 kernel stays int8 in memory: it is cast in the product, which is
    accumulated in float32 and scaled before it is rounded to `dtype`.

    Args:
        inputs: Sizes of the axes that are summed over.
        outputs: Sizes of the axes that take their place.
        use_bias: Whether there is a bias.
        dtype: Compute dtype.
        param_dtype: Storage dtype of kernel and bias.
        rngs: Initialisation keys.
    """

    def __init__(
        self,
        inputs: tuple[int, ...],
        outputs: tuple[int, ...],
        *,
        use_bias: bool = False,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.num_inputs = len(inputs)
        self.dtype = dtype
        draw = nnx.initializers.lecun_normal()
        matrix = draw(rngs.params(), (math.prod(inputs), math.prod(outputs)), param_dtype)
        self.kernel: nnx.Param = nnx.Param(matrix.reshape(*inputs, *outputs))
        self.kernel_scale: nnx.Param | None = nnx.data(None)
        self.bias: nnx.Param | None = nnx.Param(jnp.zeros(outputs, param_dtype)) if use_bias else nnx.data(None)

    def __call__(self, hidden: Float[Array, "*batch_and_inputs"]) -> Float[Array, "*batch_and_outputs"]:
        """Return the product in the compute dtype."""
        product = self.product(hidden).astype(self.dtype)
        if self.bias is None:
            return product
        return product + jnp.broadcast_to(self.bias[...].astype(self.dtype), product.shape)

    def product(
        self, hidden: Float[Array, "*batch_and_inputs"], *, result_dtype: DTypeLike | None = None
    ) -> Float[Array, "*batch_and_outputs"]:
        """Return the product without the bias.

        Args:
            hidden: What is multiplied.
            result_dtype: Dtype of accumulation and result; None is the compute dtype, or float32 for int8 weights.
        """
        if self.kernel_scale is not None:
            result_dtype = jnp.float32
        kernel = self.kernel[...].astype(self.dtype)
        product = jnp.tensordot(
            hidden.astype(self.dtype), kernel, axes=self.num_inputs, preferred_element_type=result_dtype
        )
        if self.kernel_scale is None:
            return product
        return product * jnp.broadcast_to(self.kernel_scale[...], product.shape)

    def hold_int8(self) -> None:
        """Turn the shapes of a float kernel into those of an int8 kernel and its scales; for abstract decoders."""
        shape = self.kernel.shape
        self.kernel = nnx.Param(jax.ShapeDtypeStruct(shape, jnp.int8))
        self.kernel_scale = nnx.Param(jax.ShapeDtypeStruct(shape[self.num_inputs :], jnp.float32))
