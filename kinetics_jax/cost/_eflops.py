"""One number from a bill: FLOPs plus the FLOPs that the memory traffic displaces."""

from typing import Literal

import numpy as np

from kinetics_jax.specs import HardwareSpec

from ._cost import Cost
from ._numbers import Quantity, as_quantity, namespace

Combine = Literal["add", "max"] | float


def eflops(
    cost: Cost,
    hardware: HardwareSpec,
    *,
    combine: Combine = "add",
    compute_dtype: str = "bfloat16",
    kv_dtype: str = "bfloat16",
) -> Quantity:
    """Combine FLOPs F and bytes M into equivalent FLOPs, with the arithmetic intensity I of the hardware.

        "add": F + I M        "max": max(F, I M)        p: (F^p + (I M)^p)^(1/p)

    The p-norm is "add" at p = 1 and tends to "max". All three combine totals; they do not overlap step by step.

    Args:
        cost: The bill, leaves of any shape.
        hardware: The chip.
        combine: "add" (the paper's default: no overlap), "max" (perfect overlap), or a norm p >= 1 (between).
        compute_dtype: The dtype of the matrix products; with the next, sets I.
        kv_dtype: The dtype of the cache. A product runs at the rate of its wider operand: FP8 arithmetic on a BF16
            cache has the BF16 intensity (the paper's 562.5 mixes the two, errata 2).

    Returns:
        Equivalent FLOPs [FLOP], of the leaves' shape.

    Raises:
        ValueError: If `combine` is none of these or the chip has no peak for the dtypes.

    Example:
        >>> from kinetics_jax.cost import request_cost
        >>> from kinetics_jax.specs import HARDWARE, MODELS, Dense
        >>> cost = request_cost(MODELS["Qwen3-8B"], Dense(), prompt_len=500, gen_len=8000)
        >>> f"{eflops(cost, HARDWARE['PAPER_B200']):.2e}"
        '3.13e+15'

    References:
        PAPER.md section 2; errata 2 on intensity.
    """
    norm = _norm(combine)
    compute = cost.flops
    memory = hardware.intensity(compute_dtype, kv_dtype) * cost.bytes
    if norm == 1:
        return compute + memory
    xp = namespace(compute, memory)
    larger, smaller = xp.maximum(compute, memory), xp.minimum(compute, memory)
    if np.isinf(norm):
        return as_quantity(larger)
    # Dividing by the larger keeps the powers in range and the gradient finite at zero cost.
    share = smaller / xp.where(larger > 0, larger, 1.0)
    return as_quantity(larger * (1.0 + share**norm) ** (1.0 / norm))


def _norm(combine: Combine) -> float:
    if combine == "add":
        return 1.0
    if combine == "max":
        return float("inf")
    if isinstance(combine, str) or not combine >= 1:
        raise ValueError(f"combine must be 'add', 'max' or a norm p >= 1; got {combine!r}")
    return float(combine)
