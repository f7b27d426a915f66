"""Pallas' Mosaic GPU as the kernels use it (JAX 0.11 and newer). Typed loosely: its names move between versions."""

import importlib
from typing import Any

plgpu: Any = importlib.import_module("jax.experimental.pallas.mosaic_gpu")
