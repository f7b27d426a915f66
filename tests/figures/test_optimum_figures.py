"""Figures of the continuous optimum: from numbers made by hand, and what the plates hand to them."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from kinetics_jax.figures import _plates, draw_all, optimum_with_cost, surface_fit, tangency
from kinetics_jax.scaling import Bounds, GridOptimum, GridPoint, Optimum, Setting
from kinetics_jax.specs import HARDWARE
from tests.figures.small import MODELS_HERE, TABLES

LIMITS = ("gen_len at least", "gen_len at most", "cost")


def rows_of(paths: tuple[Path, Path]) -> list[dict[str, str]]:
    png, table = paths
    assert png.read_bytes().startswith(b"\x89PNG")
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def optimum_of(cost: list[float], accuracy: list[float], gen_len: list[float], slack: list[float]) -> Optimum:
    one = np.ones(len(cost))
    return Optimum(
        setting=Setting(gen_len=np.array(gen_len), num_trials=2 * one, budget_len=64 * one, page_len=one),
        accuracy=np.array(accuracy),
        cost=np.array(cost),
        shadow_price=np.array(accuracy) / 10,
        multipliers=np.zeros((len(cost), 3)),
        slack=np.stack([one, one, np.array(slack)], axis=1),
        kkt_residual=0 * one,
        limits=LIMITS,
    )


def test_every_grid_point_is_drawn_with_its_interval(tmp_path: Path):
    points = [
        GridPoint(model=model, attention=text, gen_len=n, measured=0.4, low=0.3, high=0.5, fitted=fitted)
        for model in ("Qwen3-4B", "Qwen3-8B")
        for text, fitted in (("dense", 0.45), ("topk:32", 0.35), ("topk:64", 0.55))
        for n in (128.0, 256.0)
    ]
    rows = rows_of(surface_fit(points, tmp_path / "fit.png", svg=True))
    assert len(rows) == len(points) == 12
    assert {"model", "attention", "gen_len", "measured", "low", "high", "fitted"} == set(rows[0])
    picture = (tmp_path / "fit.svg").read_text(encoding="utf-8")
    # A third lies outside; the distance is 5, 5 and 15 points.
    assert picture.count("67% inside, off by 9.6 points -->") == 2
    assert all(f"<!-- {label} -->" in picture for label in ("32", "64", "dense"))
    with pytest.raises(ValueError, match="needs grid points"):
        surface_fit([], tmp_path / "none.png")


def test_the_optimum_stands_beside_the_grid(tmp_path: Path):
    optima = {
        "Qwen3-4B": optimum_of([1e9, 1e10, 2e10], [0.2, 0.5, 0.6], [50.0, 100.0, 200.0], [0.0, 0.0, 0.7]),
        "Qwen3-8B": optimum_of([np.nan, 1e10, 1e11], [np.nan, 0.4, 0.8], [np.nan, 64.0, 128.0], [0.0, 0.0, 0.0]),
    }
    small = optima["Qwen3-4B"]
    grid = GridOptimum(setting=small.setting, accuracy=np.array([0.0, 0.4, 0.5]), cost=np.array([0.0, 9e9, 1.5e10]))
    rows = rows_of(optimum_with_cost(optima, tmp_path / "optimum.png", grid={"Qwen3-4B": grid}, title="top-k"))
    assert [row["model"] for row in rows] == ["Qwen3-4B"] * 3 + ["Qwen3-8B"] * 3
    assert [row["num_tokens"] for row in rows[:3]] == ["100.0", "200.0", "400.0"]
    assert [row["grid_accuracy"] for row in rows[:3]] == ["0.0", "0.4", "0.5"]
    # Where nothing is affordable a cell is empty; where money is left over the budget does not limit.
    assert rows[3]["accuracy"] == ""
    assert [float(row["is_spent"]) for row in rows[:3]] == [1, 1, 0]
    nothing = optimum_of([np.nan], [np.nan], [np.nan], [0.0])
    with pytest.raises(ValueError, match="no budget pays for any setting"):
        optimum_with_cost({"Qwen3-8B": nothing}, tmp_path / "none.png")


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Roots:
    """Accuracy = scale (n B)^(1/2)."""

    scale: Any

    def accuracy(self, setting: Setting) -> Any:
        return self.scale * (setting.gen_len * setting.budget_len) ** 0.5


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Sum:
    """Price = unit (n + B)."""

    unit: Any

    def __call__(self, setting: Setting) -> Any:
        return self.unit * (setting.gen_len + setting.budget_len)


def test_contours_touch_at_the_optimum(tmp_path: Path):
    # Half of the money each: n = B = cost / 2.
    half = np.array([16.0, 40.0])
    optima = Optimum(
        setting=Setting(gen_len=half, num_trials=np.ones(2), budget_len=half, page_len=np.ones(2)),
        accuracy=0.01 * half,
        cost=2 * half,
        shadow_price=half,
        multipliers=half,
        slack=half,
        kkt_residual=half,
        limits=(),
    )
    bounds = Bounds(gen_len=(8.0, 64.0), num_trials=1.0, budget_len=(8.0, None))
    rows = rows_of(tangency(Roots(scale=0.01), Sum(unit=1.0), optima, tmp_path / "touch.png", bounds=bounds))
    best = [row for row in rows if row["kind"] == "optimum"]
    assert [float(row["accuracy"]) for row in best] == pytest.approx([0.16, 0.4])
    for row in rows:
        length, budget = float(row["gen_len"]), float(row["budget_len"])
        assert float(row["accuracy"]) == pytest.approx(0.01 * (length * budget) ** 0.5, rel=1e-5)
        assert float(row["eflops"]) == pytest.approx(length + budget, rel=1e-5)
        # Nothing on the grid is as good for as little.
        assert all(
            float(row["accuracy"]) <= float(one["accuracy"]) + 1e-6
            for one in best
            if float(row["eflops"]) <= float(one["eflops"])
        )
    # Without an upper bound the axis ends a little beyond the largest optimum.
    assert max(float(row["budget_len"]) for row in rows) == pytest.approx(1.3 * 40, rel=1e-5)
    with pytest.raises(ValueError, match="contours need two free variables; got gen_len"):
        tangency(
            Roots(scale=0.01),
            Sum(unit=1.0),
            optima,
            tmp_path / "none.png",
            bounds=Bounds(gen_len=(8.0, 64.0), num_trials=1.0, budget_len=32.0),
        )


def test_traces_become_a_surface_and_its_figure(tmp_path: Path):
    only = ["surface_fit_block_topk", "optimum_quest", "tangency_topk"]
    with pytest.raises(ValueError, match=r"unknown figures \['optimum_quest'\]"):
        draw_all(TABLES, HARDWARE["H100-SXM"], tmp_path, only=only, svg=False)
    local = [table for table in TABLES if table.attention == "dense"]
    report = draw_all(local, HARDWARE["H100-SXM"], tmp_path, only=["optimum_topk"], svg=False)
    assert "no traces of 'topk'. There are dense." in report.missing["optimum_topk"]
    report = draw_all(TABLES, HARDWARE["H100-SXM"], tmp_path, only=["surface_fit_block_topk"], svg=False)
    assert report.missing == {}
    with (tmp_path / "surface_fit_block_topk.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["model"] for row in rows} == set(MODELS_HERE)
    assert {row["attention"] for row in rows} == {"dense", "block_topk:8x4", "block_topk:8x16"}
    assert len(rows) == 2 * 3 * 11
    assert np.mean([(float(row["measured"]) - float(row["fitted"])) ** 2 for row in rows]) < 0.1**2


def test_the_plates_ask_for_what_was_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[tuple[Any, np.ndarray, Bounds]] = []

    def solve(law: Any, price: Any, budgets: np.ndarray, *, bounds: Bounds, num_starts: int = 3) -> Optimum:
        """Stand in for the solver, whose tests are elsewhere: everything at its lower bound."""
        asked.append((price, budgets, bounds))
        low = optimum_of([1.0] * budgets.size, [0.5] * budgets.size, [8.0] * budgets.size, [0.0] * budgets.size)
        return Optimum(**{**vars(low), "cost": budgets, "setting": low.setting})

    monkeypatch.setattr(_plates, "optimal_allocation", solve)
    only = ["optimum_block_topk", "tangency_block_topk"]
    report = draw_all(TABLES, HARDWARE["H100-SXM"], tmp_path, only=only, svg=False)
    assert set(report.drawn) == set(only)
    assert [bounds.free for _, _, bounds in asked] == [
        *[("gen_len", "num_trials", "budget_len")] * 2,
        ("gen_len", "budget_len"),
    ]
    for price, budgets, bounds in asked:
        assert bounds.page_len == 8.0
        assert bounds.ends("gen_len") == (8.0, 256.0)
        assert bounds.ends("budget_len") == (32.0, None)
        lowest = Setting(gen_len=8.0, num_trials=1.0, budget_len=32.0, page_len=8.0)
        assert (budgets > float(price(lowest))).all()
    with (tmp_path / "optimum_block_topk.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["model"] for row in rows} == set(MODELS_HERE)
    bought = [row for row in rows if row["grid_num_trials"]]
    assert {float(row["grid_num_trials"]) for row in bought} == {1, 2, 4, 8}
    assert all(float(row["grid_spent_eflops"]) <= float(row["spent_eflops"]) * 1.001 for row in bought)
