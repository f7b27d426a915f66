"""One accelerator as data: peak arithmetic, memory, links, power and price, each number with its source and date.

`cost` asks it how many FLOPs a byte displaces; `_chips.py` holds the chips that have a name.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite

from ._catalog import FrozenMapping
from ._dtype import DTYPES

_NUMBERS = ("hbm_bytes_per_s", "hbm_bytes", "link_bytes_per_s", "watts", "dollars_per_hour", "fixed_flops_per_byte")


@dataclass(frozen=True, kw_only=True)
class HardwareSpec:
    """Describe one accelerator chip. Hashable, so it can be a static argument of `jax.jit`.

    Attributes:
        name: The name used in tables and figures.
        peak_flops_per_s: Dense peak [FLOP/s] by dtype of the operands; never the rate "with sparsity".
        hbm_bytes_per_s: Memory bandwidth [bytes/s].
        hbm_bytes: Memory capacity [bytes].
        link_bytes_per_s: Interconnect from one chip to its peers, all links and both directions together, as vendors
            print it [bytes/s]; half of it leaves the chip. None if unknown.
        watts: Largest power of the chip or board [W]; None if not published.
        dollars_per_hour: Public on-demand price of one chip, its share of the host included [$/h]; None if there is
            none.
        sources: For every number given, by field name: where it comes from and when it was read (`2026-11-22`).
        fixed_flops_per_byte: A conventional arithmetic intensity that holds for every dtype, or None. The peak is then
            this times the bandwidth.

    Raises:
        ValueError: If a number is not positive, a dtype is unknown, or a number has no source with a date.

    Example:
        >>> from kinetics_jax.specs import HARDWARE
        >>> round(HARDWARE["H100-SXM"].intensity("bfloat16"))
        295
        >>> HARDWARE["PAPER_B200"].intensity("bfloat16")
        562.5
    """

    name: str
    peak_flops_per_s: Mapping[str, float]
    hbm_bytes_per_s: float
    hbm_bytes: float
    sources: Mapping[str, str]
    link_bytes_per_s: float | None = None
    watts: float | None = None
    dollars_per_hour: float | None = None
    fixed_flops_per_byte: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "peak_flops_per_s", FrozenMapping(self.peak_flops_per_s))
        object.__setattr__(self, "sources", FrozenMapping(self.sources))
        given = {field: getattr(self, field) for field in _NUMBERS if getattr(self, field) is not None}
        peaks = {f"peak_flops_per_s[{dtype!r}]": peak for dtype, peak in self.peak_flops_per_s.items()}
        for field, number in (given | peaks).items():
            if not (isfinite(number) and number > 0):
                raise ValueError(f"{field} must be a positive number; got {number} in hardware {self.name!r}")
        if not peaks:
            raise ValueError(f"peak_flops_per_s must have one dtype at least; hardware {self.name!r} has none")
        for dtype in self.peak_flops_per_s:
            DTYPES[dtype]  # raises for an unknown one
        self._check_sources({"peak_flops_per_s", *given})

    def peak_flops(self, compute_dtype: str, kv_dtype: str = "bfloat16") -> float:
        """Return the dense peak [FLOP/s] of products between activations and a KV cache of these dtypes.

        A product runs at the rate of its wider operand: float8 arithmetic on a bfloat16 cache runs at the bfloat16
        rate, and a narrower cache (int4) is widened to the compute dtype first.

        Args:
            compute_dtype: The dtype of the activations ("bfloat16", "float8", ...).
            kv_dtype: The dtype of the other operand, the KV cache.

        Returns:
            FLOP/s; with `fixed_flops_per_byte`, that times the bandwidth, whatever the dtypes.

        Raises:
            ValueError: If a dtype is unknown, or the chip has no recorded peak for the wider one.

        Example:
            >>> from kinetics_jax.specs import HARDWARE
            >>> HARDWARE["B200"].peak_flops("float8", "float8") / HARDWARE["B200"].peak_flops("float8", "bfloat16")
            2.0
        """
        compute, cache = DTYPES[compute_dtype], DTYPES[kv_dtype]
        if self.fixed_flops_per_byte is not None:
            return self.fixed_flops_per_byte * self.hbm_bytes_per_s
        wider = compute_dtype if compute.num_bits >= cache.num_bits else kv_dtype
        if wider not in self.peak_flops_per_s:
            raise ValueError(
                f"{self.name} has no peak for {wider!r}, the wider of compute_dtype={compute_dtype!r} and "
                f"kv_dtype={kv_dtype!r}. Known: {', '.join(self.peak_flops_per_s)}"
            )
        return self.peak_flops_per_s[wider]

    def intensity(self, compute_dtype: str, kv_dtype: str = "bfloat16") -> float:
        """Return the arithmetic intensity I = peak / bandwidth [FLOP/byte]: FLOPs displaced by reading one byte.

        Args:
            compute_dtype: The dtype of the activations ("bfloat16", "float8", ...).
            kv_dtype: The dtype of the KV cache; the wider of the two sets the peak.

        Returns:
            FLOP/byte; `fixed_flops_per_byte` where the chip has one.

        Raises:
            ValueError: If a dtype is unknown, or the chip has no recorded peak for the wider one.

        Example:
            >>> from kinetics_jax.specs import HARDWARE
            >>> HARDWARE["B200"].intensity("bfloat16")
            281.25

        References:
            PAPER.md section 2; errata 2 (562.5 divides an FP8 peak by a bandwidth that moves BF16; kept as `PAPER_B200`
            only).
        """
        return self.peak_flops(compute_dtype, kv_dtype) / self.hbm_bytes_per_s

    def _check_sources(self, fields: set[str]) -> None:
        if missing := sorted(fields - set(self.sources)):
            raise ValueError(f"every number needs a source; hardware {self.name!r} has none for {', '.join(missing)}")
        if extra := sorted(set(self.sources) - fields):
            raise ValueError(f"sources must name a number given; hardware {self.name!r} gives no {', '.join(extra)}")
        for field, text in self.sources.items():
            if not re.search(r"\b20\d\d-\d\d-\d\d\b", text):
                raise ValueError(
                    f"every source needs the date it was read (2026-11-22); got {text!r} for {field} of {self.name!r}"
                )
