"""`kinetics figures`: files and reasons, and a slip costs one sentence that names the file."""

import json
from pathlib import Path

import pytest

from kinetics_jax.traces import write_traces
from tests.cli.made_up import traces_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("study")
    write_traces(traces_of(), path / "trials.parquet")
    return path


def measured(path: Path, *rows: dict) -> Path:
    path.write_text(json.dumps({"device": "H200", "rows": [{"what": "a kernel", "seconds": 1e-4}, *rows]}))
    return path


def test_what_is_drawn_and_what_is_missing(kinetics, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "250")
    only = ("--only", "cost_breakdown", "--only", "throughput", "--only", "dense_vs_block_topk_long_cot")
    kernels = measured(tmp_path / "kernels.json")
    finished = kinetics("figures", "--traces", folder, "--out", tmp_path / "out", *only, "--measured", kernels)
    assert finished.code == 0, finished.err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "cost_breakdown.csv",
        "cost_breakdown.png",
        "cost_breakdown.svg",
    ]
    assert "1 figures in" not in finished.out
    assert "1 figure in" in finished.out
    assert "2 could not be drawn" in finished.out
    assert "no measurement of a whole model" in finished.out
    assert "unknown methods ['block_topk']" in finished.out


def test_measured_rates_are_drawn(kinetics, folder: Path, tmp_path: Path):
    row = {"model": "Qwen3-8B", "attention": "dense", "context_len": 4096, "batch_size": 8, "tokens_per_s": 500.0}
    path = measured(tmp_path / "rates.json", row, {**row, "context_len": 8192})
    out = tmp_path / "out"
    args = ("--traces", folder, "--out", out, "--only", "throughput", "--measured", path, "--no-svg", "--json")
    content = json.loads(kinetics("figures", *args).out)
    assert content["drawn"] == {"throughput": str(out / "throughput.png")}
    assert content["missing"] == {}
    assert sorted(file.name for file in out.iterdir()) == ["throughput.csv", "throughput.png"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--only", "pies"), ("Error: unknown figures ['pies']. Known: kv_per_token",)),
        (("--only", "throughput"), ("no figure could be drawn; throughput: no measurement", "study")),
        (("--hardware", "Abacus"), ("unknown hardware 'Abacus'",)),
        (("--measured", "FILE"), ("rates.json is no JSON",)),
    ],
)
def test_a_slip_costs_one_sentence(
    kinetics, folder: Path, tmp_path: Path, args: tuple[str, ...], said: tuple[str, ...]
):
    (tmp_path / "rates.json").write_text("{")
    given = [str(tmp_path / "rates.json") if word == "FILE" else word for word in args]
    finished = kinetics("figures", "--traces", folder, "--out", tmp_path / "out", *given)
    assert finished.code == 2
    assert finished.out == ""
    assert finished.err.count("\n") == 1
    assert all(words in finished.err for words in said)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "got list"),
        ("{}", "a list named rows"),
        (
            '{"rows": [{"model": "Q", "attention": "x", "context_len": null, "batch_size": 1, "tokens_per_s": 1}]}',
            "context_len must be a whole number; got None",
        ),
        ('{"rows": [{"model": "Q", "attention": "x", "context_len": 1, "batch_size": 0, "tokens_per_s": 1}]}', "batch"),
    ],
)
def test_a_bad_benchmark_is_named(kinetics, folder: Path, tmp_path: Path, text: str, words: str):
    (tmp_path / "rates.json").write_text(text)
    finished = kinetics("figures", "--traces", folder, "--out", tmp_path / "out", "--measured", tmp_path / "rates.json")
    assert finished.code == 2
    assert "rates.json" in finished.err
    assert words in finished.err


def test_a_folder_in_the_way(kinetics, folder: Path, tmp_path: Path):
    (tmp_path / "out").write_text("kept")
    finished = kinetics("figures", "--traces", folder, "--out", tmp_path / "out", "--only", "cost_breakdown")
    assert finished.code == 2
    assert "cannot make the folder" in finished.err
    assert str(tmp_path / "out") in finished.err
    assert (tmp_path / "out").read_text() == "kept"
