"""Tables and compaction: both formats say the same, and what does not belong together is refused."""

import json
import os
import resource
from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kinetics_jax.traces import (
    TraceTable,
    TraceWriter,
    compact,
    inspect_traces,
    read_tables,
    read_traces,
    verify_traces,
    write_traces,
)
from kinetics_jax.traces._schema import trace_to_json

INF = np.inf


@pytest.fixture
def folder(tmp_path, traces):
    """Two shards: dense with a trial missing, and a sparse run."""
    with TraceWriter(tmp_path / "raw" / "a.jsonl") as writer:
        writer.append(traces[:5])
    with TraceWriter(tmp_path / "raw" / "deep" / "b.jsonl") as writer:
        writer.append([replace(trace, run="mini-topk", attention="topk:8") for trace in traces])
    return tmp_path / "raw"


def assert_same(left: TraceTable, right: TraceTable) -> None:
    for name in TraceTable.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name))


def test_table_by_hand(folder):
    dense, sparse = read_tables(folder)
    assert (dense.model, dense.attention, dense.task) == ("Kinetics-Mini-1.7M", "dense", "pathfind")
    assert sparse.attention == "topk:8"
    assert (dense.max_gen_len, dense.problems) == (8, ("p0", "p1"))
    assert (dense.num_problems, dense.num_trials) == (2, 3)
    np.testing.assert_array_equal(dense.difficulty, [3, 4])
    np.testing.assert_array_equal(dense.prompt_len, [4, 4])
    np.testing.assert_array_equal(dense.mask, [[True, True, True], [True, True, False]])
    np.testing.assert_array_equal(dense.gen_len, [[5, 5, 5], [5, 5, 0]])
    np.testing.assert_array_equal(dense.solved_len, [[3, INF, INF], [3, INF, INF]])
    assert sparse.mask.all()


def test_compacting_changes_nothing_but_the_order(folder, tmp_path):
    target = tmp_path / "out" / "traces.parquet"
    assert compact(folder, target) == 11
    assert {trace.key: trace for trace in read_traces(target)} == {trace.key: trace for trace in read_traces(folder)}
    for left, right in zip(read_tables(target), read_tables(folder), strict=True):
        assert_same(left, right)
    assert [path.name for path in target.parent.iterdir()] == ["traces.parquet"]
    assert compact([target], target) == 11  # onto itself: written beside, then renamed
    assert pq.read_schema(target).field("output_ids").type.value_type == pa.uint8()


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.sets(st.tuples(st.sampled_from("ab"), st.integers(0, 3), st.integers(0, 300)), min_size=1, max_size=12))
def test_any_set_of_trials_lands_in_its_cells(rows, tmp_path, make_trace):
    shard, target = tmp_path / "any.jsonl", tmp_path / "any.parquet"
    lens = {row: 1 + row[2] % 8 for row in rows}
    traces = [
        make_trace(run=run, problem=f"p{q}", trial=r, output_ids=(r,) * n, solved_len=n)
        for (run, q, r), n in lens.items()
    ]
    shard.write_text("".join(trace_to_json(trace) + "\n" for trace in traces))
    compact(shard, target)
    columns = sorted({(run, r) for run, _, r in rows})
    for source in (shard, target):
        (table,) = read_tables(source)
        assert table.mask.sum() == len(rows)
        for (run, q, r), n in lens.items():
            cell = table.problems.index(f"p{q}"), columns.index((run, r))
            assert table.mask[cell]
            assert table.gen_len[cell] == table.solved_len[cell] == n


def test_restrict(folder):
    table = read_tables(folder)[1]
    small = table.restrict(problems=["p1"], num_trials=2)
    assert (small.problems, small.mask.shape, small.difficulty.tolist()) == (("p1",), (1, 2), [4])
    assert table.restrict(problems=["p1", "p0"]).difficulty.tolist() == [4, 3]
    assert_same(table.restrict(), table)
    with pytest.raises(ValueError, match=r"p9.*Known: p0, p1"):
        table.restrict(problems=["p9"])
    with pytest.raises(ValueError, match=r"must not repeat"):
        table.restrict(problems=["p0", "p0"])
    for num_trials in (0, 4):
        with pytest.raises(ValueError, match=rf"num_trials must lie in 1\.\.3; got {num_trials}"):
            table.restrict(num_trials=num_trials)


def test_a_table_refuses_nan_and_wrong_shapes(folder):
    table = read_tables(folder)[1]
    with pytest.raises(ValueError, match=r"solved_len must be a length or inf"):
        replace(table, solved_len=np.full((2, 3), np.nan))
    with pytest.raises(Exception, match=r"problems|difficulty|shape"):
        replace(table, problems=("p0",))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weights_hash": "f00"}, r"weights_hash must be one for .*got \['c0ffee', 'f00'\]"),
        ({"max_gen_len": 9}, r"max_gen_len must be one for .*got \[8, 9\]"),
        ({"difficulty": 9}, "difficulty of problem 'p0' changes"),
        ({"prompt_ids": (1,)}, "prompt_len of problem 'p0' changes"),
        ({"run": "mini-dense"}, "run 'mini-dense', problem 'p0', trial 0 occurs more than once"),
    ],
)
def test_what_does_not_belong_together_is_refused(folder, make_trace, change, words):
    with TraceWriter(folder / "c.jsonl") as writer:
        writer.append([make_trace(**{"run": "other", **change})])
    with pytest.raises(ValueError, match=words):
        read_tables(folder)


