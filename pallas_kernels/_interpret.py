"""Run the Pallas kernels of this room on a CPU, step by step: for tests only.

A kernel asks `tpu_params()`, `gpu_params()` or `triton_params()` for its `interpret` argument. The switch is part of
the key of every `jit` cache, so a function compiled with it on is not reused with it off.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax

_INTERPRETED = jax.make_user_context(False)


@contextmanager
def interpreted() -> Iterator[None]:
    """Interpret every Pallas kernel that is traced inside the `with` block."""
    with _INTERPRETED(True):
        yield


def is_interpreted() -> bool:
    """Return whether kernels are to be interpreted."""
    return bool(_INTERPRETED.value)


def tpu_params() -> Any:
    """Return `interpret` for `pl.pallas_call` of a TPU kernel: unwritten memory is NaN, races are looked for."""
    if not is_interpreted():
        return False
    from jax.experimental.pallas import tpu as pltpu

    return pltpu.InterpretParams(detect_races=True)


def gpu_params() -> Any:
    """Return `interpret` for a Mosaic GPU kernel: races are looked for.

    Raises:
        NotImplementedError: If this JAX cannot interpret them.
    """
    if not is_interpreted():
        return False
    from jax.experimental.pallas import mosaic_gpu as plgpu

    params = getattr(plgpu, "InterpretParams", None) or getattr(plgpu, "InterpretGPUParams", None)
    if params is None:
        raise NotImplementedError(f"Mosaic GPU kernels are interpreted from JAX 0.11 on; got {jax.__version__}")
    return params(detect_races=True)


def triton_params() -> bool:
    """Return `interpret` for a Triton kernel: Pallas' generic interpreter, one program after another."""
    return is_interpreted()
