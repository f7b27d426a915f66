"""How much of a GPU JAX may take: by itself it stops at three quarters, where weights and cache may want the rest.

Called first by the commands that fill a GPU: JAX reads the environment when it first uses the device.
"""

import os

_SHARE = 0.92  # what the driver and other processes' contexts hold is not JAX's to take
_NAMES = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")


def allow_whole_gpu(*, preallocate: bool = True) -> None:
    """Raise JAX's limit unless the environment sets one; take the memory as it is needed if not to `preallocate`."""
    if not any(os.environ.get(name) for name in _NAMES):
        os.environ[_NAMES[0]] = str(_SHARE)
    if not preallocate:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
