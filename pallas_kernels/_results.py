"""What a decode returns on request besides its output."""

from typing import NamedTuple

from jaxtyping import Array, Float, Int


class DecodeResult(NamedTuple):
    """Hold the output of a decode and what is needed to merge it with others (`merge_partials`).

    Attributes:
        out: Attention output, in the dtype of the queries.
        lse: log sum_s exp(scale q . k_s) over the entries read, in float32; -inf where none was.
    """

    out: Float[Array, "*X B N H"]
    lse: Float[Array, "*X B N"]


class BlockTopKResult(NamedTuple):
    """Hold the output of a decode that selects pages, and what it read.

    Attributes:
        out: Attention output, in the dtype of the queries.
        lse: log sum_s exp(scale q . k_s) over the entries read, in float32; -inf where none was.
        selected: Logical pages read by each sequence and KV head, ascending; M where there was none left to read.
    """

    out: Float[Array, "B N H"]
    lse: Float[Array, "B N"]
    selected: Int[Array, "B K J"]
