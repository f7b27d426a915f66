"""The figure of throughput: rows of whole models are read and drawn, rows of kernels never."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from kinetics_jax.figures import ThroughputRow, throughput, throughput_rows

ROOT = Path(__file__).resolve().parents[2]


def row(**changes: Any) -> dict[str, Any]:
    fields = {"model": "Qwen3-8B", "attention": "dense", "context_len": 4096, "batch_size": 8, "tokens_per_s": 500.0}
    return {**fields, **changes}


def test_times_of_kernels_are_no_throughput():
    content = json.loads((ROOT / "benchmarks" / "results" / "decode_h100.json").read_text(encoding="utf-8"))
    assert len(content["rows"]) > 8
    assert throughput_rows(content) == []


def test_the_device_stands_in_the_row_or_beside_the_rows():
    rows = throughput_rows({"device": "H200", "rows": [row(), row(device="H100"), {"what": "kernel", "seconds": 1e-4}]})
    assert [one.device for one in rows] == ["H200", "H100"]


def test_the_fastest_batch_is_drawn_and_all_are_written(tmp_path: Path):
    rows = throughput_rows(
        {
            "device": "H200",
            "rows": [
                row(),
                row(batch_size=16, tokens_per_s=700.0),
                row(context_len=8192, tokens_per_s=300.0),
                row(attention="block_topk:16x64", tokens_per_s=900.0),
                row(attention="block_topk:16x64", context_len=8192, tokens_per_s=850.0),
                row(attention="block_topk:16x16", context_len=8192, tokens_per_s=950.0),
                row(model="Qwen3-32B", context_len=8192, tokens_per_s=90.0),
            ],
        }
    )
    png, table = throughput(rows, tmp_path / "throughput.png", svg=True)
    assert png.read_bytes().startswith(b"\x89PNG")
    with table.open(newline="") as file:
        written = list(csv.DictReader(file))
    assert [line["is_drawn"] for line in written] == ["False", *["True"] * 6]
    assert [float(line["tokens_per_s"]) for line in written] == [one.tokens_per_s for one in rows]
    picture = (tmp_path / "throughput.svg").read_text(encoding="utf-8")
    assert "3.2x dense at 8,192" in picture  # 950 / 300; texts are comments beside their outlines


def test_devices_are_not_compared(tmp_path: Path):
    slow, fast = row(device="L4"), row(device="H200", attention="block_topk:16x64", tokens_per_s=5000.0)
    _, table = throughput(throughput_rows({"rows": [slow, fast]}), tmp_path / "throughput.png", svg=True)
    picture = (tmp_path / "throughput.svg").read_text(encoding="utf-8")
    assert "Qwen3-8B, L4" in picture
    assert "Qwen3-8B, H200" in picture
    assert "x dense at" not in picture
    with table.open(newline="") as file:
        assert [line["is_drawn"] for line in csv.DictReader(file)] == ["True", "True"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokens_per_s": 0.0}, "tokens_per_s must be positive and finite; got 0.0"),
        ({"tokens_per_s": float("nan")}, "tokens_per_s must be positive"),
        ({"context_len": -1}, "context_len must be positive"),
        ({"context_len": None}, "context_len must be a whole number; got None for Qwen3-8B"),
        ({"batch_size": 8.5}, "batch_size must be a whole number; got 8.5"),
        ({"predicted_s": 0}, "predicted_s must be positive and finite; got 0.0"),
        ({"predicted_s": None}, "predicted_s must be a number; got None"),
        ({"tokens_per_s": "fast"}, "tokens_per_s must be a number; got 'fast'"),
        ({"attention": "sliding:8"}, "unknown attention method 'sliding'"),
    ],
)
def test_bad_rows_are_refused(changes: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words):
        throughput_rows({"rows": [row(**changes)]})


def test_refusals(tmp_path: Path):
    with pytest.raises(ValueError, match="a list named rows"):
        throughput_rows({"results": []})
    with pytest.raises(ValueError, match="got none"):
        throughput([], tmp_path / "throughput.png")
    assert ThroughputRow(**row(), device="x").method == "dense"
