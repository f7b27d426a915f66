"""What `--mesh DATAxMODEL` means: two numbers of devices."""

import re

import jax
from jax.sharding import Mesh


def parse_mesh(text: str) -> Mesh:
    """Return the mesh that DATAxMODEL means, of this machine's devices, or of all that processes have joined.

    Raises:
        ValueError: If the text is no two numbers, or there are fewer devices.
    """
    data, model = mesh_shape(text)
    devices = jax.devices()
    if data * model > len(devices) or (jax.process_count() > 1 and data * model < len(devices)):
        there = f"this machine has {len(devices)}"
        if jax.process_count() > 1:  # who has no part in the mesh would wait for ever
            there = f"the {jax.process_count()} processes have {len(devices)}, and all must take part"
        raise ValueError(f"--mesh {text} takes {data * model} devices; {there}")
    return jax.make_mesh((data, model), ("data", "model"), devices=devices[: data * model])


def mesh_shape(text: str) -> tuple[int, int]:
    """Return the numbers of DATAxMODEL, without asking for devices.

    Raises:
        ValueError: If the text is no two numbers.
    """
    found = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", text)
    if found is None:
        raise ValueError(f"--mesh must be DATAxMODEL, two numbers of devices; got {text!r}. Use 1x8 for 8 devices")
    return int(found[1]), int(found[2])
