"""The figures of the cost model draw what the cost model says: every CSV is held to numbers computed here."""

import csv
import math
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.image import imread

from kinetics_jax.cost import eflops, iso_cost_len, phi, request_cost
from kinetics_jax.figures import cost_breakdown, iso_cost_contours, kv_per_token, phi_by_len
from kinetics_jax.specs import HARDWARE, MODELS, Dense, ModelSpec, Quest, TopK

QWEN3 = [spec for spec in MODELS.values() if spec.family == "Qwen3"]
B200, H100 = HARDWARE["PAPER_B200"], HARDWARE["H100-SXM"]


def rows_of(paths: tuple[Path, Path]) -> list[dict[str, str]]:
    """Check the picture (a whole PNG, wide enough to read, with ink of several colours in it); return its data."""
    png, table = paths
    pixels = imread(png)[..., :3]
    height, width, _ = pixels.shape
    assert 1000 <= width <= 1400
    assert height > 200
    num_colors = len(np.unique((255 * pixels).astype(np.uint32) @ np.array([65536, 256, 1], dtype=np.uint32)))
    share_of_ink = (pixels.min(axis=-1) < 0.9).mean()
    assert num_colors > 50
    assert 0.01 < share_of_ink < 0.7
    edge = np.concatenate([pixels[:2].reshape(-1, 3), pixels[-2:].reshape(-1, 3)])
    assert edge.min() > 0.9, "something is cut off at the upper or lower edge"
    edge = np.concatenate([pixels[:, :1].reshape(-1, 3), pixels[:, -1:].reshape(-1, 3)])
    assert edge.min() > 0.9, "something is cut off at the left or right edge"
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def family(name: str) -> list[ModelSpec]:
    return [spec for spec in MODELS.values() if spec.family == name]


class TestKvPerToken:
    @pytest.fixture(scope="class")
    @staticmethod
    def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
        paths = kv_per_token(MODELS.values(), tmp_path_factory.mktemp("kv") / "kv.png")
        return {row["model"]: row for row in rows_of(paths)}

    def test_every_model_has_a_row(self, rows: dict[str, dict[str, str]]) -> None:
        assert set(rows) == set(MODELS)

    @pytest.mark.parametrize(
        ("name", "kv_gib", "billions"),
        [
            ("Qwen3-14B", 5.0, 14.77),  # Errata 1: not 6.
            ("Qwen3-32B", 8.0, 32.76),
            ("DeepSeek-R1-Distill-Qwen-1.5B", 0.875, 1.777),
            ("Llama-3.1-8B-Instruct", 4.0, 8.03),
            ("Qwen3-30B-A3B", 3.0, 30.53),  # All experts: what memory holds.
            ("OPT-13B", 25.0, 12.85),
        ],
    )
    def test_rows(self, rows: dict[str, dict[str, str]], name: str, kv_gib: float, billions: float) -> None:
        assert float(rows[name]["kv_bytes_per_token"]) * 32_768 == kv_gib * 2**30
        assert float(rows[name]["weight_bytes"]) == pytest.approx(2e9 * billions, rel=1e-3)

    def test_every_family_grows_more_slowly_than_the_model(self, rows: dict[str, dict[str, str]]) -> None:
        exponents = {row["family"]: row["family_exponent"] for row in rows.values()}
        assert exponents.pop("DeepSeek-R1-Distill-Llama") == ""  # One size: no slope.
        assert len(exponents) == 7
        assert all(0 < float(exponent) < 1 for exponent in exponents.values())

    def test_exponent_is_the_least_squares_slope(self, rows: dict[str, dict[str, str]]) -> None:
        sizes = np.log([2.0 * spec.num_params for spec in QWEN3])
        caches = np.log([2.0 * spec.kv_elements_per_token for spec in QWEN3])
        slope = np.polyfit(sizes, caches, 1)[0]
        assert float(rows["Qwen3-8B"]["family_exponent"]) == pytest.approx(slope, rel=1e-9)

    def test_scales_of_a_quantised_cache_count(self, tmp_path: Path) -> None:
        rows = rows_of(kv_per_token(QWEN3, tmp_path / "kv.png", kv_dtype="int4", weight_dtype="int8"))
        assert float(rows[0]["kv_bytes_per_token"]) == 2 * 28 * 8 * (64 + 2)
        assert float(rows[0]["weight_bytes"]) == QWEN3[0].num_params

    def test_refuses(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="at least one model"):
            kv_per_token([], tmp_path / "kv.png")
        with pytest.raises(ValueError, match="unknown dtype 'int3'"):
            kv_per_token(QWEN3, tmp_path / "kv.png", kv_dtype="int3")
        assert not list(tmp_path.iterdir())


