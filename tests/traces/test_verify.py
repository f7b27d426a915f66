"""What is wrong with files is found and named in full; what is in them is summed up."""

import json

import pyarrow.parquet as pq
import pytest

from kinetics_jax.traces import TraceWriter, compact, inspect_traces, verify_traces
from kinetics_jax.traces._schema import trace_to_json


@pytest.fixture
def folder(tmp_path, traces, make_trace):
    """A shard and a Parquet file, both sound."""
    with TraceWriter(tmp_path / "a.jsonl") as writer:
        writer.append(traces[:4])
    with TraceWriter(tmp_path / "b.jsonl") as writer:
        writer.append([make_trace(run="other", problem="p9", attention="topk:8", finish_reason="length", difficulty=5)])
    compact(tmp_path / "b.jsonl", tmp_path / "b.parquet")
    (tmp_path / "b.jsonl").unlink()
    return tmp_path


def test_sound_files_have_no_issues(folder):
    check = verify_traces(folder)
    assert (check.num_files, check.num_rows, check.issues) == (2, 5, ())


def test_every_issue_is_listed(folder, traces, make_trace):
    shard = folder / "a.jsonl"
    row = json.loads(trace_to_json(traces[0]))
    lines = [
        json.dumps({**row, "trial": 90, "score": 0.5}),
        json.dumps({**row, "trial": 91, "attention": "dense "}),
        trace_to_json(traces[1]),
        trace_to_json(make_trace(trial=92, task="chess")),
        "",
    ]
    shard.write_text(shard.read_text() + "\n".join(lines) + '\n{"run": "mini')
    (folder / "c.parquet").write_bytes(b"PAR1 no")
    check = verify_traces(folder)
    assert (check.num_files, check.num_rows) == (3, 7)
    assert [(issue.path, issue.number, issue.kind) for issue in check.issues] == [
        (str(shard), 5, "row"),
        (str(shard), 6, "row"),
        (str(shard), 7, "duplicate"),
        (str(shard), 8, "run"),
        (str(shard), 9, "row"),
        (str(shard), 10, "torn"),
        (str(folder / "c.parquet"), None, "file"),
    ]
    said = [str(issue) for issue in check.issues]
    assert said[0] == f"{shard}, line 5: score must be 1.0 (right), 0.0 (wrong) or None (ungradable); got 0.5"
    assert said[2].endswith(f"run 'mini-dense', problem 'p0', trial 1 is already in {shard}, line 2")
    assert "task 'pathfind' became 'chess'" in said[3]
    assert said[6].startswith(f"{folder / 'c.parquet'}: not a readable Parquet file")


def test_what_cannot_be_read_is_listed(folder):
    (folder / "c.jsonl").mkdir()
    check = verify_traces(folder)
    assert check.num_rows == 5
    assert [(issue.path, issue.number, issue.kind) for issue in check.issues] == [
        (str(folder / "c.jsonl"), None, "file")
    ]


def test_a_trial_in_two_files_is_a_duplicate(folder):
    compact(folder / "a.jsonl", folder / "copy.parquet")
    check = verify_traces(folder)
    assert check.num_rows == 9
    assert {issue.kind for issue in check.issues} == {"duplicate"}
    assert len(check.issues) == 4
    assert str(check.issues[0]).startswith(f"{folder / 'copy.parquet'}, row 1: run 'mini-dense'")


def test_token_ids_of_parquet_are_checked_too(folder):
    table = pq.read_table(folder / "b.parquet")
    rows = table.to_pylist()
    rows[0]["output_ids"] = [1]
    pq.write_table(type(table).from_pylist(rows, schema=table.schema), folder / "b.parquet")
    (issue,) = verify_traces(folder).issues
    assert str(issue) == f"{folder / 'b.parquet'}, row 1: gen_len is 5, but there are 1 token ids"


def test_inspect_by_hand(folder, make_trace):
    """p0: one of three right; p1: one of one. Accuracy is the mean of the problems, not of the trials."""
    dense, sparse = inspect_traces(folder)
    assert (dense.task, dense.model, dense.attention) == ("pathfind", "Kinetics-Mini-1.7M", "dense")
    assert (dense.num_rows, dense.num_runs, dense.num_problems) == (4, 1, 2)
    assert (dense.min_trials, dense.max_trials, dense.num_ungradable) == (1, 3, 1)
    assert dense.accuracy == pytest.approx((1 / 3 + 1) / 2)
    assert (dense.mean_prompt_len, dense.mean_gen_len, dense.median_gen_len, dense.longest_gen_len) == (4, 5, 5, 5)
    assert (dense.max_gen_len, dense.finish_reasons) == (8, {"eos": 4})
    assert (sparse.attention, sparse.finish_reasons, sparse.accuracy) == ("topk:8", {"length": 1}, 1.0)
    with TraceWriter(folder / "d.jsonl") as writer:
        writer.append([make_trace(run="long", gen_len=8, output_ids=(1,) * 8, trial=3)])
    dense = inspect_traces(folder)[0]
    assert (dense.num_runs, dense.max_trials, dense.mean_gen_len, dense.longest_gen_len) == (2, 4, 5.6, 8)
