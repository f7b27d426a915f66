"""Rows written anew: beside and renamed, only if one differs, never under a writer's feet."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from kinetics_jax.traces import Trace, TraceWriter, read_traces, rewrite_traces, write_traces

Traces = list[Trace]


def write(path: Path, traces: Sequence[Trace]) -> Path:
    if path.suffix == ".parquet":
        write_traces(traces, path)
    else:
        with TraceWriter(path) as writer:
            writer.append(traces)
    return path


def revised(traces: Sequence[Trace]) -> Traces:
    return [replace(trace, score=0.0, solved_len=None, task_revision="2") for trace in traces]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_changed_rows_replace_the_file_and_equal_ones_do_not(name: str, traces: Traces, tmp_path: Path):
    path = write(tmp_path / name, traces)
    path.chmod(0o640)
    before = path.read_bytes()
    assert rewrite_traces(path, list) == 0
    assert path.read_bytes() == before
    assert rewrite_traces(path, revised) == len(traces)
    assert read_traces(path) == revised(traces)
    after, inode = path.read_bytes(), path.stat().st_ino
    assert rewrite_traces(path, revised) == 0
    assert (path.read_bytes(), path.stat().st_ino) == (after, inode)
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_long_files_are_changed_piece_by_piece(make_trace: Callable[..., Trace], tmp_path: Path):
    traces = [make_trace(trial=trial) for trial in range(300)]
    path, seen = write(tmp_path / "a.jsonl", traces), []

    def change(batch: Sequence[Trace]) -> Traces:
        seen.append(len(batch))
        return [replace(trace, time_s=1.0) if trace.trial == 299 else trace for trace in batch]

    assert rewrite_traces(path, change) == 1
    assert len(seen) > 1
    assert sum(seen) == 300
    assert [trace.time_s for trace in read_traces(path)] == [0.25] * 299 + [1.0]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
@pytest.mark.parametrize(
    "change", [lambda batch: batch[1:], lambda batch: batch[::-1], lambda batch: [*batch, batch[0]]]
)
def test_trials_can_neither_come_nor_go(name: str, change: Callable, traces: Traces, tmp_path: Path):
    path = write(tmp_path / name, traces)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="must return the same trials in the same order"):
        rewrite_traces(path, change)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_a_shard_in_use_is_left_alone(traces: Traces, tmp_path: Path):
    path = tmp_path / "a.jsonl"
    with TraceWriter(path) as writer:
        writer.append(traces)
        with pytest.raises(OSError, match="another writer holds this trace shard"):
            rewrite_traces(path, revised)
    assert read_traces(path) == traces
    with pytest.raises(ValueError, match=r"traces are \.jsonl or \.parquet files"):
        rewrite_traces(tmp_path / "a.csv", revised)


def test_a_writer_never_gets_a_file_that_was_replaced(traces: Traces, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It opened the old file and is about to lock it when the new one takes its name."""
    import fcntl

    path = write(tmp_path / "a.jsonl", traces)
    lock = fcntl.flock

    def late(file: int, operation: int) -> None:
        os.replace(write(tmp_path / "new.jsonl", traces[:1]), path)
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", lambda *args: (monkeypatch.setattr(fcntl, "flock", lock), late(*args))[1])
    with pytest.raises(OSError, match="another writer holds this trace shard"):
        TraceWriter(path)
    with TraceWriter(path) as writer:
        assert writer.done_keys() == {traces[0].key}
