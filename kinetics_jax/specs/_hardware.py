"""Accelerators as data: peak arithmetic, memory and what they ask of `cost`. Every number names its source."""

from dataclasses import dataclass

from ._catalog import Catalog


@dataclass(frozen=True, kw_only=True)
class HardwareSpec:
    """Describe one accelerator chip.

    Attributes:
        name: The name used in tables and figures.
        peak_flops_per_s: Dense peak [FLOP/s] by compute dtype.
        hbm_bytes_per_s: Memory bandwidth [bytes/s].
        hbm_bytes: Memory capacity [bytes].
        source: Where the numbers come from, with the date they were read.
        fixed_flops_per_byte: A conventional arithmetic intensity that replaces peak / bandwidth, or None.

    Example:
        >>> round(HARDWARE["H100-SXM"].intensity("bfloat16"))
        295
        >>> HARDWARE["PAPER_B200"].intensity("bfloat16")
        562.5
    """

    name: str
    peak_flops_per_s: dict[str, float]
    hbm_bytes_per_s: float
    hbm_bytes: float
    source: str
    fixed_flops_per_byte: float | None = None

    def intensity(self, compute_dtype: str) -> float:
        """Return the arithmetic intensity I [FLOP/byte]: FLOPs the chip could do while it reads one byte.

        Args:
            compute_dtype: The dtype of the matrix products ("bfloat16", "float8", ...).

        Raises:
            ValueError: If the chip has no recorded peak for this dtype.

        References:
            PAPER.md section 2; errata 2 (562.5 mixes an FP8 peak with BF16 bytes and is kept as `PAPER_B200` only).
        """
        if self.fixed_flops_per_byte is not None:
            return self.fixed_flops_per_byte
        if compute_dtype not in self.peak_flops_per_s:
            raise ValueError(
                f"{self.name} has no peak for {compute_dtype!r}. Known: {', '.join(self.peak_flops_per_s)}"
            )
        return self.peak_flops_per_s[compute_dtype] / self.hbm_bytes_per_s


HARDWARE = Catalog(
    "hardware",
    {
        spec.name: spec
        for spec in (
            HardwareSpec(
                name="H100-SXM",
                peak_flops_per_s={"bfloat16": 989.4e12, "float16": 989.4e12, "float8": 1978.9e12, "int8": 1978.9e12},
                hbm_bytes_per_s=3.35e12,
                hbm_bytes=80e9,
                source="NVIDIA H100 datasheet, dense rates (half of the 'with sparsity' column), read 2026-11-22",
            ),
            HardwareSpec(
                name="PAPER_B200",
                peak_flops_per_s={"bfloat16": 4.5e15},
                hbm_bytes_per_s=8e12,
                hbm_bytes=192e9,
                source="Kinetics (arXiv 2506.05333) cost model: 4.5e15 FLOP/s over 8e12 bytes/s, read 2026-11-22",
                fixed_flops_per_byte=562.5,
            ),
        )
    },
)
