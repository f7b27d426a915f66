"""Pallas' Mosaic GPU as the kernels use it (JAX 0.11 and newer). Typed loosely: its names move between versions."""

import importlib
from typing import Any

plgpu: Any = importlib.import_module("jax.experimental.pallas.mosaic_gpu")


def store_element_wise(target: Any, value: Any) -> None:
    """Write to shared memory that has no swizzle to suit the layout of the value: slow, for little of it."""
    if hasattr(plgpu, "store"):  # JAX 0.12, where `target[...] = value` looks for a fast way only
        plgpu.store(target, value, optimized=False)
    else:
        target[...] = value
