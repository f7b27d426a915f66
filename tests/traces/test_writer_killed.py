"""The writer's promise under SIGKILL at any instant: an acknowledged row is never lost, and none is ever wrong."""

import os
import subprocess
import sys

import pytest

from kinetics_jax.traces import TraceWriter, read_tables, read_traces, verify_traces
from kinetics_jax.traces._schema import trace_to_json

# Forks one writer after another; each goes on where the shard ends, in batches of one to five rows, and says how many
# rows there are once they are acknowledged. Prints, per writer, the rows it found and the last number it said.
# "instant": killed from outside, after a delay drawn at random. "bytes": it kills itself when a write has put some of
# its bytes to disk, a share drawn at random, so that every kind of torn tail comes up.
DRIVER = """
import os, random, select, signal, sys
from dataclasses import replace
from kinetics_jax.traces import TraceWriter
from kinetics_jax.traces import _writer
from kinetics_jax.traces._schema import trace_from_json

path, line, how, rounds = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
trace = trace_from_json(line)
random.seed(how)

def write_for_ever(pipe, seed):
    draw = random.Random(seed)
    if how == "bytes":
        num_left = draw.randrange(1, 6)
        def write_some(file, data):
            nonlocal num_left
            num_left -= 1
            if num_left == 0:
                os.write(file, data[:draw.randrange(len(data) + 1)])
                os.kill(os.getpid(), signal.SIGKILL)
            while data:
                data = data[os.write(file, data):]
        _writer._write_all = write_some
    with TraceWriter(path) as writer:
        number = len(writer.done_keys())
        os.write(pipe, b"%d\\n%d\\n" % (writer.num_recovered_bytes, number))
        while True:
            size = draw.randrange(1, 6)
            writer.append([replace(trace, trial=number + i) for i in range(size)])
            number += size
            os.write(pipe, b"%d\\n" % number)

for round in range(rounds):
    out, into = os.pipe()
    child = os.fork()
    if not child:
        os.close(out)
        write_for_ever(into, f"{how}{round}")
    os.close(into)
    said = b""
    while said.count(b"\\n") < 2:
        said += os.read(out, 64)
    if how == "instant":
        select.select([], [], [], random.uniform(0, 0.004))
        os.kill(child, signal.SIGKILL)
    while more := os.read(out, 1 << 16):
        said += more
    os.close(out)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    numbers = [int(text) for text in said.split()]
    print(numbers[0], numbers[1], numbers[-1])
"""


@pytest.mark.parametrize(("how", "rounds"), [("instant", 40), ("bytes", 40)])
def test_a_writer_killed_many_times_loses_no_acknowledged_row_and_writes_no_wrong_one(
    how, rounds, tmp_path, make_trace
):
    shard = tmp_path / "shard.jsonl"
    trace = make_trace(answer="é" * 200)  # a line of more bytes than characters
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(shard), trace_to_json(trace), how, str(rounds)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    torn, found, acknowledged = zip(*[map(int, line.split()) for line in done.stdout.splitlines()], strict=True)
    assert len(found) == rounds
    assert (
        how == "instant" or sum(num_bytes > 0 for num_bytes in torn) > rounds / 3
    )  # it did die in the middle of lines
    assert all(next_found >= said for said, next_found in zip(acknowledged, found[1:], strict=False))

    issues = verify_traces(shard).issues
    assert {issue.kind for issue in issues} <= {"torn"}
    with TraceWriter(shard) as writer:
        assert bool(writer.num_recovered_bytes) == bool(issues)
        num_rows = len(writer.done_keys())
    assert num_rows >= acknowledged[-1] > rounds
    assert read_traces(shard) == [make_trace(answer="é" * 200, trial=number) for number in range(num_rows)]
    assert read_tables(shard)[0].mask.sum() == num_rows
