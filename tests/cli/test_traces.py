"""`kinetics traces`: inspect, compact, verify, import; a mistake is one sentence that names the file."""

import json
import os
from pathlib import Path

import pytest

from kinetics_jax.traces import Trace, TraceWriter, read_tables, read_traces
from kinetics_jax.zoo import RECORDED_TRACES

ZOO = RECORDED_TRACES.parent
DENSE = "aime24/dense/aime24_qwen3-8b_dense.jsonl"


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """Four trials of two problems, as a shard: one is right."""
    path = tmp_path / "shards" / "a.jsonl"
    traces = [
        Trace(
            run="r",
            model="Kinetics-Mini-0.1M",
            weights_hash="c0ffee",
            task="pathfind",
            problem=f"p{index // 2}",
            difficulty=1,
            trial=index % 2,
            seed=0,
            attention="dense",
            sampling="greedy",
            max_gen_len=8,
            prompt_ids=(1, 2, 3),
            output_ids=(4,) * (index + 1),
            finish_reason="eos",
            answer=str(index),
            score=float(index == 3),
            solved_len=2 if index == 3 else None,
            time_s=0.1,
        )
        for index in range(4)
    ]
    with TraceWriter(path) as writer:
        writer.append(traces)
    return path


@pytest.fixture
def released(tmp_path: Path) -> Path:
    """The paper's layout: two questions with two trials each, one of them broken."""
    path = tmp_path / "released" / DENSE
    path.parent.mkdir(parents=True)
    trials = [("1 + 1 ?", "a b \\boxed{2}", 100.0), ("1 + 1 ?", "a b c", 0.0), ("2 + 2 ?", "d \\boxed{4}", 100.0)]
    lines = [json.dumps({"query": q, "choices": ["?"], "prediction": [said], "score": s}) for q, said, s in trials]
    path.write_text("\n".join([json.dumps({"task": "aime24", "pass@2": 100.0}), *lines, '{"query": "2 + 2 ?"}', ""]))
    return tmp_path / "released"


def test_compact_inspect_and_verify(kinetics, shard: Path, tmp_path: Path):
    packed = tmp_path / "all.parquet"
    finished = kinetics("traces", "compact", shard.parent, "--out", packed)
    assert finished.code == 0
    assert finished.out.startswith(f"4 traces in {packed}")
    assert read_traces(packed) == read_traces(shard)

    finished = kinetics("traces", "inspect", packed)
    assert finished.code == 0
    assert "Kinetics-Mini-0.1M on pathfind: 4 trials" in finished.out
    assert "2 x 2" in finished.out
    content = json.loads(kinetics("traces", "inspect", shard, "--json").out)
    assert (content["num_rows"], content["models"], content["tasks"]) == (4, ["Kinetics-Mini-0.1M"], ["pathfind"])
    (table,) = content["tables"]
    assert (table["mean_gen_len"], table["accuracy"], table["finish_reasons"]) == (2.5, 0.25, {"eos": 4})

    finished = kinetics("traces", "verify", shard, packed.parent / "shards")
    assert finished.code == 1  # the same shard twice
    assert f"is already in {shard}, line 1" in finished.err
    assert kinetics("traces", "verify", packed).out == "4 traces in 1 files: nothing wrong\n"


def test_verify_says_what_is_wrong_and_where(kinetics, shard: Path):
    lines = shard.read_text().splitlines()
    row = {**json.loads(lines[1]), "score": float("nan")}
    shard.write_text("\n".join([lines[0], json.dumps(row), *lines[2:]]) + '\n{"run"')
    finished = kinetics("traces", "verify", shard)
    assert finished.code == 1
    assert f"{shard}, line 2: NaN is no valid value" in finished.err
    assert f"{shard}, line 5: the last line was cut off" in finished.err
    assert finished.out == "3 traces in 1 files: 2 wrong\n"
    content = json.loads(kinetics("traces", "verify", shard, "--json").out)
    assert [issue["kind"] for issue in content["issues"]] == ["row", "torn"]


@pytest.mark.filterwarnings("always")
def test_a_living_shard_costs_one_sentence_beside_the_result(kinetics, shard: Path):
    with shard.open("a") as file:
        file.write('{"schema_version":2,"run"')
    finished = kinetics("traces", "inspect", shard, "--json")
    assert finished.code == 0
    assert json.loads(finished.out)["num_rows"] == 4
    assert finished.err.startswith(f"Warning: {shard}, line 5: the last line was cut off")
    assert finished.err.count("\n") == 1


