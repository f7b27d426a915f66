"""`kinetics sample`, then `traces compact`: whole files, resumable; a mistake is one sentence and exit code 2."""

import json
import os
import shutil
import signal
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from checkpoints_conversion import HfTokenizer, convert_checkpoint, word_tokenizer
from kinetics_jax.cli._loading import load_any_model
from kinetics_jax.cli._sampling import budget_forcing
from kinetics_jax.collect import Collector
from kinetics_jax.tasks import Pathfind
from kinetics_jax.traces import read_tables, read_traces
from kinetics_jax.zoo import load_zoo_model, model_folder

MODEL = "Kinetics-Mini-0.1M"
SIZES = ("--problems=2", "--trials=2", "--max-gen-len=6", "--page-len=8")


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
    assert {trace.prompt_ids for trace in traces} == {problem.prompt_ids for problem in Pathfind().problems(2)}
    assert {(trace.gen_len, trace.max_gen_len, trace.attention) for trace in traces} == {(6, 6, "block_topk:8x16")}
    assert {trace.weights_hash for trace in traces} == {load_zoo_model(MODEL).weights_hash}
    assert all(token >= 16 for trace in traces for token in (trace.output_ids or (0,))[:5])  # nodes of a first walk

    before = shard.read_bytes()
    again = kinetics(*command, "--json")
    assert again.code == 0
    (report,) = json.loads(again.out)
    assert (report["num_there"], report["num_written"], report["num_missing"], report["failed"]) == (4, 0, 0, {})
    assert report["shard"] == str(shard)
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
        ((MODEL, "--attention=dense", "--top-p=0"), "top_p must lie in (0, 1]; got 0.0"),
        ((MODEL, "--attention=dense", "--min-p=1"), "min_p must lie in [0, 1); got 1.0"),
        ((MODEL, "--attention=dense", "--max-gen-len=900"), "must fit the context of 1024 tokens; got 1194"),
        ((MODEL, "--attention=dense", "--think-len=8"), "needs a model with the token </think>; this one has none"),
        ((MODEL, "--attention=dense", "--shard=2/2"), "shards of 2 go from 0 to 1; got 2"),
        ((MODEL, "--attention=dense", "--shard=1/2"), "shard 1of2 of 1 problems is empty; use fewer shards"),
        ((MODEL, "--attention=dense", "--mesh=1x99"), "--mesh 1x99 takes 99 devices; this machine has"),
        ((MODEL, "--attention=dense", "--task=aime25"), "task 'aime25' is asked in words, and this model reads none"),
        ((MODEL, "--attention=dense", "--hardware=H1"), "unknown hardware 'H1'"),
        ((MODEL, "--attention=dense", "--data=rows.jsonl"), "task 'pathfind' makes or ships its problems"),
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
    "option",
    ["--problems=0", "--trials=-1", "--trials=0", "--max-gen-len=-5", "--max-gen-len=0", "--page-len=0", "--slots=0"],
)
def test_negative_and_zero_sizes_are_refused_by_name(option: str, kinetics, tmp_path: Path):
    finished = kinetics("sample", MODEL, "--attention=dense", "--out", tmp_path / "out", option)
    assert finished.code == 2
    assert option.split("=")[0] in finished.err
    assert list(tmp_path.iterdir()) == []


def test_shards_share_the_problems_out_and_are_read_as_one(kinetics, tmp_path: Path):
    command = ("sample", MODEL, "--out", tmp_path, "--attention=dense", "--problems=3", "--trials=1", "--max-gen-len=2")
    assert kinetics(*command, "--shard=1/2").code == 0
    assert [trace.problem for trace in read_traces(tmp_path)] == ["held_out-1"]
    assert [path.name for path in tmp_path.iterdir()] == [f"{MODEL}-dense-1of2.jsonl"]

    missing = kinetics(*command, "--shard=0/2", "--dry-run", "--json")
    (run,) = json.loads(missing.out)
    assert (run["counts"]["num_trials"], run["counts"]["num_there"], run["counts"]["max_tokens"]) == (2, 0, 4)
    assert run["counts"]["max_eflops"] > 0
    assert 0 < run["seconds"] < 1
    assert run["dollars"] > 0
    assert len(list(tmp_path.iterdir())) == 1
    assert "nothing was sampled" in kinetics(*command, "--shard=1/2", "--dry-run").out


def test_pool_too_small_for_one_sequence_is_one_sentence(kinetics, tmp_path: Path):
    finished = kinetics("sample", MODEL, "--attention=dense", "--out", tmp_path, "--pages=9", *SIZES)
    assert finished.code == 2
    assert "the pool must hold one sequence: 294 + 6 tokens need" in finished.err
    assert "Use num_pages=" in finished.err


