"""Many processes as one: a model over the devices of several hosts."""

import re

import jax

from ._app import console


def join_processes(text: str, mesh: str | None) -> None:
    """Connect this process to the others of the same command; of their progress the first one tells.

    Args:
        text: "auto", where JAX knows the cluster (Slurm, Open MPI, TPU pods), or HOST:PORT,i/n: process i of n, and
            where the first one is found.
        mesh: What `--mesh` says: processes without a common mesh would each do everything.

    Raises:
        ValueError: If the text is neither, there is no mesh, or JAX knows no cluster here.
    """
    if mesh is None:
        raise ValueError("--distributed needs --mesh DATAxMODEL, over the devices of all processes")
    found = re.fullmatch(r"([^,\s]+:\d+),(\d+)/([1-9]\d*)", text)
    if text != "auto" and (found is None or int(found[2]) >= int(found[3])):
        raise ValueError(f"--distributed must be auto or HOST:PORT,i/n with i < n; got {text!r}. Use 10.0.0.1:1234,0/4")
    if found is not None:
        jax.distributed.initialize(found[1], num_processes=int(found[3]), process_id=int(found[2]))
    else:
        try:
            jax.distributed.initialize()
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"--distributed auto finds no cluster here ({error}). Use HOST:PORT,i/n") from error
    console.quiet = jax.process_index() > 0