def test_brackets_in_a_name_are_no_markup(kinetics, shard: Path):
    shard.write_text(shard.read_text().replace('"pathfind"', '"[red]maths[/24]"'))
    finished = kinetics("traces", "inspect", shard)
    assert finished.code == 0
    assert "Kinetics-Mini-0.1M on [red]maths[/24]: 4 trials" in finished.out


@pytest.mark.parametrize("command", ["inspect", "verify", "compact"])
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing", None, "there is no such file or folder"),
        ("empty", None, "wanted .jsonl or .parquet files, found none"),
        ("version.jsonl", '{"schema_version": 9}\n', "line 1: schema_version must be one of 1, 2, 3; got 9"),
        ("prose.jsonl", "Dear reader,\n", "line 1: not a line of JSON"),
        ("image.parquet", "\x89PNG", "not a readable Parquet file"),
        ("score.jsonl", None, "missing ['score']"),
        ("tasks.jsonl", None, "line 2: run"),
    ],
)
def test_bad_input_is_one_sentence_that_names_the_file(
    command, name, content, message, kinetics, shard, tmp_path: Path
):
    path, line = tmp_path / name, json.loads(shard.read_text().splitlines()[0])
    if name == "empty":
        path.mkdir()
    elif name == "score.jsonl":
        path.write_text(json.dumps({key: value for key, value in line.items() if key != "score"}) + "\n")
    elif name == "tasks.jsonl":
        path.write_text(f"{json.dumps(line)}\n{json.dumps({**line, 'trial': 9, 'task': 'chess'})}\n")
    elif content is not None:
        path.write_text(content)
    before = sorted(os.listdir(tmp_path))
    finished = kinetics("traces", command, path, *(["--out", tmp_path / "x.parquet"] if command == "compact" else []))
    assert finished.code == (1 if command == "verify" and path.is_file() else 2)
    assert message in finished.err
    assert name in finished.err
    assert "Traceback" not in finished.err
    assert sorted(os.listdir(tmp_path)) == before


def test_import_counts_packs_and_reports(kinetics, released: Path, tmp_path: Path):
    out = tmp_path / "aime24.parquet"
    command = ("traces", "import", released, "--out", out, "--tokenizer", ZOO / "Kinetics-Mini-0.1M")
    finished = kinetics(*command, "--max-gen-len", 4)
    assert finished.code == 1  # something was left out
    assert f"{released / DENSE}, line 5: missing score" in finished.err
    assert f"3 traces in {out}" in finished.out
    assert "1 lines or files were left out" in finished.out
    (table,) = read_tables(out)
    assert (table.model, table.attention, table.task, table.max_gen_len) == ("Qwen3-8B", "dense", "aime24", 4)
    assert table.mask.sum() == 3

    lines = (released / DENSE).read_text().splitlines()
    (released / DENSE).write_text("\n".join(lines[:4]) + "\n")
    finished = kinetics(*command, "--json")
    assert finished.code == 0
    content = json.loads(finished.out)
    assert (content["num_rows"], content["issues"]) == (3, [])
    assert content["files"][0]["num_right"] == 2
    assert read_tables(out)[0].max_gen_len == 32_768


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "line 2: has no token counts, so a tokenizer must count them"),
        (("--tokenizer", "nowhere"), "cannot load a tokenizer from nowhere: tokenizer.json is missing"),
        (("--convention", "other"), "other"),
        (("--attention", "sparse"), "unknown attention spec 'sparse'"),
        (("--out", "aime24.csv"), "--out must end in .parquet; got aime24.csv"),
    ],
)
def test_slips_of_an_import_are_one_sentence_and_leave_nothing(
    arguments, message, kinetics, released: Path, tmp_path: Path
):
    finished = kinetics("traces", "import", released, "--out", tmp_path / "x.parquet", *arguments)
    assert finished.code == 2
    assert message in finished.err
    assert os.listdir(tmp_path) == ["released"]


def test_an_import_of_nothing_writes_nothing(kinetics, shard: Path, tmp_path: Path):
    out = tmp_path / "x.parquet"
    finished = kinetics("traces", "import", shard, "--out", out, "--task=t", "--attention=dense", "--model=Qwen3-8B")
    assert finished.code == 2
    assert f"{shard}, line 2: holds no trial in the paper's layout: missing query" in finished.err
    assert "Nothing was written" in finished.err
    assert not out.exists()


def test_a_folder_that_cannot_be_written_is_one_sentence(kinetics, shard: Path):
    finished = kinetics("traces", "compact", shard, "--out", shard / "x.parquet")
    assert finished.code == 2
    assert "cannot write compacted traces" in finished.err
    assert "Traceback" not in finished.err
