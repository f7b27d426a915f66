"""What a bill takes on real chips: seconds, joules, dollars. Called by `_serving` and the CLI.

A roofline: every chip runs at its peak or streams at its full bandwidth. Real kernels take longer, never less.
"""

from kinetics_jax.specs import HardwareSpec

from ._cost import Cost
from ._eflops import Combine, eflops
from ._numbers import Quantity

_S_PER_HOUR = 3600.0


def seconds(
    cost: Cost,
    hardware: HardwareSpec,
    *,
    combine: Combine = "max",
    compute_dtype: str = "bfloat16",
    kv_dtype: str = "bfloat16",
    num_devices: int = 1,
) -> Quantity:
    """Return the time a bill takes: eFLOPs / (peak FLOP/s), spread evenly over the devices.

        "max": max(F / peak, M / bandwidth)        "add": F / peak + M / bandwidth

    "max", the roofline, is the default here, since chips compute while they load; `eflops` defaults to the paper's
    "add". With "add" and `PAPER_B200` this is the paper's B200-seconds, eFLOPs / 4.5e15.

    Args:
        cost: The bill, leaves of any shape.
        hardware: The chip.
        combine: As in `eflops`.
        compute_dtype: As in `eflops`.
        kv_dtype: As in `eflops`.
        num_devices: Chips that share the work.

    Returns:
        Time [s], of the leaves' shape.

    Raises:
        ValueError: As `eflops`, or if `num_devices` is below 1.

    Example:
        >>> from kinetics_jax.cost import request_cost
        >>> from kinetics_jax.specs import HARDWARE, MODELS, Dense
        >>> cost = request_cost(MODELS["Qwen3-8B"], Dense(), prompt_len=500, gen_len=8000)
        >>> round(seconds(cost, HARDWARE["PAPER_B200"], combine="add"), 3)
        0.695

    References:
        PAPER.md section 2, B200-seconds.
    """
    if num_devices < 1:
        raise ValueError(f"num_devices must be at least 1; got {num_devices}")
    total = eflops(cost, hardware, combine=combine, compute_dtype=compute_dtype, kv_dtype=kv_dtype)
    return total / (hardware.peak_flops(compute_dtype, kv_dtype) * num_devices)


def joules(
    cost: Cost,
    hardware: HardwareSpec,
    *,
    combine: Combine = "max",
    compute_dtype: str = "bfloat16",
    kv_dtype: str = "bfloat16",
    num_devices: int = 1,
) -> Quantity:
    """Return the energy of a bill: seconds x watts x devices, at the power that the chip is rated for.

    Args:
        cost: The bill, leaves of any shape.
        hardware: The chip.
        combine: As in `seconds`.
        compute_dtype: As in `eflops`.
        kv_dtype: As in `eflops`.
        num_devices: Chips that share the work; the energy does not depend on it.

    Returns:
        Energy of the chips, host and cooling left out [J], of the leaves' shape.

    Raises:
        ValueError: As `seconds`, or if no power is known for the chip.

    Example:
        >>> from kinetics_jax.cost import request_cost
        >>> from kinetics_jax.specs import HARDWARE, MODELS, Dense
        >>> cost = request_cost(MODELS["Qwen3-8B"], Dense(), prompt_len=500, gen_len=8000)
        >>> watts = HARDWARE["H100-SXM"].watts
        >>> joules(cost, HARDWARE["H100-SXM"]) == watts * seconds(cost, HARDWARE["H100-SXM"])
        True
    """
    watts = _figure(hardware, "watts", hardware.watts)
    time = seconds(
        cost, hardware, combine=combine, compute_dtype=compute_dtype, kv_dtype=kv_dtype, num_devices=num_devices
    )
    return time * (watts * num_devices)


def dollars(
    cost: Cost,
    hardware: HardwareSpec,
    *,
    combine: Combine = "max",
    compute_dtype: str = "bfloat16",
    kv_dtype: str = "bfloat16",
    num_devices: int = 1,
) -> Quantity:
    """Return the rent of a bill: seconds x devices x (dollars an hour) / 3600.

    Args:
        cost: The bill, leaves of any shape.
        hardware: The chip; its price is that of one on-demand chip on the day that its source says.
        combine: As in `seconds`.
        compute_dtype: As in `eflops`.
        kv_dtype: As in `eflops`.
        num_devices: Chips that share the work; the rent does not depend on it.

    Returns:
        Rent [US$], of the leaves' shape.

    Raises:
        ValueError: As `seconds`, or if no price is known for the chip.

    Example:
        >>> from kinetics_jax.cost import request_cost
        >>> from kinetics_jax.specs import HARDWARE, MODELS, Dense
        >>> cost = request_cost(MODELS["Qwen3-8B"], Dense(), prompt_len=500, gen_len=8000)
        >>> HARDWARE["H100-SXM"].dollars_per_hour, round(dollars(cost, HARDWARE["H100-SXM"]), 5)
        (6.88, 0.00303)
    """
    price = _figure(hardware, "dollars_per_hour", hardware.dollars_per_hour)
    time = seconds(
        cost, hardware, combine=combine, compute_dtype=compute_dtype, kv_dtype=kv_dtype, num_devices=num_devices
    )
    return time * (price * num_devices / _S_PER_HOUR)


def _figure(hardware: HardwareSpec, field: str, figure: float | None) -> float:
    """Return a figure that not every chip has.

    Raises:
        ValueError: If it is missing; the message says what is known of the chip.
    """
    if figure is None:
        names = ("peak_flops_per_s", "hbm_bytes_per_s", "hbm_bytes", "link_bytes_per_s", "watts", "dollars_per_hour")
        known = ", ".join(name for name in names if getattr(hardware, name) is not None)
        raise ValueError(
            f"{hardware.name} has no {field}. Known: {known}. If you have the figure, add it and where it comes from "
            f"(`sources`) with dataclasses.replace."
        )
    return figure
