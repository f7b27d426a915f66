"""Sparse methods compared at equal KV budget, a panel a model, with dense as the line to reach (PAPER.md Fig. 9)."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from kinetics_jax.scaling import MethodPoint

from ._style import METHOD_STYLES, house_style, new_figure, save

# Colour, marker and line of block top-k by rising page length, where it was run with several.
_PAGE_STYLES = (("#D55E00", "^", "-"), ("#E69F00", "v", "--"), ("#CC79A7", "P", ":"))


def methods_compared(points: Sequence[MethodPoint], path: str | Path, *, svg: bool = False) -> tuple[Path, Path]:
    """Draw accuracy against KV budget for each attention method and page length, a panel a model, dense as a line.

    Args:
        points: One point a (model, attention) (`scaling.accuracy_by_budget`), smallest model first.
        path: Where the PNG goes; the CSV goes beside it.
        svg: Whether an SVG goes beside them.

    Returns:
        The paths of the PNG and the CSV.

    Raises:
        ValueError: If there is no sparse point.

    References:
        PAPER.md section 5, Fig. 9.
    """
    if all(point.budget_len is None for point in points):
        raise ValueError("a comparison of methods needs points with a KV budget; got dense ones only")
    models = list(dict.fromkeys(point.model for point in points))
    with house_style():
        figure = new_figure(max(5.0, 2.9 * len(models)), 4.2)
        panels = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
        page_lens = {
            method: sorted({p.page_len for p in points if p.method == method and p.page_len is not None})
            for method in METHOD_STYLES
        }
        for axes, model in zip(panels, models, strict=True):
            _draw_panel(axes, [point for point in points if point.model == model], page_lens)
            axes.set_title(model, loc="left")
            axes.set_xlabel("KV budget [tokens a step]")
        panels[0].set_ylabel("accuracy at full length\n(share of trials, 90% interval)")
        # One legend, in the order of the curves of the best model, the last panel; then what only others have.
        legend: dict[str, Any] = {}
        for axes in reversed(panels):
            for handle, text in zip(*axes.get_legend_handles_labels(), strict=True):
                legend.setdefault(text, handle)
        figure.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=len(legend))
        figure.suptitle("Accuracy that each attention method keeps at a KV budget", fontsize=11)
        return save(figure, [asdict(point) for point in points], path, svg=svg)


def _draw_panel(axes: Axes, points: list[MethodPoint], page_lens: Mapping[str, Sequence[int]]) -> None:
    curves: dict[tuple[str, int | None, str], list[MethodPoint]] = {}
    for point in sorted(points, key=lambda point: point.budget_len or 0):
        curves.setdefault((point.method, point.page_len, point.options), []).append(point)
    mean = {name: np.mean([point.accuracy for point in curve]) for name, curve in curves.items()}
    for method, page_len, options in sorted(curves, key=lambda name: (name[0] != "dense", -mean[name])):
        curve = curves[method, page_len, options]
        label, color, marker = METHOD_STYLES[method]
        if method == "dense":
            axes.axhspan(curve[0].low, curve[0].high, color=color, alpha=0.1, linewidth=0)
            axes.axhline(curve[0].accuracy, color=color, linestyle="--", label=label)
            continue
        line = "-"
        if page_len is not None and len(page_lens[method]) > 1:
            look = _PAGE_STYLES[page_lens[method].index(page_len) % len(_PAGE_STYLES)]
            color, marker, line = look if method == "block_topk" else (color, marker, look[2])
            label = f"{label}, pages of {page_len}"
        if options:
            label, line = f"{label}, {options}", "-."
        accuracy = np.array([point.accuracy for point in curve])
        # Percentile intervals of a skewed sample may leave the mean by a rounding error only.
        error = np.maximum([accuracy - [p.low for p in curve], [p.high for p in curve] - accuracy], 0)
        budgets = [float(point.budget_len or 0) for point in curve]
        axes.errorbar(
            budgets, accuracy, yerr=error, color=color, marker=marker, ls=line, label=label, capsize=2, lw=1.5
        )
    # Powers of two: budgets between them would overlap.
    ticks = sorted({point.budget_len for point in points if point.budget_len and point.budget_len.bit_count() == 1})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(0, 1.04)
