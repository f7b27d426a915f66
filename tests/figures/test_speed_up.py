"""The figure of speed-ups: which rows stand beside which, and that the diagonal is what it says."""

import csv
from pathlib import Path

import pytest

from kinetics_jax.figures import ThroughputRow, speed_up, speed_ups


def row(attention: str, rate: float, predicted_s: float | None, **changes: object) -> ThroughputRow:
    fields = {"model": "Qwen3-8B", "context_len": 16384, "batch_size": 8, "device": "H200", **changes}
    return ThroughputRow(attention=attention, tokens_per_s=rate, predicted_s=predicted_s, **fields)


ROWS = (
    row("block_topk:16x64", 900.0, 0.005),
    row("dense", 300.0, 0.02),
    row("block_topk:16x16", 1200.0, 0.004),
    # Nothing to stand beside: another batch, length, device or model, or no prediction.
    row("block_topk:16x64", 950.0, 0.005, batch_size=16),
    row("block_topk:16x64", 950.0, 0.005, context_len=4096),
    row("block_topk:16x64", 950.0, 0.005, device="L4"),
    row("block_topk:16x64", 950.0, 0.005, model="Qwen3-4B"),
    row("quest:16x64", 700.0, None),
    row("dense", 500.0, None, model="Qwen3-0.6B"),
    row("block_topk:16x64", 950.0, 0.005, model="Qwen3-0.6B"),
)


def test_only_equals_stand_beside_each_other():
    found = [(one.attention, one.measured, one.predicted) for one in speed_ups(ROWS)]
    assert found == [("block_topk:16x64", 3.0, 4.0), ("block_topk:16x16", 4.0, 5.0)]


def test_every_pair_is_drawn_and_written(tmp_path: Path):
    more = (row("dense", 100.0, 0.1, context_len=32768), row("block_topk:16x64", 900.0, 0.01, context_len=32768))
    png, table = speed_up((*ROWS, *more), tmp_path / "speed_up.png", svg=True)
    assert png.read_bytes().startswith(b"\x89PNG")
    with table.open(newline="") as file:
        written = list(csv.DictReader(file))
    assert [line["context_len"] for line in written] == ["16384", "16384", "32768"]
    assert [float(line["measured"]) for line in written] == [3.0, 4.0, 9.0]
    picture = (tmp_path / "speed_up.svg").read_text(encoding="utf-8")
    assert "median measured / predicted: 0.80" in picture  # of 0.75, 0.8 and 0.9
    assert "32k" in picture


def test_nothing_to_compare_is_said(tmp_path: Path):
    with pytest.raises(ValueError, match="a sparse and a dense row of one model, length and batch"):
        speed_up(ROWS[2:], tmp_path / "speed_up.png")