def test_folders_of_other_families_and_of_nothing_are_one_sentence(kinetics, tmp_path: Path):
    command = ("--attention=dense", "--out", tmp_path / "out")
    (tmp_path / "model").mkdir()
    assert "config.json is missing" in kinetics("sample", tmp_path / "model", *command).err
    (tmp_path / "model" / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}')
    finished = kinetics("sample", tmp_path / "model", *command)
    assert finished.code == 2
    assert "gpt2" in finished.err.lower()
    assert "Traceback" not in finished.err
    assert not (tmp_path / "out").exists()


def test_a_converted_model_is_the_model_that_was_converted(kinetics, tmp_path: Path):
    folder = tmp_path / "converted"
    convert_checkpoint(model_folder(MODEL), folder)
    ours, theirs = load_zoo_model(MODEL), load_any_model(str(folder), dtype="float32")
    token_ids = jnp.arange(12)[None]
    np.testing.assert_array_equal(theirs.model(token_ids), ours.model(token_ids))
    assert theirs.weights_hash == ours.weights_hash
    assert theirs.tokenizer.decode([16, 17]) == ours.tokenizer.decode([16, 17])

    command = ("sample", folder, "--attention=dense", "--problems=1", "--out", tmp_path / "out", "--dry-run")
    assert kinetics(*command).code == 0
    (folder / "tokenizer.json").unlink()
    assert "has no tokenizer.json. Copy it there" in kinetics(*command).err
    (folder / "tokenizer.json").write_text((model_folder(MODEL) / "tokenizer.json").read_text())
    (folder / "manifest.json").unlink()
    assert "does not say which weights these are" in kinetics(*command).err


def test_questions_in_words_from_a_file_of_ones_own(kinetics, tmp_path: Path):
    """A model with a tokenizer of words; its thoughts are closed by force, and its answers are graded."""
    words = ["<unk>", "</think>", "How", "many", *(f"word{n}" for n in range(59)), "<eos>"]
    folder = tmp_path / "wordy"
    shutil.copytree(model_folder(MODEL), folder)
    word_tokenizer(words, unknown="<unk>").save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>", "unk_token": "<unk>"}))
    rows = [{"question": f"How many is {n}?", "answer": f"#### {n}"} for n in range(3)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    finished = kinetics(
        *("sample", folder, "--task=gsm8k", "--data", tmp_path / "rows.jsonl", "--attention=block_topk:16x2"),
        *("--out", tmp_path / "out", "--trials=2", "--max-gen-len=6", "--think-len=2", "--json"),
        *("--temperature=2", "--top-k=8", "--top-p=0.9", "--min-p=0.01", "--repetition-penalty=1.1", "--slots=4"),
    )
    assert finished.code == 0, finished.err
    (report,) = json.loads(finished.out)
    assert (report["num_written"], report["failed"], report["eflops"] > 0) == (6, {}, True)
    traces = read_traces(tmp_path / "out")
    assert len({trace.problem for trace in traces}) == 3
    for trace in traces:
        assert trace.output_ids is not None
        assert 1 in trace.output_ids[:3] or trace.finish_reason == "eos"
        assert (trace.task, trace.score, trace.run) == ("gsm8k", 0.0, report["run"])
        assert "top_k=8, top_p=0.9, min_p=0.01, repetition_penalty=1.1" in trace.sampling
    assert any(trace.finish_reason == "length" for trace in traces)
    assert report["run"].endswith("/block_topk:16x2/seed0/think2+3")

    pathfind = kinetics("sample", folder, "--attention=dense", "--out", tmp_path / "more")
    assert "asked in the tokens of the embedded models, and this model has others" in pathfind.err


def test_the_end_signal_of_a_cluster_is_a_gentle_stop(kinetics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Collector, "collect", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    finished = kinetics("sample", MODEL, "--attention=dense", "--out", tmp_path, *SIZES)
    assert finished.code != 0
    assert "Interrupted" in finished.err
    assert signal.getsignal(signal.SIGTERM) is before


def test_budget_forcing_closes_with_the_models_own_token():
    tokenizer = HfTokenizer(backend=word_tokenizer(["<unk>", "</think>", "yes"], unknown="<unk>"))
    closing = budget_forcing(tokenizer, 10, 20)
    assert (closing.end_think_id, closing.think_len, closing.max_gen_len) == (1, 10, 20)
    assert 1 in closing.closing_ids
    with pytest.raises(ValueError, match=r"--think-len 19 .* leave no answer within --max-gen-len 20\. Use 18"):
        budget_forcing(tokenizer, 19, 20)


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
