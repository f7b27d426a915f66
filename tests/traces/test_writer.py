"""The writer's promise: an acknowledged row is never lost, and none is ever wrong."""

import errno
import os
import resource
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kinetics_jax.traces import TraceWriter, read_traces
from kinetics_jax.traces._schema import trace_to_json


@pytest.fixture
def shard(tmp_path):
    return tmp_path / "new" / "shard.jsonl"


def test_append_is_on_disk_and_reopening_continues(shard, traces):
    with TraceWriter(shard) as writer:
        assert writer.done_keys() == frozenset()
        writer.append(traces[:2])
        assert read_traces(shard) == traces[:2]
    with TraceWriter(shard) as writer:
        assert writer.done_keys() == {trace.key for trace in traces[:2]}
        assert writer.num_recovered_bytes == 0
        writer.append(traces[2:])
        writer.append([])
    assert read_traces(shard) == traces


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1))
def test_a_cut_anywhere_loses_only_the_cut_row(share, tmp_path, traces):
    shard = tmp_path / "shard.jsonl"
    lines = [trace_to_json(trace) + "\n" for trace in traces]
    data = "".join(lines).encode()
    cut = round(share * len(data))
    shard.write_bytes(data[:cut])
    num_whole = data[:cut].count(b"\n")
    with TraceWriter(shard) as writer:
        assert writer.done_keys() == {trace.key for trace in traces[:num_whole]}
        assert writer.num_recovered_bytes == cut - len("".join(lines[:num_whole]).encode())
        writer.append(traces[num_whole:])
    assert shard.read_bytes() == data


def test_a_whole_row_without_its_newline_was_never_acknowledged(shard, traces):
    shard.parent.mkdir()
    shard.write_text(trace_to_json(traces[0]) + "\n" + trace_to_json(traces[1]))
    with pytest.warns(UserWarning, match=r"shard.jsonl, line 2: the last line was cut off"):
        assert read_traces(shard) == traces[:1]
    with TraceWriter(shard) as writer:
        assert writer.done_keys() == {traces[0].key}


@pytest.mark.parametrize("damage", [b"{not json}\n", b"\n", b"\0\0\0\n", b"[1]\n", b"\xff\xfe\n"])
def test_a_broken_line_in_the_middle_is_an_error_and_stays(shard, traces, damage):
    shard.parent.mkdir()
    lines = [trace_to_json(trace).encode() + b"\n" for trace in traces]
    data = lines[0] + damage + lines[1]
    shard.write_bytes(data)
    for reader in (TraceWriter, read_traces):
        with pytest.raises(ValueError, match=r"shard.jsonl, line 2: "):
            reader(shard)
    assert shard.read_bytes() == data
    shard.write_bytes(lines[0])
    TraceWriter(shard).close()  # the failed opening gave its lock back


def test_duplicates_are_refused_and_nothing_of_the_batch_is_written(shard, traces):
    with TraceWriter(shard) as writer:
        writer.append(traces[:1])
        for batch in (traces[1:3] + traces[:1], [traces[4], traces[4]]):
            with pytest.raises(ValueError, match=r"run 'mini-dense', problem 'p\d', trial \d is already in .*shard"):
                writer.append(batch)
        assert read_traces(shard) == traces[:1]
        writer.append(traces[1:])
    with shard.open("a") as file:
        file.write(trace_to_json(traces[2]) + "\n")
    with pytest.raises(ValueError, match=r"shard.jsonl, line 7: run 'mini-dense', problem 'p0', trial 2 is already"):
        TraceWriter(shard)


def test_a_run_keeps_its_settings(shard, make_trace):
    with TraceWriter(shard) as writer:
        writer.append([make_trace()])
        with pytest.raises(ValueError, match=r"run 'mini-dense' changed: weights_hash 'c0ffee' became 'f00'"):
            writer.append([make_trace(trial=1, weights_hash="f00")])
        writer.append([make_trace(trial=1, weights_hash="f00", run="second")])


def test_a_second_writer_is_refused(shard, traces):
    with TraceWriter(shard) as writer:
        with pytest.raises(OSError, match=r"another writer holds this trace shard.*shard.jsonl"):
            TraceWriter(shard)
        writer.append(traces)
    TraceWriter(shard).close()
    assert read_traces(shard) == traces


def test_a_second_process_is_refused_until_the_first_ends(shard, traces):
    code = "import sys; from kinetics_jax.traces import TraceWriter as W; w = W(sys.argv[1]); print(); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(shard)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"\n"
        with pytest.raises(OSError, match=r"another writer holds this trace shard.*shard.jsonl"):
            TraceWriter(shard)
        first.kill()
    with TraceWriter(shard) as writer:
        writer.append(traces)
    assert read_traces(shard) == traces


@pytest.mark.parametrize("name", ["settings.json", "all.parquet", "shard"])
def test_another_file_is_not_taken_for_a_torn_shard(tmp_path, name):
    (tmp_path / name).write_text("precious, and without a line's end")
    with pytest.raises(ValueError, match=rf"a shard must end in \.jsonl; got .*{name}"):
        TraceWriter(tmp_path / name)
    assert (tmp_path / name).read_text() == "precious, and without a line's end"


def test_an_interrupted_batch_is_not_written_twice(shard, traces, monkeypatch):
    def interrupt(file: int) -> None:
        raise KeyboardInterrupt

    with TraceWriter(shard) as writer:
        writer.append(traces[:1])
        with monkeypatch.context() as disk:
            disk.setattr(os, "fsync", interrupt)
            with pytest.raises(KeyboardInterrupt):
                writer.append(traces[1:3])
        with pytest.raises(ValueError, match=r"is closed; open a new TraceWriter"):
            writer.append(traces[1:3])
    with TraceWriter(shard) as writer:
        writer.append([trace for trace in traces if trace.key not in writer.done_keys()])
    assert read_traces(shard) == traces


def test_a_closed_writer_says_so(shard, traces):
    writer = TraceWriter(shard)
    writer.close()
    writer.close()
    with pytest.raises(ValueError, match=r"is closed"):
        writer.append(traces)


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot open a trace shard for writing .*Choose a folder.*shard.jsonl"):
        TraceWriter(tmp_path / "file" / "shard.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(OSError, match=r"cannot open a trace shard for writing"):
        TraceWriter(tmp_path / "folder.jsonl")


def test_a_full_disk_takes_the_batch_back(shard, traces):
    with TraceWriter(shard) as writer:
        writer.append(traces[:2])
        before = shard.read_bytes()
        old = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 100, old[1]))  # room for part of a line
        try:
            with pytest.raises(OSError, match=r"cannot write traces .*rows written before are safe.*shard\.jsonl"):
                writer.append(traces[2:])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
        assert shard.read_bytes() == before
        writer.append(traces[2:])
    assert read_traces(shard) == traces


def test_rows_that_could_not_be_flushed_are_taken_back(shard, traces, monkeypatch):
    def refuse(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with TraceWriter(shard) as writer:
        writer.append(traces[:2])
        with monkeypatch.context() as disk:
            disk.setattr(os, "fsync", refuse)
            with pytest.raises(OSError, match=r"cannot write traces \(No space left on device\).*shard\.jsonl"):
                writer.append(traces[2:4])
        assert writer.done_keys() == {trace.key for trace in traces[:2]}
        assert read_traces(shard) == traces[:2]
        writer.append(traces[2:])
    assert read_traces(shard) == traces
