"""Sampled, graded, put on a frontier: published problems from a file, by a model that no catalogue knows."""

import json
import shutil
from pathlib import Path

import pytest

from checkpoints_conversion import word_tokenizer
from kinetics_jax.traces import read_traces
from kinetics_jax.zoo import model_folder

VOCABULARY = ("<unk>", "Sum", "of", *(f"\\boxed{{{n % 4}}}#{n}" for n in range(60)), "<eos>")
NUM_TRIALS = 16


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model of a geometry of its own whose words are nearly all answers: 0, 1, 2 or 3."""
    folder = tmp_path / "wordy"
    shutil.copytree(model_folder("Kinetics-Mini-0.1M"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rope_theta": 12_345.0}))
    word_tokenizer(VOCABULARY, unknown="<unk>").save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>", "unk_token": "<unk>"}))
    return folder


def test_a_task_of_ones_own_is_sampled_graded_and_put_on_a_frontier(kinetics, model: Path, tmp_path: Path):
    rows = [{"id": n, "problem": f"Sum of {n} and 0?", "answer": f"{n:03d}"} for n in range(3)]
    (tmp_path / "aime.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked, out = ("--task=aime25", "--data", tmp_path / "aime.jsonl"), tmp_path / "out"
    sampled = kinetics(
        *("sample", model, *asked, "--trials", NUM_TRIALS, "--max-gen-len=8", "--out", out, "--temperature=3"),
        *("--attention=block_topk:8x1", "--json"),
    )
    assert sampled.code == 0, sampled.err
    assert [report["num_written"] for report in json.loads(sampled.out)] == [3 * NUM_TRIALS]
    traces = read_traces(out)
    assert {trace.score for trace in traces} == {0.0, 1.0}
    assert all(trace.answer == str(int(trace.problem)) for trace in traces if trace.score == 1.0)

    graded = kinetics("grade", out, *asked, "--tokenizer", model)
    assert graded.code == 0, graded.err
    assert "48 of 48 traces graded" in graded.out
    assert graded.out.endswith("nothing changed\n")

    unpriced = kinetics("frontier", "--traces", out)
    assert unpriced.code == 2
    assert "has traces of wordy, whose geometry the catalogue lacks" in unpriced.err
    assert "--geometry" in unpriced.err
    priced = json.loads(kinetics("frontier", "--traces", out, "--geometry", model, "--json").out)
    assert (priced["task"], priced["num_problems"], priced["num_trials"]) == ("aime25", 3, 48)
    assert priced["rows"]
    assert all(0 < row["accuracy"] <= 1 for row in priced["rows"])


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (None, "has no model.json, and config.json cannot be read"),
        ("[]", "must hold a JSON object"),
        ("{}", "model_type"),
    ],
)
def test_a_folder_without_a_geometry_is_one_sentence(kinetics, tmp_path: Path, config: str | None, said: str):
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    finished = kinetics("frontier", "--geometry", tmp_path)
    assert finished.code == 2
    assert said in finished.err
    assert finished.err.count("\n") == 1
