"""`kinetics sample`, then `traces compact`: whole files, resumable; a mistake is one sentence and exit code 2."""

from pathlib import Path

import pytest

from kinetics_jax.tasks import get_task
from kinetics_jax.traces import read_tables, read_traces
from kinetics_jax.zoo import load_zoo_model

MODEL = "Kinetics-Mini-0.1M"
SIZES = ("--problems=2", "--trials=2", "--max-gen-len=6", "--batch-problems=2")


def test_sample_resumes_and_compact_packs(kinetics, tmp_path: Path):
    shards, packed = tmp_path / "shards", tmp_path / "all.parquet"
    command = ("sample", MODEL, "--out", shards, "--attention=block_topk:8x16", *SIZES)
    assert kinetics(*command).code == 0
    (shard,) = shards.iterdir()
    assert shard.name == f"{MODEL}-block_topk-8x16.jsonl"
    traces = read_traces(shard)
    assert [(trace.problem, trace.trial) for trace in traces] == [
        ("held_out-0", 0),
        ("held_out-0", 1),
        ("held_out-1", 0),
        ("held_out-1", 1),
    ]
    assert {trace.prompt_ids for trace in traces} == {
        problem.prompt_ids for problem in get_task("pathfind").problems(2)
    }
    assert {(trace.gen_len, trace.max_gen_len, trace.attention) for trace in traces} == {(6, 6, "block_topk:8x16")}
    assert {trace.weights_hash for trace in traces} == {load_zoo_model(MODEL).weights_hash}
    assert all(token >= 16 for trace in traces for token in (trace.output_ids or (0,))[:5])  # nodes of a first walk

    before = shard.read_bytes()
    assert kinetics(*command).code == 0
    assert shard.read_bytes() == before

    finished = kinetics("traces", "compact", shards, "--out", packed)
    assert finished.code == 0
    assert finished.out.startswith(f"4 traces in {packed}")
    assert read_traces(packed) == traces
    assert read_tables(packed)[0].mask.tolist() == [[True, True], [True, True]]
    assert shard.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("Kinetics-Mini-9M", "--attention=dense"), "the zoo has no model 'Kinetics-Mini-9M'"),
        (("Kinetics-Mini-9M", "--attention=dense"), "Known: Kinetics-Mini-0.1M, Kinetics-Mini-0.6M"),
        ((MODEL, "--attention=dense", "--task=chess"), "unknown task 'chess'. Known: pathfind"),
        ((MODEL, "--attention=quest:16"), "'' is no whole number in attention spec 'quest:16'. Known forms: dense"),
        ((MODEL, "--attention=topk:0"), "budget_len must be at least 1; got 0"),
        ((MODEL, "--attention=block_topk:8x0"), "num_pages must be at least 1"),
        ((MODEL, "--attention=dense", "--temperature=-1"), "temperature must be zero (greedy) or positive; got -1.0"),
        ((MODEL, "--attention=dense", "--max-gen-len=900"), "must fit the context of 1024 tokens; got 1194"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing(
    arguments: tuple[str, ...], message: str, kinetics, tmp_path: Path
):
    finished = kinetics("sample", "--problems=1", "--trials=1", "--out", tmp_path / "out", *arguments)
    assert finished.code == 2
    assert message in finished.err
    assert "Traceback" not in finished.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "option", ["--problems=0", "--trials=-1", "--max-gen-len=-5", "--max-gen-len=0", "--page-len=0"]
)
def test_negative_and_zero_sizes_are_refused_by_name(option: str, kinetics, tmp_path: Path):
    finished = kinetics("sample", MODEL, "--attention=dense", "--out", tmp_path / "out", option)
    assert finished.code == 2
    assert option.split("=")[0] in finished.err
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_written_is_one_sentence(kinetics, tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    finished = kinetics("sample", MODEL, "--attention=dense", "--out", tmp_path / "file" / "out", *SIZES)
    assert finished.code == 2
    assert "cannot open a trace shard for writing" in finished.err
    assert (tmp_path / "file").read_text() == "mine"


def test_help_lists_the_commands(kinetics):
    finished = kinetics("--help")
    assert finished.code == 0
    assert all(command in finished.out for command in ("sample", "traces", "demo"))
