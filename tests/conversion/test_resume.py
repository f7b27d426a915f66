"""A conversion that is killed, interrupted or out of disk goes on later, and ends with the same checkpoint."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
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
    assert len(lines) > 5
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


def test_a_target_that_was_filled_meanwhile_is_kept(source: Path):
    """Converting takes hours: what came to the target since is not ours to remove, and the work is not lost."""
    target = source.with_name("mine")

    def fill(done: int, total: int) -> None:
        target.mkdir(exist_ok=True)
        (target / "thesis.txt").write_text("mine")

    with pytest.raises(ValueError, match=r"the target .*mine exists and is not empty"):
        convert_checkpoint(source, target, on_progress=fill)
    assert [file.name for file in target.iterdir()] == ["thesis.txt"]
    (target / "thesis.txt").unlink()
    assert resumed_at(source, target) == 4 * MIXTURE.num_params
    (target / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"the target .*back exists and is not empty"):
        export_checkpoint(target, source.with_name("back"), on_progress=lambda done, total: fill_back(source))
    assert [file.name for file in source.with_name("back").iterdir()] == ["thesis.txt"]


def fill_back(source: Path) -> None:
    source.with_name("back").mkdir(exist_ok=True)
    (source.with_name("back") / "thesis.txt").write_text("mine")


@pytest.mark.parametrize("is_there", [False, True])
def test_a_kill_while_the_folder_gets_its_name_needs_no_repair(
    source: Path, random_decoder, monkeypatch: pytest.MonkeyPatch, is_there: bool
):
    """At every rename: the next run ends well, and an old checkpoint is there, whole, under one of two names."""
    target, old = source.with_name("mine"), source.with_name("mine.replaced")
    if is_there:
        convert_checkpoint(source, target)
    before = files_of(target) if is_there else {}
    replace_really, num_renames = Path.replace, 0

    def stop(self: Path, other: Path) -> Path:
        nonlocal num_renames
        num_renames += 1
        if num_renames == stop_before:
            raise KeyboardInterrupt
        return replace_really(self, other)

    for stop_before in (1, 2) if is_there else (1,):
        num_renames = 0
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", stop)
            with pytest.raises(KeyboardInterrupt):
                convert_checkpoint(source, target, force=True)
        assert not is_there or files_of(target if stop_before == 1 else old) == before
    convert_checkpoint(source, target, force=True)
    assert_whole(target, random_decoder(MIXTURE), source)
    if is_there:
        with pytest.raises(ValueError, match=r"mine\.replaced, where .*mine would wait for its end, exists; move or"):
            convert_checkpoint(source, target, force=True)
        assert files_of(old) == before


def test_who_waited_for_the_lock_does_not_write_into_a_folder_that_got_its_name(
    source: Path, monkeypatch: pytest.MonkeyPatch
):
    """The other process ends between our opening its lock and our taking it."""
    target, partial = source.with_name("mine"), source.with_name("mine.partial")
    partial.mkdir()
    (partial / ".lock").touch()
    take = fcntl.flock

    def end_first(lock, how: int) -> None:
        partial.replace(target)
        take(lock, how)

    monkeypatch.setattr(fcntl, "flock", end_first)
    with pytest.raises(ValueError, match=r"another process has just finished .*mine\.partial"):
        convert_checkpoint(source, target)
    assert [file.name for file in target.iterdir()] == [".lock"]


def test_a_failed_export_leaves_no_thread(source: Path):
    convert_checkpoint(source, source.with_name("mine"))
    before = set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt) as caught:
        export_checkpoint(source.with_name("mine"), source.with_name("back"), on_progress=stop_at(0.5))
    assert caught.value.__traceback__ is not None  # still holds the generators that read ahead
    assert set(threading.enumerate()) == before
