"""How queries and keys are made ready to meet: normed head by head, turned by position. Called by `models`."""

from dataclasses import dataclass
from typing import Any

import jax
from jaxtyping import Array, Float

from pallas_kernels import rms_norm, rotate


@jax.tree_util.register_pytree_node_class
@dataclass(frozen=True, kw_only=True)
class Rotation:
    """Say how the heads of T tokens are normed and by which angles their pairs turn; a JAX pytree.

    Kept apart from the heads until something attends: a decode step does both where it appends (`rotate_and_append`).

    Attributes:
        cos: Cosine of the angle of each pair of a head, float32, times what lengthens the heads (YaRN); one row for all
            sequences, or one each.
        sin: Sine, likewise.
        norms: Weights of the RMSNorm of query heads and of key heads; None for models without.
        epsilon: Added to the mean square (static).
    """

    cos: Float[Array, "#B T half"]
    sin: Float[Array, "#B T half"]
    norms: tuple[Float[Array, " H"], Float[Array, " H"]] | None = None
    epsilon: float = 1e-6

    def turned(
        self, queries: Float[Array, "B T N H"], keys: Float[Array, "B T K H"]
    ) -> tuple[Float[Array, "B T N H"], Float[Array, "B T K H"]]:
        """Norm and rotate heads.

        Args:
            queries: Queries as projected.
            keys: Keys as projected.

        Returns:
            The queries and keys to attend with, in their dtype.
        """
        heads = queries, keys
        if self.norms is not None:
            heads = (
                rms_norm(each, weight, epsilon=self.epsilon).astype(each.dtype)
                for each, weight in zip(heads, self.norms, strict=True)
            )
        queries, keys = (rotate(each, self.cos, self.sin) for each in heads)
        return queries, keys

    # As in `PagedCache`: unflattening must not run the constructor, whose shape checks (in tests) want arrays.
    def tree_flatten(self) -> tuple[tuple[Any, ...], float]:
        """Return the arrays, and epsilon."""
        return (self.cos, self.sin, self.norms), self.epsilon

    @classmethod
    def tree_unflatten(cls, epsilon: float, children: tuple[Any, ...]) -> "Rotation":
        """Rebuild the rotation from its arrays."""
        rotation = object.__new__(cls)
        for name, value in zip(("cos", "sin", "norms", "epsilon"), (*children, epsilon), strict=True):
            object.__setattr__(rotation, name, value)
        return rotation
