"""`draw_all`: every kind of figure from made-up tables, what is missing and why, and where the files go."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kinetics_jax.figures import CannotWriteError, FigureReport, ThroughputRow, draw_all, figure_names, throughput
from kinetics_jax.specs import HARDWARE
from tests.figures.small import MODELS_HERE, NUM_BUDGETS, TABLES

H100 = HARDWARE["H100-SXM"]
# One figure of each kind; the others differ in their options only.
KINDS = (
    "throughput",
    "best_of_n_eflops_max",
    "laws_long_cot_max",
    "dense_vs_topk_best_of_n",
    "dense_vs_block_topk_long_cot_by_difficulty",
    "growth_long_cot_block_topk",
    "length_vs_trials",
    "adaptive_policy",
    "cost_breakdown",
)


def rows_of(png: Path) -> list[dict[str, str]]:
    with png.with_suffix(".csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> FigureReport:
    seen: list[tuple[str, int]] = []
    folder = tmp_path_factory.mktemp("figures")
    drawn = draw_all(
        TABLES,
        H100,
        folder,
        only=KINDS,
        num_budgets=NUM_BUDGETS,
        num_resamples=3,
        svg=False,
        on_figure=lambda name, count: seen.append((name, count)),
    )
    assert [name for name, _ in seen] == [name for name in figure_names() if name in KINDS]
    assert {count for _, count in seen} == {len(KINDS)}
    return drawn


def test_all_but_the_unmeasured_is_drawn(report: FigureReport):
    assert set(report.drawn) == {*KINDS} - {"throughput"}
    for name, png in report.drawn.items():
        assert png.name == f"{name}.png"
        assert png.read_bytes().startswith(b"\x89PNG")
        assert len(rows_of(png)) > 1
    folder = next(iter(report.drawn.values())).parent
    assert len(list(folder.iterdir())) == 2 * len(report.drawn)


def test_what_is_missing_says_what_it_lacks(report: FigureReport):
    assert set(report.missing) == {"throughput"}
    assert "no measurement of a whole model" in report.missing["throughput"]


def test_numbers_of_the_strata_are_those_of_each_stratum_alone(report: FigureReport):
    rows = rows_of(report.drawn["dense_vs_block_topk_long_cot_by_difficulty"])
    assert list(dict.fromkeys(row["panel"] for row in rows)) == [f"difficulty {level}" for level in (2, 6)]
    assert {row["method"] for row in rows} == {"dense", "block_topk"}
    easy, hard = ([float(row["accuracy"]) for row in rows if row["panel"] == f"difficulty {level}"] for level in (2, 6))
    assert max(easy) > max(hard)


def test_a_law_is_written_beside_its_points(report: FigureReport):
    for row in rows_of(report.drawn["growth_long_cot_block_topk"]):
        factor = float(row["num_tokens_factor_per_doubling"])
        assert factor == pytest.approx(2 ** float(row["num_tokens_exponent"]))
        assert 0 < float(row["mean_num_tokens"]) <= 256
        assert 32 <= float(row["mean_budget_len"]) <= 128


def test_policies_pay_for_what_they_solve(report: FigureReport):
    rows = rows_of(report.drawn["adaptive_policy"])
    assert {row["panel"] for row in rows} == set(MODELS_HERE)
    for row in rows:
        regret = float(row["fixed_accuracy"]) - float(row["accuracy"])
        assert float(row["regret_to_fixed"]) == pytest.approx(regret)
        assert float(row["spent_eflops"]) > 0


def test_each_task_and_family_has_a_folder(tmp_path: Path):
    dense = [table for table in TABLES if table.attention == "dense"]
    others = [replace(table, task="maths/24") for table in dense]
    large = [replace(table, model="Qwen3-8B") for table in dense[:1]]
    report = draw_all([*dense, *others, *large], H100, tmp_path, only=["cost_breakdown", "methods"], svg=False)
    groups = ("pathfind/Kinetics-Mini", "maths_24/Kinetics-Mini", "pathfind/Qwen3")
    assert set(report.drawn) == {f"{group}/cost_breakdown" for group in groups}
    assert (tmp_path / "maths_24" / "Kinetics-Mini" / "cost_breakdown.png").is_file()
    assert set(report.missing) == {f"{group}/methods" for group in groups}
    assert "dense ones only" in report.missing["pathfind/Qwen3/methods"]


def test_data_that_supports_little_is_no_error(tmp_path: Path):
    easy = [replace(table, difficulty=np.full(table.num_problems, 3, np.int32)) for table in TABLES]
    sparse = [table for table in easy if table.attention != "dense"]
    only = ["dense_vs_topk_long_cot_by_difficulty", "long_cot_flops", "dense_vs_topk_long_cot", "adaptive_policy"]
    report = draw_all(sparse, H100, tmp_path, only=only)
    assert report.drawn == {}
    assert "all problems have the difficulty 3" in report.missing["dense_vs_topk_long_cot_by_difficulty"]
    assert "'dense'" in report.missing["long_cot_flops"]
    assert "'dense'" in report.missing["dense_vs_topk_long_cot"]
    assert list(tmp_path.iterdir()) == []


def test_refusals(tmp_path: Path):
    with pytest.raises(ValueError, match=r"unknown figures \['frontiers'\]. Known: kv_per_token"):
        draw_all(TABLES, H100, tmp_path, only=["frontiers"])
    with pytest.raises(ValueError, match="at least one trace table"):
        draw_all([], H100, tmp_path)
    with pytest.raises(ValueError, match="unknown model 'Qwen9'"):
        draw_all([replace(TABLES[0], model="Qwen9")], H100, tmp_path)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CannotWriteError, match="cannot make the folder"):
        draw_all(TABLES, H100, tmp_path / "file", only=["cost_breakdown"])


def test_the_same_picture_twice_is_the_same_svg(tmp_path: Path):
    row = ThroughputRow(
        model="Qwen3-8B", attention="dense", context_len=4096, batch_size=8, tokens_per_s=500.0, device="H100"
    )
    for name in ("one", "two"):
        throughput([row], tmp_path / f"{name}.png", svg=True)
    assert len(list(tmp_path.iterdir())) == 6
    assert "<svg" in (tmp_path / "one.svg").read_text(encoding="utf-8")
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