class TestIsoCostContours:
    def test_lengths_are_those_of_the_solver(self, tmp_path: Path) -> None:
        rows = rows_of(
            iso_cost_contours(QWEN3[::5], B200, tmp_path / "iso.png", targets_eflops=(2e14, 2e16), convention="paper")
        )
        assert len(rows) == 2 * 2 * 2
        lengths = {(row["unit"], float(row["target"]), row["model"]): float(row["gen_len"]) for row in rows}
        # PAPER.md section 6: solved by hand from the published P.
        assert lengths["eFLOPs", 2e16, "Qwen3-0.6B"] == pytest.approx(24_833, abs=1)
        assert lengths["eFLOPs", 2e16, "Qwen3-32B"] == pytest.approx(15_922, abs=1)
        for spec in QWEN3[::5]:
            solved = iso_cost_len(spec, Dense(), B200, 2e14, prompt_len=0, convention="paper")
            assert lengths["eFLOPs", 2e14, spec.name] == pytest.approx(solved, rel=1e-12)

    def test_each_line_of_flops_costs_one_number_and_meets_its_twin_at_the_largest_model(self, tmp_path: Path) -> None:
        attention = TopK(budget_len=1024, sink_len=4)
        rows = rows_of(
            iso_cost_contours(
                [QWEN3[-1], QWEN3[0]],
                H100,
                tmp_path / "iso.png",
                attention=attention,
                targets_eflops=(2e15, 2e13),
                named_eflops=2e13,
                prompt_len=300,
            )
        )
        lengths: dict[str, dict[str, list[float]]] = {"FLOPs": {}, "eFLOPs": {}}
        for row in rows:
            length, spec = float(row["gen_len"]), MODELS[row["model"]]
            cost = request_cost(spec, attention, prompt_len=300, gen_len=length)
            price = cost.flops if row["unit"] == "FLOPs" else eflops(cost, H100)
            assert price == pytest.approx(float(row["target"]), rel=1e-9)
            lengths[row["unit"]].setdefault(spec.name, []).append(length)
        assert lengths["FLOPs"]["Qwen3-32B"] == pytest.approx(lengths["eFLOPs"]["Qwen3-32B"], rel=1e-9)
        # The lines tilt: FLOPs flatter the smaller model.
        assert np.all(np.array(lengths["FLOPs"]["Qwen3-0.6B"]) > 1.2 * np.array(lengths["eFLOPs"]["Qwen3-0.6B"]))

    def test_refuses(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="at least two models"):
            iso_cost_contours(QWEN3[:1], B200, tmp_path / "iso.png")
        with pytest.raises(ValueError, match=r"named_eflops must be one of .*got 3e\+16"):
            iso_cost_contours(QWEN3, B200, tmp_path / "iso.png", named_eflops=3e16)
        assert not list(tmp_path.iterdir())


