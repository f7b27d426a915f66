"""Every figure writes a picture and the numbers in it, headless, and leaves matplotlib as it was."""

import csv
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
from tests.scaling.synthetic import MODEL_NAMES, synthetic_tables

TABLES = synthetic_tables(
    models=MODEL_NAMES[:3], attentions=("dense", "block_topk:8x4", "local:32"), num_problems=10, num_trials=8
)


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
    frontiers = model_frontiers(tradeoff, tradeoff.budget_grid(24))
    settings = dict(mpl.rcParams)
    rows = rows_of(draw(frontiers, tmp_path / "deep" / "frontier.png"))
    assert dict(mpl.rcParams) == settings
    assert len(rows) == 3 * 24
    for model, frontier in frontiers.items():
        drawn = [float(row["accuracy"]) for row in rows if row["model"] == model]
        np.testing.assert_allclose(drawn, frontier.accuracy)
    assert {"cap_eflops", "naive_bias", "accuracy_low", "mean_gen_len"} <= set(rows[0])


def test_dense_vs_sparse(tmp_path: Path):
    tradeoff = table_of()
    budgets = tradeoff.budget_grid(24)
    curves = {name: allocate(tradeoff.select(methods=[name]), budgets) for name in tradeoff.methods}
    rows = rows_of(dense_vs_sparse({"all models": curves}, tmp_path / "gaps.png"))
    assert {row["method"] for row in rows} == {"dense", "block_topk", "local"}
    with pytest.raises(ValueError, match="'dense' and 'topk'"):
        dense_vs_sparse({"all models": curves}, tmp_path / "none.png", arrows="topk")


def test_methods_compared(tmp_path: Path):
    points = accuracy_by_budget(TABLES)
    rows = rows_of(methods_compared(points, tmp_path / "methods.png"))
    assert len(rows) == 9
    with pytest.raises(ValueError, match="KV budget"):
        methods_compared([point for point in points if point.method == "dense"], tmp_path / "none.png")


def test_law_bands(tmp_path: Path):
    frontiers = {}
    for price in ("flops", "eflops"):
        tradeoff = table_of(price=price).select(methods=["dense"])
        frontiers[price] = model_frontiers(tradeoff, tradeoff.budget_grid(24))
    comparisons = wrong_law_cost(frontiers["flops"], frontiers["eflops"], np.linspace(0.05, 0.95, 10))
    rows = rows_of(law_bands(frontiers["flops"], frontiers["eflops"], comparisons, tmp_path / "laws.png"))
    assert len(rows) == 10
    assert all(float(row["cost_ratio"]) >= 1 for row in rows if row["cost_ratio"])


def test_bad_paths_leave_nothing_behind(tmp_path: Path):
    with pytest.raises(ValueError, match=r"end in \.png"):
        kv_per_token(MODELS.values(), tmp_path / "kv.pdf")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match="cannot make the folder"):
        kv_per_token(MODELS.values(), tmp_path / "file" / "kv.png")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
