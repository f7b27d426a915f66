"""One model over the devices of two processes: the trials of one process, written by the first."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from kinetics_jax.cli._distributed import join_processes
from kinetics_jax.traces import read_traces

COMMAND = (sys.executable, "-m", "kinetics_jax.cli", "sample", "Kinetics-Mini-0.1M", "--attention=block_topk:8x4")
SETTINGS = ("--problems=3", "--slots=4", "--max-gen-len=16", "--temperature=0.8", "--seed=5", "--json")


def start(*arguments: str, num_devices: int) -> subprocess.Popen[str]:
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(num_devices)}
    return subprocess.Popen(
        [*COMMAND, *SETTINGS, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def tokens(folder: Path) -> dict[tuple[str, int], tuple[int, ...]]:
    (shard,) = folder.glob("*.jsonl")
    return {(trace.problem, trace.trial): tuple(trace.output_ids or ()) for trace in read_traces(shard)}


def finish(*processes: subprocess.Popen[str]) -> list[str]:
    """Return what they printed; whoever failed shows why."""
    said = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), said
    return [printed for printed, _ in said]


def without_gloo(printed: str) -> str:
    """Drop the lines that the library by which CPUs talk prints."""
    return "".join(line for line in printed.splitlines(keepends=True) if not line.startswith("[Gloo]"))


def test_two_processes_sample_what_one_samples(tmp_path):
    # Some trials are there already: the second process hears so from the first, which alone reads the folder.
    finish(
        start("--trials=4", f"--out={tmp_path / 'alone'}", num_devices=1),
        start("--trials=1", f"--out={tmp_path / '0'}", num_devices=1),
    )
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    together = ("--trials=4", "--mesh=2x2", f"--distributed=localhost:{port}")
    first, second = finish(
        *(
            start(*together[:2], f"{together[2]},{rank}/2", f"--out={tmp_path / str(rank)}", num_devices=2)
            for rank in range(2)
        )
    )
    (report,) = json.loads(without_gloo(first))
    assert (report["num_there"], report["num_written"], without_gloo(second)) == (3, 9, "")
    assert not (tmp_path / "1").exists()
    wanted = tokens(tmp_path / "alone")
    assert len(wanted) == 12
    assert tokens(tmp_path / "0") == wanted


@pytest.mark.parametrize(
    ("text", "mesh", "said"),
    [
        ("auto", None, "needs --mesh"),
        ("10.0.0.1:1234", "2x2", "must be auto or HOST:PORT,i/n"),
        ("10.0.0.1:1234,4/4", "2x2", "with i < n"),
    ],
)
def test_what_joins_nothing_is_named(text, mesh, said):
    with pytest.raises(ValueError, match=said):
        join_processes(text, mesh)
    assert jax.process_count() == 1