def test_compact_refuses_a_trial_twice_and_leaves_the_target_alone(folder, tmp_path, make_trace):
    target = tmp_path / "traces.parquet"
    compact(folder, target)
    before = target.read_bytes()
    with TraceWriter(folder / "c.jsonl") as writer:
        writer.append([make_trace()])
    with pytest.raises(ValueError, match=r"run 'mini-dense', problem 'p0', trial 0 occurs 2 times in .*a.jsonl"):
        compact(folder, target)
    assert target.read_bytes() == before
    with pytest.raises(OSError, match=r"cannot write compacted traces"):
        compact(folder / "a.jsonl", folder / "a.jsonl" / "x.parquet")
    with pytest.raises(ValueError, match=r"must end in .parquet"):
        compact(folder, tmp_path / "traces.csv")


def test_a_trial_in_two_files_is_not_read_twice(folder):
    compact(folder / "a.jsonl", folder / "z.parquet")
    for reader in (read_traces, read_tables):
        with pytest.raises(ValueError, match=r"trial 0 occurs more than once.*Read either the shards or the file"):
            reader(folder)


def test_others_may_read_a_packed_file_as_they_may_its_shards(folder, tmp_path):
    compact(folder, tmp_path / "traces.parquet")
    assert (tmp_path / "traces.parquet").stat().st_mode == (folder / "a.jsonl").stat().st_mode


def test_a_full_disk_leaves_the_old_file_and_nothing_beside_it(folder, tmp_path, make_trace):
    target = tmp_path / "out" / "traces.parquet"
    compact(folder, target)
    before = target.read_bytes()
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, old[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write compacted traces .*traces\.parquet"):
            compact(folder, target)
        with pytest.raises(OSError, match=r"cannot write compacted traces .*traces\.parquet"):
            write_traces([make_trace(trial=trial) for trial in range(9)], target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert target.read_bytes() == before
    assert os.listdir(target.parent) == ["traces.parquet"]


def test_write_traces(traces, tmp_path, make_trace):
    target = tmp_path / "traces.parquet"
    counted = make_trace(trial=7, prompt_ids=None, prompt_len=4, output_ids=None, gen_len=6, seed=7, time_s=None)
    assert write_traces([*traces, counted], target) == 7
    assert {trace.key: trace for trace in read_traces(target)} == {trace.key: trace for trace in [*traces, counted]}
    assert read_tables(target)[0].gen_len.tolist() == [[5, 5, 5, 6], [5, 5, 5, 0]]
    with pytest.raises(ValueError, match=r"trial 0 occurs 2 times. Give its run another name"):
        write_traces([traces[0], traces[0]], target)
    with pytest.raises(ValueError, match=r"run 'mini-dense' changed: task 'pathfind' became 'chess'"):
        write_traces([traces[0], make_trace(trial=8, task="chess")], target)
    with pytest.raises(ValueError, match=r"no traces to write to .*traces.parquet"):
        write_traces([], target)


def test_files_of_different_token_widths_are_packed_together(tmp_path, make_trace):
    wide = make_trace(run="wide", output_ids=(70_000,), solved_len=1)
    assert write_traces([make_trace()], tmp_path / "a.parquet") == write_traces([wide], tmp_path / "b.parquet") == 1
    assert compact([tmp_path / "a.parquet", tmp_path / "b.parquet"], tmp_path / "c.parquet") == 2
    assert read_traces(tmp_path / "c.parquet") == [make_trace(), wide]


def test_a_run_of_two_tasks_is_refused_with_file_and_line(tmp_path, traces, make_trace):
    for name, task in (("a", "pathfind"), ("b", "chess")):
        with TraceWriter(tmp_path / f"{name}.jsonl") as writer:
            writer.append([make_trace(task=task, trial=ord(name))])
    words = r"b.jsonl, line 1: run 'mini-dense' changed: task 'pathfind' became 'chess'"
    for reader in (read_traces, read_tables, inspect_traces, partial(compact, target=tmp_path / "x.parquet")):
        with pytest.raises(ValueError, match=words):
            reader(tmp_path)


def test_answers_are_numbered_within_their_problem(tmp_path, make_trace):
    wrong = {"score": 0.0, "solved_len": None}
    said = [
        ("p0", "9", {}),
        ("p0", None, wrong),
        ("p0", "10", wrong),
        ("p0", "9", {}),
        ("p1", "9", {}),
        ("p2", None, wrong),
    ]
    traces = [
        make_trace(problem=problem, answer=answer, trial=trial, **outcome)
        for trial, (problem, answer, outcome) in enumerate(said)
    ]
    for target in (tmp_path / "a.parquet", tmp_path / "a.jsonl"):
        if target.suffix == ".parquet":
            write_traces(traces, target)
        else:
            target.write_text("".join(trace_to_json(trace) + "\n" for trace in traces))
        (table,) = read_tables(target, answers=True)
        assert table.answer is not None
        assert table.answer.tolist() == [[1, -1, 0, 1, -1, -1], [-1, -1, -1, -1, 0, -1], [-1] * 6]
        small = table.restrict(problems=["p1", "p0"], num_trials=5).answer
        assert small is not None
        assert small.tolist() == [[-1, -1, -1, -1, 0], [1, -1, 0, 1, -1]]
        assert read_tables(target)[0].answer is None
        with pytest.raises(Exception, match=r"answer|shape"):
            replace(table, answer=table.answer[:2])


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("schema_version", 4, "schema_version must be one of 1, 2, 3; got 4"),
        ("attention", "topk:08", "attention must be the text form"),
        ("time_s", float("inf"), "time_s must be a finite"),
        ("score", float("nan"), "score must be 1.0.*got nan"),
        ("score", 0.5, "score must be 1.0"),
        ("solved_len", 99, "solved_len must lie in"),
        ("finish_reason", "tired", "finish_reason must be one of"),
        ("gen_len", 4, "gen_len is 4, but there are 5 token ids"),
        ("max_gen_len", 2, "at most max_gen_len=2"),
        ("trial", -1, "trial must lie in"),
    ],
)
def test_bad_values_in_parquet_name_file_and_row(folder, tmp_path, column, value, words):
    path = tmp_path / "bad.parquet"
    compact(folder / "a.jsonl", path)
    rows, schema = pq.read_table(path).to_pylist(), pq.read_schema(path)
    rows[0][column] = value
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    readers = [read_traces] if column == "gen_len" else [read_traces, read_tables]
    for reader in readers:
        with pytest.raises(ValueError, match=rf"bad.parquet, row 1: .*{words}"):
            reader(path)


