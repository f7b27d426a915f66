"""How queries and keys are made ready to meet: normed head by head, turned by position. Called by `models`."""

from dataclasses import dataclass

from jaxtyping import Array, Float

from pallas_kernels import rms_norm, rotate


@dataclass(frozen=True, kw_only=True)
class Rotation:
    """Say how the heads of T tokens are normed and by which angles their pairs turn.

    Kept apart from the heads until something attends: a decode step does both where it appends (`rotate_and_append`).

    Attributes:
        cos: Cosine of the angle of each pair of a head, float32; the first axis may be 1.
        sin: Sine, likewise.
        norms: Weights of the RMSNorm of query heads and of key heads; None for models without.
        epsilon: Added to the mean square.
    """

    cos: Float[Array, "B T half"]
    sin: Float[Array, "B T half"]
    norms: tuple[Float[Array, " H"], Float[Array, " H"]] | None = None
    epsilon: float = 1e-6

    def turned(
        self, queries: Float[Array, "B T N H"], keys: Float[Array, "B T K H"]
    ) -> tuple[Float[Array, "B T N H"], Float[Array, "B T K H"]]:
        """Return the queries and keys to attend with, in their dtype."""
        heads = queries, keys
        if self.norms is not None:
            heads = (
                rms_norm(each, weight, epsilon=self.epsilon).astype(each.dtype)
                for each, weight in zip(heads, self.norms, strict=True)
            )
        queries, keys = (rotate(each, self.cos, self.sin) for each in heads)
        return queries, keys