class TestPhiByLen:
    def test_curves_and_crossings(self, tmp_path: Path) -> None:
        settings = dict(mpl.rcParams)
        rows = rows_of(phi_by_len(QWEN3, B200, tmp_path / "phi.png", convention="paper", longest_len=4096))
        assert dict(mpl.rcParams) == settings
        last = {row["model"]: row for row in rows if float(row["gen_len"]) == 4096}
        # PAPER.md, errata 6.
        assert float(last["Qwen3-0.6B"]["phi"]) == pytest.approx(88, abs=0.5)
        assert float(last["Qwen3-14B"]["phi"]) == pytest.approx(6.4, abs=0.05)
        assert float(last["Qwen3-32B"]["phi"]) == pytest.approx(4.7, abs=0.05)
        for row in last.values():  # B* is where T / 2 entries a step, the mean, cost as much as the weights.
            at_crossing = phi(MODELS[row["model"]], B200, gen_len=float(row["crossing_len"]), convention="paper")
            assert at_crossing == pytest.approx(1, rel=1e-12)

    def test_a_long_prompt_leaves_no_crossing(self, tmp_path: Path) -> None:
        rows = rows_of(phi_by_len(QWEN3[:1], H100, tmp_path / "phi.png", prompt_len=32_768))
        assert all(float(row["phi"]) > 1 and row["crossing_len"] == "" for row in rows)
        expected = phi(QWEN3[0], H100, gen_len=np.array([float(row["gen_len"]) for row in rows]), prompt_len=32_768)
        np.testing.assert_allclose([float(row["phi"]) for row in rows], expected)

    def test_refuses(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="at least one model"):
            phi_by_len([], B200, tmp_path / "phi.png")
        with pytest.raises(ValueError, match="above 16 tokens; got 16"):
            phi_by_len(QWEN3, B200, tmp_path / "phi.png", longest_len=16)
        with pytest.raises(ValueError, match="at most 6 models; got 7"):
            phi_by_len([*QWEN3, MODELS["OPT-13B"]], B200, tmp_path / "phi.png")
        assert not list(tmp_path.iterdir())


class TestCostBreakdown:
    def test_bars_are_the_terms(self, tmp_path: Path) -> None:
        sizes: dict[str, Any] = {"prompt_len": 512, "gen_len": 4096, "batch_size": 64}
        methods = [Dense(), TopK(budget_len=256, dense_layers=1), Quest(page_len=16, num_pages=16)]
        rows = rows_of(cost_breakdown(QWEN3[::3], methods, H100, tmp_path / "bars.png", **sizes))
        assert len(rows) == 2 * 3 * 6
        for spec in QWEN3[::3]:
            for method in methods:
                of_bar = {
                    row["term"]: row for row in rows if (row["model"], row["attention"]) == (spec.name, str(method))
                }
                cost = request_cost(spec, method, **sizes)
                assert math.fsum(float(row["eflops"]) for row in of_bar.values()) == pytest.approx(eflops(cost, H100))
                assert math.fsum(float(row["share"]) for row in of_bar.values()) == pytest.approx(1)
                intensity = H100.intensity("bfloat16")
                assert float(of_bar["linear_flops"]["eflops"]) == cost.linear_flops
                assert float(of_bar["param_bytes"]["eflops"]) == pytest.approx(intensity * cost.param_bytes)
                assert float(of_bar["search"]["eflops"]) == pytest.approx(
                    cost.search_flops + intensity * cost.search_bytes
                )
                assert (float(of_bar["search"]["eflops"]) > 0) == isinstance(method, Quest)

    def test_refuses(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="got 0 models and 1 methods"):
            cost_breakdown([], [Dense()], B200, tmp_path / "bars.png", prompt_len=1, gen_len=1)
        with pytest.raises(ValueError, match="gen_len must be positive"):
            cost_breakdown(QWEN3, [Dense()], B200, tmp_path / "bars.png", prompt_len=1, gen_len=0)
        with pytest.raises(ValueError, match="dense_layers must not exceed the 28 layers"):
            cost_breakdown(
                QWEN3[:1], [TopK(budget_len=8, dense_layers=29)], B200, tmp_path / "bars.png", prompt_len=1, gen_len=1
            )
        assert not list(tmp_path.iterdir())
