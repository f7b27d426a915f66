"""Do problems with short thoughts want more trials? A point a problem, a panel a model (PAPER.md Fig. 24)."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from kinetics_jax.scaling import LengthTrials

from ._style import house_style, new_figure, save, short_names, size_styles, write_counts, write_lens

_NUM_COLUMNS = 3


def length_vs_trials(
    panels: Mapping[str, LengthTrials], path: str | Path, *, title: str = "", svg: bool = False
) -> tuple[Path, Path]:
    """Draw each problem's best number of trials against its mean length, with the rank correlation in the title.

    Points that would lie on each other are darker. Larger rings are medians of the number of trials over quarters of
    the problems by length.

    Args:
        panels: What `scaling.length_trials_correlation` found, by model, smallest first.
        path: Where the PNG goes; the CSV goes beside it.
        title: At which cap, for the words.
        svg: Whether an SVG goes beside them.

    Returns:
        The paths of the PNG and the CSV.

    Raises:
        ValueError: If there is no panel.

    References:
        PAPER.md section 5, Fig. 24.
    """
    if not panels:
        raise ValueError("a figure of lengths and trials needs the points of at least one model; got none")
    styles, names = size_styles(list(panels)), short_names(panels)
    num_columns = 2 if len(panels) == 4 else min(_NUM_COLUMNS, len(panels))
    num_rows = -(-len(panels) // num_columns)
    with house_style():
        figure = new_figure(max(6.6, 3.6 * num_columns), 1.0 + 2.8 * num_rows)
        grid = figure.subplots(num_rows, num_columns, sharex=True, sharey=True, squeeze=False)
        for axes, (model, found) in zip(grid.flat, panels.items(), strict=False):
            _draw_panel(axes, found, styles[model])
            low, high = found.interval
            rho = f"rank correlation {found.rho:+.2f} [{low:+.2f}, {high:+.2f}]"
            axes.set_title(
                f"{names[model]}: {rho if np.isfinite(found.rho) else 'one of the two never varies'}", loc="left"
            )
        for axes in list(grid.flat)[len(panels) :]:
            axes.remove()
        figure.suptitle(f"Trials that each problem is best given{f', {title}' if title else ''}", fontsize=11)
        figure.supxlabel("mean length of the problem's trials [tokens]", fontsize=10)
        figure.supylabel("best number of trials\n(ring: median of a quarter of the problems)", fontsize=10)
        rows = [
            {"model": model, "mean_gen_len": length, "num_trials": count, "rho": found.rho}
            for model, found in panels.items()
            for length, count in found.points.tolist()
        ]
        return save(figure, rows, path, svg=svg)


def _draw_panel(axes: Axes, found: LengthTrials, style: tuple[str, str]) -> None:
    color, marker = style
    lens, counts = found.points.T
    axes.plot(lens, counts, color=color, marker=marker, linestyle="none", alpha=0.4, markersize=5)
    quarters = np.array_split(np.argsort(lens), min(4, len(lens)))
    middle = np.array([(np.median(lens[rows]), np.median(counts[rows])) for rows in quarters])
    axes.plot(
        *middle.T, color="#000000", marker="o", markerfacecolor="none", markersize=11, markeredgewidth=1.6, linewidth=1
    )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    write_lens(axes.xaxis)
    write_counts(axes.yaxis)
    axes.tick_params(labelbottom=True, labelleft=True)
