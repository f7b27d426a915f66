"""Accuracy against cost, one curve a model, with the best model shaded behind (PAPER.md Figs. 3, 4, 6)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes

from kinetics_jax.scaling import Allocation, Band, model_bands

from ._style import (
    BAND_MARGIN,
    PRICE_UNITS,
    curve_rows,
    house_style,
    new_figure,
    on_axis,
    save,
    set_spent_axis,
    short_names,
    size_styles,
    spent_label,
)


def long_cot_frontier(frontiers: Mapping[str, Allocation], path: str | Path) -> tuple[Path, Path]:
    """Draw Long-CoT accuracy and the best length against what was paid, one curve a model, with bands.

    Curves are cross-fitted, with a 90% bootstrap interval over problems; the largest bias of the naive estimate is
    in the title and the naive curve in the CSV. The cost axis is the held-out price of what was chosen, not the cap.
    A band changes only for a model that is a point better.

    Args:
        frontiers: One allocation a model, smallest model first (`scaling.model_frontiers`).
        path: Where the PNG goes; the CSV goes beside it.

    Returns:
        The paths of the PNG and the CSV.

    References:
        PAPER.md section 5, Figs. 3 and 4.
    """
    return _draw(frontiers, path, title="Long-CoT", what="gen_len", what_label="length limit chosen\n[tokens, mean]")


def best_of_n_frontier(frontiers: Mapping[str, Allocation], path: str | Path) -> tuple[Path, Path]:
    """Draw the Best-of-N solving rate and number of trials against what was paid, one curve a model, with bands.

    Args:
        frontiers: One allocation a model, smallest model first (`scaling.model_frontiers`).
        path: Where the PNG goes; the CSV goes beside it.

    Returns:
        The paths of the PNG and the CSV.

    References:
        PAPER.md section 5, Fig. 6.
    """
    return _draw(frontiers, path, title="Best-of-N", what="num_trials", what_label="trials chosen\n[mean]")


def _draw(
    frontiers: Mapping[str, Allocation],
    path: str | Path,
    *,
    title: str,
    what: Literal["gen_len", "num_trials"],
    what_label: str,
) -> tuple[Path, Path]:
    bands = model_bands(frontiers, margin=BAND_MARGIN)
    price = next(iter(frontiers.values())).price
    names = short_names(frontiers)
    styles = size_styles(list(frontiers))
    with house_style():
        figure = new_figure(7.0, 6.0)
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(2.2, 1))
        for model in _by_final_accuracy(frontiers):
            _draw_curve(top, frontiers[model], styles[model], names[model])
        for model, frontier in frontiers.items():
            color, marker = styles[model]
            bottom.plot(*on_axis(frontier, frontier.mean_choice(what)), color=color, marker=marker, markevery=8)
        for axes in (top, bottom):
            _shade_bands(axes, bands, styles)
        bias = max(float(np.max(frontier.bias)) for frontier in frontiers.values())
        top.set_title(
            f"{title} priced in {PRICE_UNITS[price]}; shading: best model by 1 point\n"
            f"cross-fitted, 90% interval; the naive estimate is up to {100 * bias:.1f} points higher",
            loc="left",
        )
        set_spent_axis(top, frontiers.values())
        _name_bands(top, bands, names, styles)
        top.set_ylim(0, 1.08)
        top.set_yticks(np.linspace(0, 1, 6))
        top.set_ylabel("accuracy (share of problems)" if what == "gen_len" else "solving rate (share of problems)")
        top.legend(title="model", loc="upper left", bbox_to_anchor=(1.0, 0.97))
        bottom.set_yscale("log", base=2)
        bottom.yaxis.set_major_formatter("{x:g}")
        bottom.set_ylabel(what_label)
        bottom.set_xlabel(spent_label(price))
        rows = [row for model, frontier in frontiers.items() for row in curve_rows(frontier, {"model": model})]
        return save(figure, rows, path)


def _by_final_accuracy(frontiers: Mapping[str, Allocation]) -> list[str]:
    """Return the models from the highest curve to the lowest, the order in which a legend is read."""
    return sorted(frontiers, key=lambda model: -float(frontiers[model].accuracy[-1]))


def _draw_curve(axes: Axes, frontier: Allocation, style: tuple[str, str], label: str) -> None:
    color, marker = style
    spent, accuracy, low, high = on_axis(frontier, np.asarray(frontier.accuracy), *frontier.interval())
    axes.fill_between(spent, low, high, color=color, alpha=0.15, linewidth=0)
    axes.plot(spent, accuracy, color=color, marker=marker, markevery=8, label=label)


def _shade_bands(axes: Axes, bands: tuple[Band, ...], styles: Mapping[str, tuple[str, str]]) -> None:
    for band in bands:
        axes.axvspan(band.cost_from, band.cost_to, color=styles[band.model][0], alpha=0.1, linewidth=0, zorder=0)


def _name_bands(
    axes: Axes, bands: tuple[Band, ...], names: Mapping[str, str], styles: Mapping[str, tuple[str, str]]
) -> None:
    """Write the model above its band where the band is wide enough for the word; the legend serves the others."""
    left, right = axes.get_xlim()
    for band in bands:
        start, end = max(band.cost_from, left), min(band.cost_to, right)
        if end > start and np.log(end / start) > 0.015 * (len(names[band.model]) + 2) * np.log(right / left):
            centre = float(np.sqrt(start * end))
            axes.text(centre, 1.03, names[band.model], color=styles[band.model][0], ha="center", weight="bold")
