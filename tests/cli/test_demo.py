"""`kinetics demo`: its arithmetic on made-up comparisons, and its refusals. CI runs the whole of it."""

import math
from pathlib import Path

import pytest

from kinetics_jax.cli._study import law_bands
from kinetics_jax.scaling import LawComparison


def comparison(accuracy: float, by_flops: str | None, by_eflops: str | None, ratio: float = 1.0) -> LawComparison:
    return LawComparison(
        accuracy=accuracy,
        flops_model=by_flops,
        flops_model_eflops=ratio if by_flops else math.inf,
        eflops_model=by_eflops,
        eflops_model_eflops=1.0 if by_eflops else math.inf,
    )


def test_law_bands_merge_neighbours_with_equal_picks_and_keep_the_dearest_ratio():
    rows = [
        comparison(0.1, "small", "large", 1.5),
        comparison(0.2, "small", "large", 2.0),
        comparison(0.3, "large", "large"),
        comparison(0.4, "small", "large", 1.2),
        comparison(0.5, None, None),
    ]
    bands = law_bands(rows)
    picks = [(band.accuracy_from, band.accuracy_to, band.flops_model, band.eflops_model) for band in bands]
    assert picks == [(0.1, 0.2, "small", "large"), (0.3, 0.3, "large", "large"), (0.4, 0.4, "small", "large")]
    assert [band.cost_ratio for band in bands] == [2.0, 1.0, 1.2]


def test_law_bands_of_nothing_reached_is_empty():
    assert law_bands([comparison(0.9, None, None)]) == []


def test_an_unknown_chip_is_refused_before_anything_is_written(kinetics, tmp_path: Path):
    finished = kinetics("demo", "--hardware", "H1", "--out", tmp_path / "demo")
    assert finished.code == 2
    assert "unknown hardware 'H1'" in finished.err
    assert "PAPER_B200" in finished.err
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize("below", ["", "deeper"])
def test_an_output_folder_that_cannot_be_made_is_one_sentence(kinetics, tmp_path: Path, below: str):
    (tmp_path / "file").write_text("kept")
    finished = kinetics("demo", "--quick", "--out", tmp_path / "file" / below)
    assert finished.code == 2
    assert "Traceback" not in finished.err
    assert str(tmp_path / "file") in finished.err.replace("\n", "")
    assert (tmp_path / "file").read_text() == "kept"
