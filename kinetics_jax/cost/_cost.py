"""The bill: seven terms that add up. Built by `request_cost`, combined by `eflops`."""

from dataclasses import dataclass, fields
from typing import Any

import jax

from ._numbers import Number


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Cost:
    """Itemise what a request costs; a JAX pytree whose leaves share one shape.

    Attributes:
        linear_flops: Matrix products with the weights [FLOP].
        attention_flops: Query-key and probability-value products over the entries read [FLOP].
        search_flops: Scoring of page summaries (mean keys, or their bounds) [FLOP].
        kv_read_bytes: Cache entries read [bytes].
        kv_write_bytes: Cache entries and page summaries written [bytes].
        search_bytes: Page summaries read [bytes].
        param_bytes: Weights read; zero when amortised over an endless batch [bytes].

    Example:
        >>> unit = Cost(linear_flops=2.0, attention_flops=1.0, search_flops=0.0, kv_read_bytes=4.0,
        ...             kv_write_bytes=1.0, search_bytes=0.0, param_bytes=0.0)
        >>> (unit + 2 * unit).flops
        9.0
    """

    # Any: a pytree also carries what JAX puts in place of leaves (shapes, axes, None).
    linear_flops: Any
    attention_flops: Any
    search_flops: Any
    kv_read_bytes: Any
    kv_write_bytes: Any
    search_bytes: Any
    param_bytes: Any

    @property
    def flops(self) -> Any:
        """All arithmetic [FLOP]."""
        return self.linear_flops + self.attention_flops + self.search_flops

    @property
    def bytes(self) -> Any:
        """All memory traffic [bytes]."""
        return self.kv_read_bytes + self.kv_write_bytes + self.search_bytes + self.param_bytes

    def __add__(self, other: "Cost") -> "Cost":
        """Add term by term: the bill of two requests."""
        return Cost(**{term.name: getattr(self, term.name) + getattr(other, term.name) for term in fields(Cost)})

    def __mul__(self, factor: Number) -> "Cost":
        """Scale every term: the bill of `factor` such requests."""
        return Cost(**{term.name: getattr(self, term.name) * factor for term in fields(Cost)})

    __rmul__ = __mul__
