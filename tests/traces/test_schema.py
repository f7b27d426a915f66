"""What makes a trace valid, and its JSON form."""

import json

import numpy as np
import pytest

from kinetics_jax.traces import read_traces
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


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schema_version": 2}, "schema_version must be 1; got 2.*newer"),
        ({"run": ""}, "run must not be empty"),
        ({"trial": -1}, "trial must lie in 0"),
        ({"difficulty": 2**31}, "difficulty must lie in"),
        ({"attention": "sparse"}, "unknown attention spec 'sparse'"),
        ({"attention": "topk:08"}, "use 'topk:8'"),
        ({"finish_reason": "tired"}, "finish_reason must be one of eos, length, repetition"),
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
        (lambda row: row.update(schema_version=9, novelty=1), "schema_version must be 1; got 9"),
        (lambda row: row.update(score=2.0), "score must be 1.0"),
    ],
)
def test_errors_name_file_and_line(traces, tmp_path, edit, words):
    path = tmp_path / "shard.jsonl"
    rows = [json.loads(trace_to_json(trace)) for trace in traces]
    edit(rows[3])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=rf"shard.jsonl, line 4: .*{words}"):
        read_traces(path)