@pytest.mark.parametrize("reader", [read_traces, read_tables])
def test_a_broken_line_names_file_and_line_in_every_reader(folder, reader):
    path = folder / "a.jsonl"
    lines = path.read_text().split("\n")
    row = json.loads(lines[1])
    for broken in ("{", json.dumps({**row, "score": "1"}), json.dumps({**row, "trial": 1.5}), lines[1] + lines[1], ""):
        path.write_text("\n".join([lines[0], broken, *lines[2:]]))
        with pytest.raises(ValueError, match=r"a.jsonl, line 2: "):
            reader(folder)


def test_column_readers_believe_no_line_that_is_no_trial(tmp_path, make_trace):
    path = tmp_path / "a.jsonl"
    one, two, three = (trace_to_json(make_trace(trial=trial, answer="xyz")).encode() for trial in range(3))
    for number, lines in (
        (1, (one + two, three, b"")),  # as many lines as trials, all the same
        (1, (one[:-1], b"}" + two, three)),
        (2, (one, two.replace(b"xyz", b"x\xff"), three)),
    ):
        path.write_bytes(b"\n".join(lines) + b"\n")
        for reader in (
            read_traces,
            partial(read_tables, answers=True),
            partial(compact, target=tmp_path / "x.parquet"),
        ):
            with pytest.raises(ValueError, match=rf"a.jsonl, line {number}: not a line of JSON"):
                reader(path)
        assert f"a.jsonl, line {number}: not a line" in str(verify_traces(path).issues[0])


@pytest.mark.parametrize("reader", [read_traces, read_tables])
def test_sources_that_hold_no_traces(tmp_path, reader):
    with pytest.raises(ValueError, match=rf"no traces in {tmp_path}: wanted .jsonl or .parquet"):
        reader(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no such file or folder"):
        reader(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"traces are .jsonl or .parquet files; got .txt"):
        reader(tmp_path / "notes.txt")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match=r"broken.parquet: not a readable Parquet file"):
        reader(tmp_path)
    pq.write_table(pa.table({"query": ["?"]}), tmp_path / "broken.parquet")
    with pytest.raises(ValueError, match=r"broken.parquet: not a table of traces; missing columns"):
        reader(tmp_path)


def test_an_empty_shard_holds_no_table(tmp_path):
    (tmp_path / "a.jsonl").write_text("")
    assert read_traces(tmp_path) == []
    with pytest.raises(ValueError, match=r"every file is empty"):
        read_tables(tmp_path)
    with pytest.raises(ValueError, match=r"every file is empty"):
        compact(tmp_path, tmp_path / "x.parquet")


def test_tables_do_not_open_the_token_ids(folder, tmp_path):
    path = tmp_path / "traces.parquet"
    compact(folder, path)
    chunk = next(
        column
        for i in range(pq.ParquetFile(path).metadata.num_columns)
        if (column := pq.ParquetFile(path).metadata.row_group(0).column(i)).path_in_schema.startswith("output_ids")
    )
    start = chunk.dictionary_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + chunk.total_compressed_size] = bytes(chunk.total_compressed_size)
    path.write_bytes(data)
    assert len(read_tables(path)) == 2
    with pytest.raises(ValueError, match=r"traces.parquet: not a readable Parquet file"):
        read_traces(path)
