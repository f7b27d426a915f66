"""Number formats of caches and weights: how many bytes a vector of them takes, its scales included."""

from dataclasses import dataclass

from ._catalog import Catalog


@dataclass(frozen=True, kw_only=True)
class DTypeSpec:
    """Describe one number format.

    Attributes:
        name: The name used in arguments.
        num_bits: Bits of an element.
        scale_bytes: Bytes of the scale kept beside each vector of a KV cache; 0 where the format needs none.

    Example:
        >>> DTYPES["int4"].vector_bytes(128)
        66.0
    """

    name: str
    num_bits: int
    scale_bytes: int = 0

    @property
    def element_bytes(self) -> float:
        """Bytes of one element without its share of a scale."""
        return self.num_bits / 8

    def vector_bytes(self, width: int) -> float:
        """Return the bytes of one key or value vector of `width` elements and its scale."""
        return width * self.element_bytes + self.scale_bytes


DTYPES = Catalog(
    "dtype",
    {
        spec.name: spec
        for spec in (
            DTypeSpec(name="float32", num_bits=32),
            DTypeSpec(name="bfloat16", num_bits=16),
            DTypeSpec(name="float16", num_bits=16),
            # One bfloat16 scale for each key and each value vector of a token and KV head.
            DTypeSpec(name="float8", num_bits=8, scale_bytes=2),
            DTypeSpec(name="int8", num_bits=8, scale_bytes=2),
            DTypeSpec(name="int4", num_bits=4, scale_bytes=2),
        )
    },
)
