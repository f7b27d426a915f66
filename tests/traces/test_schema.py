"""What makes a trace valid, and its JSON form."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kinetics_jax.traces import TraceWriter, compact, read_tables, read_traces, verify_traces
from kinetics_jax.traces._schema import trace_from_json, trace_from_row, trace_to_json


def test_json_round_trip_is_one_line(traces):
    for trace in traces:
        line = trace_to_json(trace)
        assert "\n" not in line
        assert trace_from_json(line) == trace
        assert trace_from_json(line.encode()) == trace


def test_lengths_and_key(make_trace):
    trace = make_trace()
    assert (trace.prompt_len, trace.gen_len, trace.key) == (4, 5, ("mini-dense", "p0", 0))
    counted = make_trace(prompt_ids=None, prompt_len=90, output_ids=None, gen_len=7, seed=None, time_s=None)
    assert (counted.prompt_len, counted.gen_len) == (90, 7)
    assert trace_from_json(trace_to_json(counted)) == counted
    assert replace(trace, trial=3).gen_len == 5


def test_a_line_of_version_1_is_read_as_the_same_trace(make_trace, tmp_path):
    """Version 1: no lengths among the fields. Typed out, so that what old files hold cannot drift."""
    line = (
        '{"schema_version":1,"run":"mini-dense","model":"Kinetics-Mini-1.7M","weights_hash":"c0ffee","task":"pathfind",'
        '"problem":"p0","difficulty":3,"trial":0,"seed":7,"attention":"dense",'
        '"sampling":"SamplingSpec(temperature=1.0)","max_gen_len":8,"prompt_ids":[1,2,3,63],"output_ids":[4,5,6,7,0],'
        '"finish_reason":"eos","answer":"4 5\\n\\u2028\\u00e9","score":1.0,"solved_len":3,"time_s":0.25}'
    )
    assert trace_from_json(line) == make_trace()
    shard = tmp_path / "old.jsonl"
    shard.write_text(line + "\n")
    with TraceWriter(shard) as writer:  # an old shard goes on with new rows
        writer.append([make_trace(trial=1)])
    assert read_traces(shard) == [make_trace(), make_trace(trial=1)]
    (table,) = read_tables(shard)
    np.testing.assert_array_equal(table.gen_len, [[5, 5]])
    with pytest.raises(ValueError, match=r"prompt_len must be given where prompt_ids is None"):
        trace_from_json(line.replace("[1,2,3,63]", "null"))


@pytest.mark.parametrize("version", [1, 2])
def test_a_parquet_file_of_an_older_version_is_read_as_the_same_traces(traces, tmp_path, version):
    """Both had the lengths as columns, and neither revision nor licence."""
    columns = [name for name in vars(traces[0]) if not name.startswith("task_")]
    rows = [{name: getattr(trace, name) for name in columns} | {"schema_version": version} for trace in traces]
    old, packed = tmp_path / "old.parquet", tmp_path / "packed.parquet"
    pq.write_table(pa.Table.from_pylist(rows), old)
    assert read_traces(old) == traces
    assert verify_traces(old).issues == ()
    assert compact(old, packed) == len(traces)
    assert set(pq.read_schema(packed).names) == {*columns, "task_revision", "task_licence"}
    assert sorted(read_traces(packed), key=lambda trace: trace.key) == traces


def test_a_line_of_version_2_goes_with_any_revision_but_a_run_never_with_two(make_trace, tmp_path):
    row = {name: value for name, value in vars(make_trace()).items() if not name.startswith("task_")}
    shard = tmp_path / "old.jsonl"
    shard.write_text(json.dumps({**row, "schema_version": 2}) + "\n")
    graded = make_trace(trial=1, task_revision="a", task_licence="MIT", finish_reason="time")
    with TraceWriter(shard) as writer:
        writer.append([graded])
    assert read_traces(shard) == [make_trace(), graded]
    (table,) = read_tables(shard)
    assert table.num_trials == 2
    other = tmp_path / "other.jsonl"
    with TraceWriter(other) as writer:
        with pytest.raises(ValueError, match="changed: task_revision 'a' became 'b'"):
            writer.append([graded, replace(graded, trial=3, task_revision="b")])
        writer.append([replace(graded, run="another", task_revision="b")])
    with pytest.raises(ValueError, match=r"task_revision must be one for .*; got \['a', 'b'\]"):
        read_tables([shard, other])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schema_version": 1}, "schema_version of a new trace must be 3; got 1"),
        ({"prompt_len": 5}, "prompt_len is 5, but there are 4 token ids"),
        ({"prompt_ids": None}, "prompt_len must be given where prompt_ids is None"),
        ({"output_ids": None, "gen_len": -2}, "gen_len must lie in"),
        ({"run": ""}, "run must not be empty"),
        ({"trial": -1}, "trial must lie in 0"),
        ({"difficulty": 2**31}, "difficulty must lie in"),
        ({"attention": "sparse"}, "unknown attention spec 'sparse'"),
        ({"attention": "topk:08"}, "use 'topk:8'"),
        (
            {"finish_reason": "tired"},
            "one of eos, length, repetition, time, unknown; got 'tired'",
        ),
        ({"max_gen_len": 4}, "at most max_gen_len=4 tokens; got 5"),
        ({"prompt_ids": (1, -2)}, "prompt_ids must lie in"),
        ({"output_ids": (1, 2**31)}, "output_ids must lie in"),
        ({"score": 0.5}, "score must be 1.0"),
        ({"score": float("nan"), "solved_len": None}, "score must be 1.0.*got nan"),
        ({"score": 0.0}, "solved_len must be None unless"),
        ({"score": None}, "solved_len must be None unless"),
        ({"solved_len": None}, "solved_len must be given"),
        ({"solved_len": 6}, r"solved_len must lie in 0\.\.5"),
        ({"answer": "\ud800"}, "answer must be valid Unicode"),
        ({"time_s": float("inf")}, "time_s must be a finite"),
        ({"time_s": -1.0}, "time_s must be a finite"),
        ({"task_revision": ""}, "task_revision must not be empty"),
        ({"task_licence": "\udfff"}, "task_licence must be valid Unicode"),
    ],
)
def test_refuses_invalid_values(make_trace, changes, words):
    with pytest.raises(ValueError, match=words):
        make_trace(**changes)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("trial", np.int32(1)),
        ("trial", True),
        ("output_ids", [1, 2.0]),
        ("run", 3),
        ("score", "1"),
        ("task_revision", 1),
        ("solved_len", 3.0),
    ],
)
def test_refuses_wrong_types(make_trace, name, value):
    with pytest.raises(TypeError, match=rf"{name} must be"):
        trace_from_row({**vars(make_trace()), name: value})


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda row: row.pop("score"), r"missing \['score'\]"),
        (lambda row: row.update(colour="red"), r"unknown \['colour'\]"),
        (lambda row: row.update(score=float("nan")), "NaN is no valid value"),
        (lambda row: row.update(schema_version=9, novelty=1), "schema_version must be one of 1, 2, 3; got 9"),
        (lambda row: row.update(schema_version=True), "schema_version must be one of 1, 2, 3; got True"),
        (
            lambda row: row.update(schema_version=1),
            r"unknown \['prompt_len', 'gen_len', 'task_revision'",
        ),
        (lambda row: row.update(schema_version=2), r"unknown \['task_revision', 'task_licence'\]"),
        (lambda row: row.pop("gen_len"), r"missing \['gen_len'\]"),
        (lambda row: row.pop("task_licence"), r"missing \['task_licence'\]"),
        (lambda row: row.update(task_licence=""), "task_licence must not be empty"),
        (lambda row: row.update(gen_len=4), "gen_len is 4, but there are 5 token ids"),
        (lambda row: row.update(gen_len=-1), "gen_len must lie in"),
        (lambda row: row.update(output_ids=[1, None]), "output_ids must be a tuple"),
        (lambda row: row.update(prompt_ids=[1, -2, 3, 4]), "prompt_ids must lie in"),
        (lambda row: row.update(attention="topk:08"), "attention must be the text form"),
        (lambda row: row.update(model=""), "model must not be empty"),
        (lambda row: row.update(time_s=-1.0), "time_s must be a finite"),
        (lambda row: row.update(task="chess"), r"run 'mini-dense' changed: task 'pathfind' became 'chess'"),
        (lambda row: row.update(score=2.0), "score must be 1.0"),
    ],
)
@pytest.mark.parametrize("reader", [read_traces, read_tables, partial(read_tables, answers=True)])
def test_errors_name_file_and_line_in_every_reader(traces, tmp_path, edit, words, reader):
    path = tmp_path / "shard.jsonl"
    rows = [json.loads(trace_to_json(trace)) for trace in traces]
    edit(rows[3])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=rf"shard.jsonl, line 4: .*{words}"):
        reader(path)
