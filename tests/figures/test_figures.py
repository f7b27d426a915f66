"""Every figure writes a picture and the numbers in it, headless, and leaves matplotlib as it was."""

import csv
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest

from kinetics_jax.figures import (
    best_of_n_frontier,
    dense_vs_sparse,
    kv_per_token,
    law_bands,
    long_cot_frontier,
    methods_compared,
)
from kinetics_jax.scaling import Tradeoff, accuracy_by_budget, allocate, model_frontiers, tradeoff_table, wrong_law_cost
from kinetics_jax.specs import HARDWARE, MODELS
from tests.figures.small import MODELS_HERE, NUM_BUDGETS, TABLES


def table_of(price: str = "eflops", strategy: str = "long_cot") -> Tradeoff:
    assert price in ("eflops", "flops")
    assert strategy in ("long_cot", "best_of_n")
    return tradeoff_table(TABLES, models=MODELS, hardware=HARDWARE["H100-SXM"], price=price, strategy=strategy)


def rows_of(paths: tuple[Path, Path]) -> list[dict[str, str]]:
    png, table = paths
    assert png.read_bytes().startswith(b"\x89PNG")
    assert png.stat().st_size > 10_000
    assert sorted(file.name for file in png.parent.iterdir()) == sorted([png.name, table.name])
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(("draw", "strategy"), [(long_cot_frontier, "long_cot"), (best_of_n_frontier, "best_of_n")])
def test_frontiers(draw, strategy: str, tmp_path: Path):
    tradeoff = table_of(strategy=strategy).select(methods=["dense"])
    frontiers = model_frontiers(tradeoff, tradeoff.budget_grid(NUM_BUDGETS))
    settings = dict(mpl.rcParams)
    rows = rows_of(draw(frontiers, tmp_path / "deep" / "frontier.png"))
    assert dict(mpl.rcParams) == settings
    assert len(rows) == 2 * NUM_BUDGETS
    for model, frontier in frontiers.items():
        drawn = [float(row["accuracy"]) for row in rows if row["model"] == model]
        np.testing.assert_allclose(drawn, frontier.accuracy)
    assert {"cap_eflops", "naive_bias", "accuracy_low", "mean_gen_len"} <= set(rows[0])


def test_dense_vs_sparse(tmp_path: Path):
    tradeoff = table_of()
    budgets = tradeoff.budget_grid(NUM_BUDGETS)
    curves = {name: allocate(tradeoff.select(methods=[name]), budgets) for name in tradeoff.methods}
    rows = rows_of(dense_vs_sparse({"all models": curves}, tmp_path / "gaps.png"))
    assert {row["method"] for row in rows} == {"dense", "block_topk", "topk"}
    with pytest.raises(ValueError, match="'dense' and 'local'"):
        dense_vs_sparse({"all models": curves}, tmp_path / "none.png", arrows="local")


def test_methods_compared(tmp_path: Path):
    points = accuracy_by_budget(TABLES)
    # What the last panel lacks is in the legend all the same, and a colour means the same pages in every panel.
    some = [point for point in points if (point.model, point.method) != (MODELS_HERE[1], "topk")]
    some = [replace(point, page_len=16) if point.page_len and point.budget_len == 128 else point for point in some]
    some = [point for point in some if (point.model, point.page_len) != (MODELS_HERE[1], 16)]
    png, table = methods_compared(some, tmp_path / "methods.png", svg=True)
    assert png.read_bytes().startswith(b"\x89PNG")
    with table.open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(some) == 6
    picture = png.with_suffix(".svg").read_text(encoding="utf-8")
    for label in ("dense", "oracle top-k", "block top-k, pages of 8", "block top-k, pages of 16"):
        assert picture.count(f"<!-- {label} -->") == 1
    assert "<!-- block top-k -->" not in picture
    with pytest.raises(ValueError, match="KV budget"):
        methods_compared([point for point in points if point.method == "dense"], tmp_path / "none.png")


def test_law_bands(tmp_path: Path):
    frontiers = {}
    for price in ("flops", "eflops"):
        tradeoff = table_of(price=price).select(methods=["dense"])
        frontiers[price] = model_frontiers(tradeoff, tradeoff.budget_grid(NUM_BUDGETS))
    comparisons = wrong_law_cost(frontiers["flops"], frontiers["eflops"], np.linspace(0.05, 0.95, 10))
    rows = rows_of(law_bands(frontiers["flops"], frontiers["eflops"], comparisons, tmp_path / "laws.png"))
    assert len(rows) == 10
    assert all(float(row["cost_ratio"]) >= 1 for row in rows if row["cost_ratio"])

    alone = {MODELS_HERE[0]: frontiers["eflops"][MODELS_HERE[0]]}
    with pytest.raises(ValueError, match="laws choose among models: give two or more"):
        law_bands(alone, alone, comparisons, tmp_path / "none.png")
    # Where nobody gets, the laws do not agree either.
    beyond = wrong_law_cost(frontiers["flops"], frontiers["eflops"], np.array([1.5, 2.0]))
    law_bands(frontiers["flops"], frontiers["eflops"], beyond, tmp_path / "beyond.png", svg=True)
    picture = (tmp_path / "beyond.svg").read_text(encoding="utf-8")
    assert "no model gets to any of the accuracies compared" in picture
    assert "never differ" not in picture


def test_bad_paths_leave_nothing_behind(tmp_path: Path):
    with pytest.raises(ValueError, match=r"end in \.png"):
        kv_per_token([MODELS["Qwen3-8B"]], tmp_path / "kv.pdf")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match="cannot make the folder"):
        kv_per_token([MODELS["Qwen3-8B"]], tmp_path / "file" / "kv.png")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
