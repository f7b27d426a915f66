"""`kinetics bench decode`: what was timed, beside what it must cost at least."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jax.errors import JaxRuntimeError

from kinetics_jax.cli._decode_jobs import DecodeJob, time_jobs
from kinetics_jax.cli._gpu_memory import allow_whole_gpu
from kinetics_jax.sampling import DecodeTimer
from kinetics_jax.specs import HARDWARE, MODELS


def test_rows_hold_times_floor_and_prediction(kinetics, tmp_path: Path):
    out = tmp_path / "decode.json"
    arguments = ["--attention", "dense", "--attention", "block_topk:16x2", "--context", "60", "--batch-size", "2"]
    arguments += ["--num-steps", "2", "--num-runs", "1", "--out", str(out), "--json"]
    done = kinetics("bench", "decode", "Kinetics-Mini-0.1M", *arguments)
    assert done.code == 0, done.err
    content = json.loads(done.out)
    assert content == json.loads(out.read_text())
    dense, sparse = content["rows"]
    assert (dense["attention"], sparse["attention"]) == ("dense", "block_topk:16x2")
    spec, chip = MODELS["Kinetics-Mini-0.1M"], HARDWARE["H100-SXM"]
    # Weights once, keys and values of 61 entries for two sequences, those of the new token written.
    kv_bytes = 2 * spec.kv_elements_per_token
    floor_bytes = 2 * spec.num_matmul_params + 2 * 61 * kv_bytes
    assert dense["floor_s"] == pytest.approx(floor_bytes / chip.hbm_bytes_per_s, rel=0.05)
    assert sparse["floor_s"] < dense["floor_s"]
    for row in (dense, sparse):
        assert 0 < row["sample_s"] < row["step_s"]
        assert row["tokens_per_s"] == pytest.approx(2 / row["step_s"])
        assert row["predicted_s"] >= 0.9 * row["floor_s"]


def test_a_mesh_shares_what_is_read():
    """Two devices of a machine made to have eight: heads cut in two read half of everything, sequences all weights."""
    sizes = ["--context", "60", "--batch-size", "4", "--num-steps", "1", "--num-runs", "1"]
    meshes = ["--mesh", "1x1", "--mesh", "1x2", "--mesh", "2x1"]
    command = ["bench", "decode", "Kinetics-Mini-0.1M", "--attention", "dense", *sizes, *meshes, "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "kinetics_jax.cli", *command],
        env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    one, heads, sequences = json.loads(done.stdout)["rows"]
    assert [row["mesh"] for row in (one, heads, sequences)] == ["1x1", "1x2", "2x1"]
    assert heads["device"] == "cpu, mesh 1x2"
    assert heads["floor_s"] == pytest.approx(one["floor_s"] / 2)
    weights_s = 2 * MODELS["Kinetics-Mini-0.1M"].num_matmul_params / HARDWARE["H100-SXM"].hbm_bytes_per_s
    assert sequences["floor_s"] - heads["floor_s"] == pytest.approx(weights_s / 2, rel=0.05)
    assert all(row["step_s"] > 0 and row["predicted_s"] >= 0.9 * row["floor_s"] for row in (one, heads, sequences))


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        ("2x1", "a multiple of the data axis of --mesh 2x1; got 3"),
        ("2", "--mesh must be DATAxMODEL"),
        ("1x99", "takes"),
    ],
)
def test_a_mesh_that_does_not_fit_is_one_sentence(kinetics, mesh, message):
    sizes = ["--attention", "dense", "--context", "30", "--batch-size", "3"]
    done = kinetics("bench", "decode", "Kinetics-Mini-0.1M", *sizes, "--mesh", mesh)
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert message in done.err


def test_processes_time_the_same_jobs_and_one_that_fails_leaves_the_others():
    sizes: dict[str, Any] = {"context_len": 30, "batch_size": 2, "num_steps": 1, "num_runs": 1}
    jobs = [DecodeJob(model="Kinetics-Mini-0.1M", attention=text, **sizes) for text in ("dense", "no attention")]
    timed = []
    with pytest.raises(ChildProcessError, match="1 of 2 processes failed"):
        timed.extend(time_jobs(jobs, 2))
    assert [job for job, _ in timed] == jobs[:1]
    assert timed[0][1].step_s > 0


def test_a_job_that_fails_on_the_device_is_said_and_the_others_are_timed(kinetics, monkeypatch, tmp_path: Path):
    whole, time = DecodeTimer.time, []

    def lacks_memory_first(self, *arguments, **options):
        time.append(1)
        if len(time) == 1:
            raise JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1TiB.\nand more lines")
        return whole(self, *arguments, **options)

    monkeypatch.setattr(DecodeTimer, "time", lacks_memory_first)
    arguments = ["--attention", "dense", "--attention", "local:16", "--context", "30", "--batch-size", "2"]
    done = kinetics(
        "bench", "decode", "Kinetics-Mini-0.1M", *arguments, "--num-steps", "1", "--num-runs", "1", "--json"
    )
    assert done.code == 1
    assert "1 of 2: Kinetics-Mini-0.1M dense, 2 x 30 tokens failed: RESOURCE_EXHAUSTED: Out of memory" in done.err
    assert "more lines" not in done.err
    assert [row["attention"] for row in json.loads(done.out)["rows"]] == ["local:16"]


def test_a_model_that_fits_no_chip_is_one_sentence(kinetics):
    done = kinetics("bench", "decode", "Kinetics-Mini-0.1M", "--attention", "dense", "--context", 10**9)
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert "must fit" in done.err
    assert "Use a larger chip" in done.err


def test_jax_may_take_the_whole_gpu_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch):
    for name in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_PREALLOCATE"):
        monkeypatch.setenv(name, "")  # undone afterwards
        monkeypatch.delenv(name)
    allow_whole_gpu()
    assert float(os.environ["XLA_CLIENT_MEM_FRACTION"]) > 0.9
    assert "XLA_PYTHON_CLIENT_PREALLOCATE" not in os.environ
    monkeypatch.delenv("XLA_CLIENT_MEM_FRACTION")
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")
    allow_whole_gpu(preallocate=False)
    assert "XLA_CLIENT_MEM_FRACTION" not in os.environ  # JAX takes one of the two
    assert os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"
