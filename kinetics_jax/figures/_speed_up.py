"""How much faster sparse attention makes a whole model: predicted by the cost model, and measured (PAPER.md Fig. 10).

The paper's own speed-up is one layer's, extrapolated (PAPER.md section 7). Here both numbers are of whole models, and
of batches that fit.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ._style import house_style, new_figure, save, size_styles
from ._throughput import ThroughputRow

_CLOSE = 1.08
"""Ratio of predictions below which two points would share the place of a label."""


@dataclass(frozen=True, kw_only=True)
class SpeedUp:
    """Hold one sparse measurement beside the dense one of the same model, device, length and batch.

    Attributes:
        model: Model name.
        attention: Text form of the sparse attention.
        device: What both ran on.
        context_len: Tokens that each sequence holds [tokens].
        batch_size: Sequences decoded together.
        predicted: Dense time of a step over sparse, by the cost model.
        measured: The same, by the clock.
    """

    model: str
    attention: str
    device: str
    context_len: int
    batch_size: int
    predicted: float
    measured: float


def speed_ups(rows: Sequence[ThroughputRow]) -> list[SpeedUp]:
    """Return every sparse row that has a dense one to stand beside, and predictions for both.

    Args:
        rows: Measurements of whole models (`throughput_rows`).

    Example:
        >>> from functools import partial
        >>> row = partial(ThroughputRow, model="Qwen3-8B", context_len=4096, batch_size=8, device="H200")
        >>> dense = row(attention="dense", tokens_per_s=500.0, predicted_s=0.014)
        >>> [one] = speed_ups([dense, row(attention="block_topk:16x64", tokens_per_s=900.0, predicted_s=0.007)])
        >>> one.measured, one.predicted
        (1.8, 2.0)

    References:
        PAPER.md section 5, Fig. 10.
    """
    dense: dict[tuple[str, str, int, int], ThroughputRow] = {}
    for row in rows:
        if row.method == "dense":
            dense[_place(row)] = row
    found = []
    for row in rows:
        beside = dense.get(_place(row))
        if row.method == "dense" or beside is None or row.predicted_s is None or beside.predicted_s is None:
            continue
        found.append(
            SpeedUp(
                model=row.model,
                attention=row.attention,
                device=row.device,
                context_len=row.context_len,
                batch_size=row.batch_size,
                predicted=beside.predicted_s / row.predicted_s,
                measured=row.tokens_per_s / beside.tokens_per_s,
            )
        )
    return found


def _place(row: ThroughputRow) -> tuple[str, str, int, int]:
    return row.model, row.device, row.context_len, row.batch_size


def speed_up(rows: Sequence[ThroughputRow], path: str | Path, *, svg: bool = False) -> tuple[Path, Path]:
    """Draw measured speed-up over dense against the cost model's, a point a (model, sparse attention, length, batch).

    On the diagonal the model says what the clock says. A point below it loses by sparse attention's own work
    (selection, launches, sampling), which bytes and FLOPs do not show; numbers are contexts in thousands of tokens.

    Args:
        rows: Measurements of whole models, dense and sparse at equal lengths and batches, with predictions.
        path: Where the PNG goes; the CSV goes beside it.
        svg: Whether an SVG goes beside them.

    Returns:
        The paths of the PNG and the CSV.

    Raises:
        ValueError: If no sparse row has a dense one to stand beside.

    References:
        PAPER.md section 5, Fig. 10; errata 11.
    """
    points = speed_ups(rows)
    if not points:
        raise ValueError(
            "a speed-up needs a sparse and a dense row of one model, length and batch, both with predicted_s; "
            "got none. Time both with `kinetics bench decode`."
        )
    styles = size_styles(list(dict.fromkeys(point.model for point in points)))
    with house_style():
        figure = new_figure(6.4, 5.2)
        axes = figure.subplots()
        for model, (color, marker) in styles.items():
            part = [point for point in points if point.model == model]
            across, up = [point.predicted for point in part], [point.measured for point in part]
            axes.plot(across, up, color=color, marker=marker, linestyle="none", markersize=6, label=model)
            for point in part:
                at = {**_label_side(point, points), "textcoords": "offset points", "fontsize": 8, "color": color}
                axes.annotate(f"{point.context_len / 1024:g}k", (point.predicted, point.measured), **at)
        ends = np.array([[point.predicted, point.measured] for point in points])
        low, high = min(1.0, ends.min()) / 1.1, ends.max() * 1.25
        axes.plot([low, high], [low, high], color="#888888", linewidth=1.0, zorder=1, label="as predicted")
        for axis, scale, limits in (
            (axes.xaxis, axes.set_xscale, axes.set_xlim),
            (axes.yaxis, axes.set_yscale, axes.set_ylim),
        ):
            scale("log", base=2)
            limits(low, high)
            axis.set_major_formatter("{x:g}x")
        axes.set_aspect("equal")
        axes.set_xlabel("predicted by the cost model [dense time / sparse time]")
        axes.set_ylabel("measured, whole model")
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        share = np.median(ends[:, 1] / ends[:, 0])
        where = ", ".join(dict.fromkeys(point.device for point in points))
        axes.set_title(
            f"Speed-up over dense attention on {where}\nmedian measured / predicted: {share:.2f}", loc="left"
        )
        return save(figure, [asdict(point) for point in points], path, svg=svg)


def _label_side(point: SpeedUp, points: Sequence[SpeedUp]) -> dict[str, Any]:
    """Return where the label of a point goes: away from its neighbours."""
    others = [other.predicted / point.predicted for other in points if other is not point]
    is_first = not any(1 / _CLOSE < ratio <= 1 for ratio in others)
    is_last = not any(1 < ratio < _CLOSE for ratio in others)
    if is_first:
        return {"xytext": (-5, 4), "ha": "right"}
    return {"xytext": (5, -8), "ha": "left"} if is_last else {"xytext": (0, -13), "ha": "center"}
