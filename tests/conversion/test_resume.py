"""A conversion that is killed, interrupted or out of disk goes on later, and ends with the same checkpoint."""

import fcntl
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import checkpoints_conversion._convert as convert_module
from checkpoints_conversion import convert_checkpoint, export_checkpoint, save_checkpoint, weights_hash
from kinetics_jax.models import load_model
from tests.conversion.families import MIXTURE, QWEN3, assert_same_weights, files_of, store_head_twice

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def source(random_decoder, tmp_path: Path) -> Path:
    save_checkpoint(random_decoder(MIXTURE), tmp_path / "source", dtype="float32")
    return tmp_path / "source"


def stop_at(share: float):
    """Return an `on_progress` that is interrupted once this share of the bytes was read."""

    def on_progress(done: int, total: int) -> None:
        if done >= share * total:
            raise KeyboardInterrupt

    return on_progress


def one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no tensor be read ahead, so that all before the newest are on the disk."""
    monkeypatch.setattr(convert_module, "MAX_HELD_BYTES", 1)


def resumed_at(source: Path, target: Path, **options) -> int:
    """Convert and return the bytes that an earlier run had done."""
    seen: list[int] = []
    convert_checkpoint(source, target, on_progress=lambda done, total: seen.append(done), **options)
    return seen[0]


def assert_whole(target: Path, wanted, source: Path) -> None:
    assert_same_weights(load_model(target), wanted)
    assert json.loads((target / "manifest.json").read_text())["weights_hash"] == weights_hash(source)
    assert not target.with_name("mine.partial").exists()
    assert not {"journal.jsonl", ".lock"} & {file.name for file in target.iterdir()}


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_an_interrupted_run_goes_on(source: Path, random_decoder, monkeypatch: pytest.MonkeyPatch, share: float):
    one_at_a_time(monkeypatch)
    target = source.with_name("mine")
    with pytest.raises(KeyboardInterrupt):
        convert_checkpoint(source, target, on_progress=stop_at(share))
    assert not target.exists()
    assert (target.with_name("mine.partial")).is_dir()
    total = 4 * MIXTURE.num_params
    first = resumed_at(source, target)
    assert first == 0 if share == 0 else 0.6 * share * total < first < total
    assert_whole(target, random_decoder(MIXTURE), source)


def test_a_killed_process_goes_on(source: Path, random_decoder):
    """SIGKILL, in the middle: nothing in the process can clean up."""
    code = f"""
import os, signal, sys
import checkpoints_conversion._convert as module
module.MAX_HELD_BYTES = 1
def kill(done, total):
    if done > 0.7 * total:
        os.kill(os.getpid(), signal.SIGKILL)
module.convert_checkpoint({str(source)!r}, {str(source.with_name("mine"))!r}, on_progress=kill)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not source.with_name("mine").exists()
    assert resumed_at(source, source.with_name("mine")) > 2 * MIXTURE.num_params
    assert_whole(source.with_name("mine"), random_decoder(MIXTURE), source)


def test_a_full_disk_is_an_os_error_and_the_run_goes_on(source: Path, random_decoder):
    """A limit on the size of files refuses the large leaf as a full disk would, from inside TensorStore."""
    spec = replace(QWEN3, vocab_size=4096, d_model=64, num_layers=1)
    save_checkpoint(random_decoder(spec), source, dtype="float32")
    code = f"""
import resource, signal
import checkpoints_conversion._convert as module
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 17, 1 << 17))
try:
    module.convert_checkpoint({str(source)!r}, {str(source.with_name("mine"))!r})
except OSError as error:
    print(error.errno, error)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("27 [Errno 27] the weights cannot be written; make room and run again"), done.stdout
    assert "mine.partial/weights" in done.stdout
    assert not source.with_name("mine").exists()
    resumed_at(source, source.with_name("mine"))
    assert_whole(source.with_name("mine"), random_decoder(spec), source)


def test_a_line_cut_in_half_is_not_believed(source: Path, random_decoder, monkeypatch: pytest.MonkeyPatch):
    one_at_a_time(monkeypatch)
    target = source.with_name("mine")
    with pytest.raises(KeyboardInterrupt):
        convert_checkpoint(source, target, on_progress=stop_at(0.5))
    journal = target.with_name("mine.partial") / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    cut = json.loads(lines[-1])
    journal.write_bytes(b"".join(lines[:-1]) + lines[-1][:40])
    whole = sum(4 * int(np.prod(json.loads(line)["shape"])) for line in lines[1:-1])
    assert len(lines) > 10
    assert resumed_at(source, target) == whole
    assert cut["name"] in (target / "manifest.json").read_text()
    assert_whole(target, random_decoder(MIXTURE), source)


@pytest.mark.parametrize("change", ["source", "dtype", "journal"])
def test_another_conversion_starts_anew(source: Path, random_decoder, monkeypatch: pytest.MonkeyPatch, change: str):
    one_at_a_time(monkeypatch)
    target, partial = source.with_name("mine"), source.with_name("mine.partial")
    with pytest.raises(KeyboardInterrupt):
        convert_checkpoint(source, target, on_progress=stop_at(0.5))
    wanted = random_decoder(MIXTURE)
    if change == "source":
        wanted = random_decoder(MIXTURE, seed=1)
        save_checkpoint(wanted, source, dtype="float32")
        os.utime(source / "model.safetensors", ns=(1, 1))
    elif change == "journal":
        (partial / "journal.jsonl").write_bytes(b"\xff\n")
    assert resumed_at(source, target, dtype="float32" if change != "dtype" else "bfloat16") == 0
    if change != "dtype":
        assert_whole(target, wanted, source)
    assert load_model(target).dtype == ("bfloat16" if change == "dtype" else "float32")


def test_a_tied_head_stored_twice_survives_a_stop(random_decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    one_at_a_time(monkeypatch)
    save_checkpoint(random_decoder(QWEN3), tmp_path / "source", dtype="float32")
    store_head_twice(tmp_path / "source")
    with pytest.raises(KeyboardInterrupt):
        convert_checkpoint(tmp_path / "source", tmp_path / "mine", on_progress=stop_at(0.9))
    assert resumed_at(tmp_path / "source", tmp_path / "mine") > 0
    export_checkpoint(tmp_path / "mine", tmp_path / "back")
    assert weights_hash(tmp_path / "back") == weights_hash(tmp_path / "source")


def test_two_processes_never_write_one_target(source: Path):
    target, partial = source.with_name("mine"), source.with_name("mine.partial")
    partial.mkdir()
    with (partial / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = files_of(partial)
        with pytest.raises(ValueError, match=r"another process is writing .*mine\.partial; wait for it"):
            convert_checkpoint(source, target)
        assert files_of(partial) == before
    convert_checkpoint(source, target)
    assert not partial.exists()


def test_an_interrupted_export_leaves_nothing(source: Path):
    convert_checkpoint(source, source.with_name("mine"))
    with pytest.raises(KeyboardInterrupt):
        export_checkpoint(source.with_name("mine"), source.with_name("back"), on_progress=stop_at(0.5))
    assert sorted(file.name for file in source.parent.iterdir()) == ["mine", "source"]
