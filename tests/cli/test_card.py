"""`kinetics card`: the shipped cards are what the command says today, and its numbers are those of the traces."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from kinetics_jax.traces import read_tables
from kinetics_jax.zoo import FAMILY_NOTES, MINI_MODELS, RECORDED_TRACES, model_folder

NAME = "Kinetics-Mini-0.1M"


@pytest.mark.parametrize("name", MINI_MODELS)
def test_the_shipped_card_is_what_the_command_prints(kinetics, name: str):
    """After a change: kinetics card NAME --write, for every name of the zoo."""
    finished = kinetics("card", name)
    assert finished.code == 0, finished.err
    assert finished.out == (model_folder(name) / "README.md").read_text()
    for words in ("Apache-2.0", "What it is not", f"kinetics train {name}", FAMILY_NOTES.read_text()):
        assert words in finished.out


def test_numbers_are_those_of_the_traces(kinetics):
    traces = RECORDED_TRACES / f"{NAME}.parquet"
    content = json.loads(kinetics("card", NAME, "--traces", traces, "--json").out)
    dense = next(table for table in read_tables(traces) if table.attention == "dense")
    rows = {row["depth"]: row for row in content["by_depth"]}
    for limit in (256, 128, 64, 32):
        right = dense.solved_len <= limit
        assert rows["all"]["pass@1"][str(limit)] == pytest.approx(right.mean(), rel=1e-5)
        assert rows["all"]["pass@16"][str(limit)] == pytest.approx(right.any(1).mean(), rel=1e-5)
        for depth in np.unique(dense.difficulty):
            wanted = right[dense.difficulty == depth].mean()
            assert rows[str(depth)]["pass@1"][str(limit)] == pytest.approx(wanted, rel=1e-5)
    assert len(content["by_budget"]) == len(read_tables(traces))
    assert content["commands"]["card"] == f"kinetics card {NAME} --traces {traces} --write"


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_folder(NAME), tmp_path / "mine"))


def test_a_folder_gets_its_card(kinetics, copied: Path):
    (copied / "README.md").unlink()
    record = json.loads((copied / "training.json").read_text())
    record["recipe"] |= {"num_steps": 700, "warmup_steps": 70, "seed": 5}
    (copied / "training.json").write_text(json.dumps(record))
    finished = kinetics("card", copied, "--write")
    assert (finished.code, finished.out) == (0, "")
    text = (copied / "README.md").read_text()
    assert f"kinetics train {NAME} --out out/{NAME} --steps 700 --seed 5\n" in text
    assert f"kinetics card {copied} --write" in text


def test_traces_of_other_weights_are_refused(kinetics, copied: Path):
    weights = bytearray((copied / "model.safetensors").read_bytes())
    weights[-2] ^= 1
    (copied / "model.safetensors").write_bytes(weights)
    kept = (copied / "README.md").read_text()
    finished = kinetics("card", copied, "--write")
    assert finished.code == 2
    assert "recorded from other weights" in finished.err
    assert (copied / "README.md").read_text() == kept


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("Qwen3-8B",), ("the zoo has no model 'Qwen3-8B'", NAME)),
        ((NAME, "--traces", "nowhere"), ("no traces at nowhere",)),
        ((NAME, "--traces", RECORDED_TRACES / "Kinetics-Mini-7M.parquet"), ("no dense traces", NAME)),
    ],
)
def test_a_slip_costs_one_sentence(kinetics, args, said):
    finished = kinetics("card", *args)
    assert (finished.code, finished.out) == (2, "")
    assert finished.err.startswith("Error: ")
    assert all(words in finished.err for words in said)
