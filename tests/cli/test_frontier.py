"""`kinetics frontier`: its rows are those of the library, and a slip costs one sentence that names the file."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from kinetics_jax.scaling import allocate_average, tradeoff_table
from kinetics_jax.specs import HARDWARE, MODELS
from kinetics_jax.traces import Trace, read_tables, write_traces
from tests.cli.made_up import MODELS_HERE, traces_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("study")
    write_traces(traces_of(), path / "trials.parquet")
    return path


def test_rows_are_the_staircase_with_its_bias(kinetics, folder: Path):
    finished = kinetics("frontier", "--traces", folder, "--json")
    assert finished.code == 0, finished.err
    content = json.loads(finished.out)
    rows = content["rows"]
    assert (content["task"], content["num_problems"], content["num_trials"]) == ("pathfind", 6, 96)
    assert content["models"] == list(MODELS_HERE)
    assert len(rows) > 3
    assert all(first["spent"] < then["spent"] for first, then in pairwise(rows))
    assert all(first["accuracy"] < then["accuracy"] for first, then in pairwise(rows))
    for row in rows:
        assert row["low"] <= row["accuracy"] + 1e-6
        assert row["accuracy"] <= row["high"] + 1e-6
        assert row["naive_bias"] == pytest.approx(row["naive_accuracy"] - row["accuracy"], abs=1e-6)
        assert 0 < sum(choice["share"] for choice in row["choices"]) <= 1 + 1e-9
        assert all(choice["num_trials"] == 1 for choice in row["choices"])


def test_options_reach_the_library(kinetics, folder: Path):
    options = ("--strategy", "best_of_n", "--price", "flops", "--model", MODELS_HERE[1], "--average")
    content = json.loads(kinetics("frontier", "--traces", folder, *options, "--json").out)
    tables = [table for table in read_tables(folder) if table.model == MODELS_HERE[1]]
    tradeoff = tradeoff_table(tables, models=MODELS, hardware=HARDWARE["H100-SXM"], price="flops", strategy="best_of_n")
    bought = allocate_average(tradeoff, tradeoff.budget_grid())
    places = [int(np.argmin(np.abs(np.asarray(bought.budgets) - row["budget"]))) for row in content["rows"]]
    np.testing.assert_allclose([row["spent"] for row in content["rows"]], bought.spent[np.array(places)])
    np.testing.assert_allclose([row["accuracy"] for row in content["rows"]], bought.accuracy[np.array(places)])
    assert content["budgets_are"] == "means"
    assert {choice["model"] for row in content["rows"] for choice in row["choices"]} == {MODELS_HERE[1]}
    assert {choice["gen_len"] for row in content["rows"] for choice in row["choices"]} == {256}


def test_the_norm_changes_the_price(kinetics, folder: Path):
    added, larger = (
        json.loads(kinetics("frontier", "--traces", folder, "--combine", how, "--json").out) for how in ("add", "max")
    )
    assert larger["combine"] == "max"
    assert larger["rows"][-1]["spent"] < added["rows"][-1]["spent"]


def test_the_table_has_as_many_rows_as_asked_for(kinetics, folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "140")
    out = kinetics("frontier", "--traces", folder, "--points", 3).out
    assert "Long-CoT on pathfind: 6 problems, 96 trials; eFLOPs on H100-SXM (add), caps per request" in out
    assert sum(line.startswith("│ ") for line in out.splitlines()) == 3
    assert " tokens" in out
    assert "naive (bias)" in out


def test_nothing_solved_and_nothing_chosen_are_said(kinetics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "140")
    traces = traces_of(models=MODELS_HERE[1:])
    wrong = [Trace(**{**vars(trace), "score": 0.0, "solved_len": None}) for trace in traces]
    write_traces(wrong, tmp_path / "wrong.parquet")
    finished = kinetics("frontier", "--traces", tmp_path / "wrong.parquet")
    assert (finished.code, finished.out) == (0, "No budget solves any of the 6 problems of pathfind.\n")

    (first,) = [trace for trace in traces if trace.score][:1]
    write_traces([*[each for each in wrong if each.key != first.key], first], tmp_path / "lucky.parquet")
    lucky = kinetics("frontier", "--traces", tmp_path / "lucky.parquet", "--points", 3).out
    assert "No budget solves any of the 6 problems of pathfind.\n1 of 48 trials are right: too few" in lucky

    # At some means the halves of the trials afford a choice, and all of them together do not.
    write_traces([trace for trace in traces if trace.problem == traces[0].problem], tmp_path / "one.parquet")
    one = ("frontier", "--traces", tmp_path / "one.parquet", "--strategy", "best_of_n", "--average")
    assert any(not row["choices"] for row in json.loads(kinetics(*one, "--json").out)["rows"])
    finished = kinetics(*one)
    assert finished.code == 0
    assert "none" in finished.out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--price", "euro"), ("price must be flops or eflops; got 'euro'",)),
        (("--strategy", "guess"), ("strategy must be long_cot or best_of_n; got 'guess'",)),
        (("--combine", "sum"), ("combine must be add, max or a norm p >= 1; got 'sum'",)),
        (("--hardware", "Abacus"), ("unknown hardware 'Abacus'",)),
        (("--model", "Qwen9"), ("has no traces of Qwen9", "Kinetics-Mini-0.6M", "study")),
        (("--task", "chess"), ("has no task 'chess'. It has pathfind.", "study")),
    ],
)
def test_a_slip_costs_one_sentence(kinetics, folder: Path, args: tuple[str, ...], said: tuple[str, ...]):
    finished = kinetics("frontier", "--traces", folder, *args)
    assert finished.code == 2
    assert finished.out == ""
    assert finished.err.startswith("Error: ")
    assert finished.err.count("\n") == 1
    assert all(words in finished.err for words in said)


def test_bad_traces_are_named(kinetics, tmp_path: Path):
    def said(path: Path) -> str:
        finished = kinetics("frontier", "--traces", path)
        assert finished.code == 2
        assert finished.err.count("\n") == 1
        assert str(path) in finished.err
        return finished.err

    said(tmp_path / "nowhere")
    said(tmp_path)
    (tmp_path / "notes.jsonl").write_text("no JSON\n")
    assert "notes.jsonl" in said(tmp_path)
    (tmp_path / "notes.jsonl").unlink()

    few = tmp_path / "few"
    few.mkdir()
    write_traces([trace for trace in traces_of() if trace.trial < 1], few / "trials.parquet")
    assert "every problem needs a trial in each of 2 folds" in said(few)

    both = tmp_path / "both"
    both.mkdir()
    write_traces([*traces_of(), *traces_of("chess")], both / "trials.parquet")
    assert "holds 2 tasks: chess, pathfind. Choose one with --task." in said(both)

    alien = tmp_path / "alien"
    alien.mkdir()
    write_traces(
        [Trace(**{**vars(trace), "model": "Qwen9", "run": "q"}) for trace in traces_of()[:4]], alien / "t.parquet"
    )
    assert "has traces of Qwen9, whose geometry the catalogue lacks" in said(alien)
