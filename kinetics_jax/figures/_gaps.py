"""Dense against sparse attention at equal spending, with the widest gaps as arrows (PAPER.md Figs. 8, 14, 21, 22)."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from kinetics_jax.cost import Combine
from kinetics_jax.scaling import Allocation, Gap, widest_gap

from ._style import (
    METHOD_STYLES,
    curve_rows,
    house_style,
    new_figure,
    on_axis,
    save,
    set_spent_axis,
    spent_label,
)

_NUM_COLUMNS = 3


def dense_vs_sparse(
    panels: Mapping[str, Mapping[str, Allocation]],
    path: str | Path,
    *,
    arrows: str = "block_topk",
    title: str = "",
    combine: Combine = "add",
    svg: bool = False,
) -> tuple[Path, Path]:
    """Draw accuracy against cost for each attention method, a panel a group, with gap arrows from dense.

    The vertical arrow is the largest gain at equal spending, with its paired 90% interval; the horizontal one the
    largest saving at equal accuracy. Both are read off cross-fitted curves against what held-out trials paid. "Held
    out" is the gain where other problems have chosen the place (`scaling.Gap`). Curves go on as dots below the first
    price that serves half of the requests.

    Args:
        panels: Title (a model, a difficulty, "all models") to allocations by method; each has "dense".
        path: Where the PNG goes; the CSV goes beside it.
        arrows: The method that the arrows lead to.
        title: What was allocated ("Long-CoT"), for the words.
        combine: How eFLOPs were joined, for the words.
        svg: Whether an SVG goes beside them.

    Returns:
        The paths of the PNG and the CSV.

    Raises:
        ValueError: If a panel lacks "dense" or the method of the arrows.

    References:
        PAPER.md section 5, Figs. 8, 14, 21 and 22.
    """
    for panel, curves in panels.items():
        if "dense" not in curves or arrows not in curves:
            raise ValueError(f"panel {panel!r} needs the curves 'dense' and {arrows!r}; got {list(curves)}")
    num_columns = 2 if len(panels) == 4 else min(_NUM_COLUMNS, len(panels))
    num_rows = -(-len(panels) // num_columns)
    every_curve = [curve for curves in panels.values() for curve in curves.values()]
    with house_style():
        figure = new_figure(max(6.0, 3.9 * num_columns), 0.9 + 3.3 * num_rows)
        grid = figure.subplots(num_rows, num_columns, sharex=True, sharey=True, squeeze=False)
        for axes, (panel, curves) in zip(grid.flat, panels.items(), strict=False):
            gap = widest_gap(curves["dense"], curves[arrows])
            for method in _by_mean_accuracy(curves):
                _draw_curve(axes, curves[method], method)
            _draw_arrows(axes, gap, METHOD_STYLES[arrows][1])
            axes.set_title(f"{panel}\n{_describe(gap)}", loc="left", fontsize=9.5)
            set_spent_axis(axes, every_curve)
            axes.set_ylim(0, 1.04)
            axes.legend(loc="best")
            axes.tick_params(labelbottom=True, labelleft=True)
        for axes in list(grid.flat)[len(panels) :]:
            axes.remove()
        what = f"{title}: dense" if title else "Dense"
        name = METHOD_STYLES[arrows][0]
        figure.suptitle(f"{what} against sparse attention; arrows: {name} over dense (cross-fitted)", fontsize=11)
        figure.supxlabel(spent_label(every_curve[0].price, combine), fontsize=10)
        figure.supylabel("accuracy (share of problems)", fontsize=10)
        rows = [
            row
            for panel, curves in panels.items()
            for method, curve in curves.items()
            for row in curve_rows(curve, {"panel": panel, "method": method})
        ]
        return save(figure, rows, path, svg=svg)


def _by_mean_accuracy(curves: Mapping[str, Allocation]) -> list[str]:
    return sorted(curves, key=lambda method: -float(np.mean(curves[method].accuracy)))


def _draw_curve(axes: Axes, curve: Allocation, method: str) -> None:
    label, color, marker = METHOD_STYLES[method]
    spent, accuracy, low, high = on_axis(curve, np.asarray(curve.accuracy), *curve.interval())
    axes.fill_between(spent, low, high, color=color, alpha=0.12, linewidth=0)
    if spent.size:  # below its first point a curve is what serving a part of the requests buys
        below = np.geomspace(spent[0] / 20, spent[0], 40)
        axes.plot(below, curve.accuracy_at(below), color=color, linestyle=":", linewidth=0.9)
    axes.plot(spent, accuracy, color=color, marker=marker, markevery=8, markersize=3, label=label)


def _draw_arrows(axes: Axes, gap: Gap, color: str) -> None:
    line = {"arrowstyle": "-|>", "color": color, "linewidth": 1.8, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 15}
    if gap.gain > 0:
        foot, head = (gap.gain_spent, gap.base_accuracy), (gap.gain_spent, gap.base_accuracy + gap.gain)
        axes.annotate("", xy=head, xytext=foot, arrowprops=line, zorder=5)
    if gap.cost_ratio > 1:
        start, end = (gap.base_cost, gap.ratio_accuracy), (gap.other_cost, gap.ratio_accuracy)
        axes.annotate("", xy=end, xytext=start, arrowprops={**line, "linestyle": "--"}, zorder=5)


def _describe(gap: Gap) -> str:
    """Say in one line what the two arrows show: always readable, wherever the curves run."""
    gain = f"{100 * gap.gain:+.0f} points"
    if np.isfinite(gap.gain_low):  # one problem has no interval
        gain = f"{gain} [{100 * gap.gain_low:+.0f}, {100 * gap.gain_high:+.0f}]"
    gain = f"{gain}, held out {100 * gap.gain_held_out:+.0f}"
    if 100 * gap.gain < 0.5:
        gain = "no gain at any price"
    return f"{gain}; {gap.cost_ratio:.1f}x cheaper" if gap.cost_ratio > 1.05 else f"{gain}; never cheaper"
