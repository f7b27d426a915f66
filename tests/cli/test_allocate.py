"""`kinetics allocate`: optima of a fitted law beside whole settings and the grid; what reaches the solver; slips."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kinetics_jax.cli import _optima
from kinetics_jax.cost import eflops, request_cost
from kinetics_jax.scaling import (
    AccuracySurface,
    Bounds,
    Elasticities,
    HeldOutOptimum,
    ModelChoice,
    Optimum,
    RequestPrice,
    Setting,
    allocate,
    tradeoff_table,
)
from kinetics_jax.specs import HARDWARE, MODELS, parse_attention
from kinetics_jax.traces import Trace, read_tables, write_traces
from tests.cli.made_up import MODELS_HERE, traces_of

# `cli.allocate` is the command of that name; its module stands behind it.
COMMAND = "kinetics_jax.cli.allocate"
SMALL, LARGE = (MODELS[name] for name in MODELS_HERE)
ATTENTIONS = ("dense", "topk:16", "topk:64")
LONG = ("--strategy", "long_cot")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("study")
    write_traces(traces_of(attentions=ATTENTIONS), path / "trials.parquet")
    return path


def exact_price(folder: Path, model: str, whole: dict[str, Any]) -> float:
    """Return what a whole setting costs on the mean prompt."""
    cost = request_cost(
        MODELS[model],
        parse_attention(whole["attention"]),
        prompt_len=float(read_tables(folder)[0].prompt_len.mean()),
        gen_len=whole["gen_len"],
        num_trials=whole["num_trials"],
    )
    return float(eflops(cost, HARDWARE["H100-SXM"]))


def test_rows_are_optima_that_can_be_run(kinetics, folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Of two models the larger cannot be had for the first cost; the last buys more than all there is."""
    costs = ("--cost", 2e12, "--cost", 4e7, "--cost", 4e8)
    finished = kinetics("allocate", "--traces", folder, *LONG, *costs, "--json")
    assert finished.code == 0, finished.err
    content = json.loads(finished.out)
    rows = content["rows"]
    assert (content["method"], content["num_trials"], content["costs_are"]) == ("topk", 144, "caps")
    assert content["models"] == list(MODELS_HERE)
    assert [row["cost"] for row in rows] == [4e7, 4e8, 2e12]
    assert [row["accuracy_by_model"][LARGE.name] is None for row in rows] == [True, False, False]
    for row in rows:
        assert row["kkt_residual"] < 1e-6
        assert row["accuracy"] == max(filter(None, row["accuracy_by_model"].values()))
        assert row["accuracy"] == row["accuracy_by_model"][row["model"]]
        assert row["spent"] <= row["cost"] * (1 + 1e-6)
        # The grid is part of the box, and a whole setting lies in it.
        assert row["grid"] is None or row["grid"]["accuracy"] <= row["accuracy"] + 1e-9
        assert row["rounded"]["spent"] <= row["cost"]
        assert row["rounded"]["spent"] == pytest.approx(exact_price(folder, row["model"], row["rounded"]))
        assert row["rounded"]["accuracy"] == pytest.approx(row["accuracy"], abs=0.02)
        assert row["num_trials"] == row["page_len"] == 1
    middle, last = rows[1:]
    assert middle["growth_per_doubling"]["gen_len"] > 1
    assert middle["growth_per_doubling"]["accuracy"] == pytest.approx(np.log(2) * middle["shadow_price"], rel=1e-5)
    # Money is left: nothing grows and nothing is worth more.
    assert last["spent"] < 1e11
    assert last["shadow_price"] == pytest.approx(0, abs=1e-9)
    assert set(last["tight"]) == {"gen_len at most", "whole context"}
    assert last["growth_per_doubling"]["gen_len"] == pytest.approx(1, abs=1e-6)

    monkeypatch.setenv("COLUMNS", "160")
    out = kinetics("allocate", "--traces", folder, *LONG, *costs).out  # compiled already
    assert (
        "topk on pathfind: 6 problems, 144 trials of Kinetics-Mini; eFLOPs on H100-SXM (add), caps per request" in out
    )
    body = [line for line in out.splitlines() if line.startswith("│ ")]
    assert len(body) == 3
    assert "256.0* x 1.0 " in body[2]
    assert f"2.00e+12 ({last['spent']:.2e} spent)" in body[2]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Put stand-ins for the fit and the solver, whose tests are elsewhere; return what they are asked for."""
    seen: dict[str, Any] = {}

    def fit(tables: Any, **_: Any) -> AccuracySurface:
        seen["attentions"] = sorted({table.attention for table in tables})
        models = tuple(dict.fromkeys(table.model for table in tables))
        one = AccuracySurface(
            log_rate=-1.0,
            difficulty=jnp.zeros(6),
            length_slope=1.0,
            keep_slope=1.0,
            keep_log_len=3.0,
            loss_slope=1.0,
            loss_log_len=2.0,
            page_slope=0.3,
            ceiling=0.9,
            weights=jnp.full(6, 1 / 6),
        )
        both = jax.tree.map(lambda leaf: jnp.stack([jnp.asarray(leaf)] * len(models)), one)
        return replace(both, models=models, problems=())

    def choose(surface: AccuracySurface, prices: list[RequestPrice], budget: Any, *, bounds: Bounds) -> ModelChoice:
        """Everything at its lower bound, of the first model; at the last budget no climb arrives."""
        seen.update(prices=dict(zip(surface.models, prices, strict=True)), budgets=budget, bounds=bounds)
        at = {name: np.full(len(budget), bounds.ends(name)[0]) for name in _optima.VARIABLES}
        accuracy, limits = np.full(len(budget), 0.25), ("gen_len at least", "budget_len at least", "cost")
        accuracy[-1] = np.nan
        optimum = Optimum(
            setting=Setting(**at),
            accuracy=accuracy,
            cost=np.asarray(budget) / 2,
            shadow_price=accuracy,
            multipliers=np.zeros((len(budget), 3)),
            slack=np.zeros((len(budget), 3)),
            kkt_residual=accuracy,
            limits=limits,
        )
        growth = Elasticities(**at, num_tokens=accuracy, accuracy=accuracy)
        each = jax.tree.map(lambda leaf: np.stack([leaf] * len(surface.models)), optimum)
        model = np.zeros(len(budget), int)
        return ModelChoice(each=each, model=model, optimum=optimum, growth=growth, models=surface.models)

    monkeypatch.setattr(f"{COMMAND}.fit_accuracy_surface", fit)
    monkeypatch.setattr(_optima, "compare_models", choose)
    return seen


def test_options_reach_the_solver(kinetics, folder: Path, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    options = ("--hardware", "TPU-v5e", "--batch-size", 1, "--combine", "max", "--max-trials", 64, "--average")
    finished = kinetics("allocate", "--traces", folder, *options, "--model", LARGE.name, "--json")
    assert finished.code == 0, finished.err
    content = json.loads(finished.out)
    assert (content["costs_are"], content["batch_size"], content["strategy"]) == ("means", 1, "both")
    assert content["flops_per_byte"] == HARDWARE["TPU-v5e"].intensity("bfloat16", "bfloat16")
    ((name, price),) = asked["prices"].items()
    assert (name, price.combine, price.hardware) == (LARGE.name, "max", HARDWARE["TPU-v5e"])
    assert price.weight_bytes == price.weight_bytes_alone > 0
    assert price.lengths is not None
    bounds = asked["bounds"]
    assert bounds.ends("num_trials") == (1, 64)
    assert bounds.ends("gen_len") == (8, 256)
    assert bounds.ends("budget_len") == (16, None)
    # Costs by default reach from above the cheapest setting to the dearest; nothing is no number of JSON.
    dearest = Setting(gen_len=256.0, num_trials=64.0, budget_len=454.0, page_len=1.0)
    assert len(asked["budgets"]) == 6
    with jax.enable_x64(True):
        assert asked["budgets"][-1] == pytest.approx(float(price(dearest)), rel=0.01)
    assert content["rows"][-1]["accuracy"] is None
    assert content["rows"][-1]["rounded"] is None
    assert content["rows"][0]["rounded"]["attention"].startswith("topk:")

    monkeypatch.setenv("COLUMNS", "160")
    out = kinetics("allocate", "--traces", folder, "--strategy", "best_of_n", "--method", "dense", "--cost", 1e9).out
    assert "dense on pathfind: 6 problems, 48 trials" in out
    assert asked["attentions"] == ["dense"]
    assert asked["bounds"].free == ("num_trials",)
    assert asked["bounds"].gen_len == 256
    assert "none" in out  # no climb arrived, and the table says so
    both = kinetics("allocate", "--traces", folder, "--cost", 1e9, "--cost", 2e9).out
    assert "8.0* x 1.0" in both
    assert "16.0*" in both


def test_a_model_that_the_catalogue_lacks_brings_its_geometry(kinetics, asked: dict[str, Any], tmp_path: Path):
    traces = [Trace(**{**vars(trace), "model": "Qwen9"}) for trace in traces_of() if trace.model == LARGE.name]
    write_traces(traces, tmp_path / "trials.parquet")
    finished = kinetics("allocate", "--traces", tmp_path / "trials.parquet")
    assert finished.code == 2
    assert "has traces of Qwen9, whose geometry the catalogue lacks" in finished.err
    (tmp_path / "Qwen9").mkdir()
    config = {
        "model_type": "qwen3",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 128,
        "vocab_size": 512,
        "tie_word_embeddings": True,
        "max_position_embeddings": 1024,
        "rope_theta": 10_000.0,
    }
    (tmp_path / "Qwen9" / "config.json").write_text(json.dumps(config))
    arguments = ("--traces", tmp_path / "trials.parquet", "--geometry", tmp_path / "Qwen9", "--cost", 1e9, "--json")
    finished = kinetics("allocate", *arguments)
    assert finished.code == 0, finished.err
    assert asked["prices"]["Qwen9"].kv_elements_per_token == 2 * 2 * 2 * 16


def test_held_out_scores_stand_beside_the_grid(kinetics, folder: Path, monkeypatch: pytest.MonkeyPatch):
    """The scores themselves are tested where they are computed; here they are half a point above Algorithm 1's."""
    caps = np.array([4e8, 4e9])
    sparse = [table for table in read_tables(folder) if table.attention != "dense"]
    tradeoff = tradeoff_table(sparse, models=MODELS, hardware=HARDWARE["H100-SXM"], strategy="long_cot")
    grid = allocate(tradeoff, jnp.asarray(caps, jnp.float32))

    def score(tables: Any, *, budgets: Any, strategy: str, on_progress: Any, **_: Any) -> HeldOutOptimum:
        assert strategy == "long_cot"
        assert {table.attention for table in tables} == set(ATTENTIONS)
        on_progress(1, 2)
        return HeldOutOptimum(
            budgets=budgets, solved=np.asarray(grid.solved) + 0.005, paid=np.asarray(grid.paid, dtype=float)
        )

    monkeypatch.setattr(f"{COMMAND}.score_optima", score)
    arguments = ("allocate", "--traces", folder, *LONG, "--held-out", "--cost", caps[0], "--cost", caps[1])
    content = json.loads(kinetics(*arguments, "--json").out)
    assert content["costs_are"] == "caps on the expected price"
    assert [row["cost"] for row in content["rows"]] == caps.tolist()
    for row, accuracy in zip(content["rows"], np.asarray(grid.accuracy), strict=True):
        assert row["grid_accuracy"] == pytest.approx(accuracy, abs=1e-6)
        assert row["gain"] == pytest.approx(0.005, abs=1e-6)
        assert "budgets" not in row
    monkeypatch.setenv("COLUMNS", "160")
    out = kinetics(*arguments).out
    assert "Within one standard error of the grid's accuracy, or better: 2 of 2." in out
    assert out.count(" +0.5 (0.0) ") == 2


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--cost", "-1"), ("a cost must be a positive number of eFLOPs, such as 1e17; got -1",)),
        (("--cost", "nan"), ("a cost must be a positive number",)),
        (("--cost", "5"), ("study", "a budget must be above the cheapest setting's price, ", "got 5.")),
        (("--strategy", "guess"), ("strategy must be both, long_cot, best_of_n; got 'guess'",)),
        (("--method", "quest"), ("no traces of a method 'quest' with a smooth price. There are topk, dense.",)),
        (("--method", "local"), ("no traces of a method 'local'",)),
        (("--combine", "sum"), ("combine must be add, max or a norm p >= 1; got 'sum'",)),
        (("--hardware", "Abacus"), ("unknown hardware 'Abacus'",)),
        (("--model", "Qwen9"), ("has no traces of Qwen9", "study")),
        (("--task", "chess"), ("has no task 'chess'. It has pathfind.",)),
        (("--strategy", "best_of_n", "--max-trials", "1"), ("trials are free between 1 and 1",)),
        (("--held-out",), ("choose --strategy long_cot or best_of_n",)),
        (("--held-out", *LONG, "--batch-size", "1"), ("Leave --batch-size out.",)),
        (("--held-out", *LONG, "--average"), ("Leave --average out.",)),
        (("--held-out", *LONG, "--max-trials", "8"), ("Leave --max-trials out.",)),
        (("--held-out", *LONG, "--method", "dense"), ("the traces are dense only",)),
    ],
)
def test_a_slip_costs_one_sentence(kinetics, folder: Path, args: tuple[str, ...], said: tuple[str, ...]):
    finished = kinetics("allocate", "--traces", folder, *args)
    assert finished.code == 2
    assert finished.out == ""
    assert finished.err.startswith("Error: ")
    assert finished.err.count("\n") == 1
    assert all(words in finished.err for words in said), finished.err


def test_traces_that_teach_nothing_are_named(kinetics, tmp_path: Path):
    wrong = [Trace(**{**vars(trace), "score": 0.0, "solved_len": None}) for trace in traces_of()]
    write_traces(wrong, tmp_path / "wrong.parquet")
    windows = [trace for trace in traces_of(attentions=("local:64",))]
    write_traces(windows, tmp_path / "windows.parquet")
    for file, said in (("wrong", "is solved: there is nothing to fit"), ("windows", "there are local only")):
        finished = kinetics("allocate", "--traces", tmp_path / f"{file}.parquet")
        assert finished.code == 2
        assert finished.err.count("\n") == 1
        assert f"{file}.parquet" in finished.err
        assert said in finished.err
