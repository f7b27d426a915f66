"""How good is a fitted accuracy surface? Measured against fitted for every point of the grid, with intervals."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes

from kinetics_jax.scaling import GridPoint
from kinetics_jax.specs import Dense, parse_attention

from ._style import house_style, new_figure, save, short_names

_DENSE = "#000000"


def surface_fit(points: Sequence[GridPoint], path: str | Path, *, svg: bool = False) -> tuple[Path, Path]:
    """Draw measured against fitted accuracy of single trials, a panel a model, a point a (attention, limit).

    On the diagonal the law says what was measured. Bars are 90% intervals of the measurement over problems; the panel's
    title tells the share of points whose interval holds the law's number, and the root of the mean squared distance.
    Points of one model share their trials, so that they leave the diagonal together.

    Args:
        points: Every grid point (`scaling.grid_points`).
        path: Where the PNG goes; the CSV goes beside it.
        svg: Whether an SVG goes beside them.

    Returns:
        The paths of the PNG and the CSV.

    Raises:
        ValueError: If there is no point.

    References:
        PAPER.md section 3 (the grid of lengths and KV budgets).
    """
    if not points:
        raise ValueError("a goodness of fit needs grid points; got none")
    names = short_names(dict.fromkeys(point.model for point in points))
    budgets = sorted({budget for point in points if (budget := _budget(point)) is not None})
    colors = dict(zip(budgets, mpl.colormaps["viridis"](np.linspace(0, 0.9, len(budgets))), strict=True))
    with house_style():
        figure = new_figure(max(5.0, 3.2 * len(names)), 4.3)
        panels = figure.subplots(1, len(names), sharex=True, sharey=True, squeeze=False)[0]
        for axes, (model, name) in zip(panels, names.items(), strict=True):
            of_model = [point for point in points if point.model == model]
            _draw_panel(axes, of_model, colors)
            axes.set_title(f"{name}: {_describe(of_model)}", loc="left", fontsize=9)
            axes.set_xlabel("fitted accuracy of a trial")
        panels[0].set_ylabel("measured (share of right trials, 90%)")
        handles, labels = panels[-1].get_legend_handles_labels()
        figure.legend(handles, labels, title="KV budget [tokens]", loc="outside lower center", ncols=len(labels))
        figure.suptitle("What the law says and what was measured, at every length and KV budget", fontsize=11)
        return save(figure, [asdict(point) for point in points], path, svg=svg)


def _budget(point: GridPoint) -> int | None:
    spec = parse_attention(point.attention)
    return None if isinstance(spec, Dense) else spec.budget_len


def _draw_panel(axes: Axes, points: Sequence[GridPoint], colors: dict[int, np.ndarray]) -> None:
    axes.plot([0, 1], [0, 1], color="#888888", linewidth=1.0, zorder=1)
    for budget in [*colors, None]:
        part = [point for point in points if _budget(point) == budget]
        if not part:
            continue
        fitted, measured, low, high = (
            np.array([getattr(point, name) for point in part]) for name in ("fitted", "measured", "low", "high")
        )
        # A percentile interval may leave the mean by a rounding error.
        error = np.maximum([measured - low, high - measured], 0)
        color = _DENSE if budget is None else colors[budget]
        label = "dense" if budget is None else str(budget)
        axes.errorbar(fitted, measured, yerr=error, color=color, marker="o", ls="none", ms=3, lw=0.9, label=label)
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(-0.03, 1.03)


def _describe(points: Sequence[GridPoint]) -> str:
    inside = np.mean([point.low <= point.fitted <= point.high for point in points])
    distance = np.sqrt(np.mean([(point.fitted - point.measured) ** 2 for point in points]))
    return f"{100 * inside:.0f}% inside, off by {100 * distance:.1f} points"
