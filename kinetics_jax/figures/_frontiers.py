"""Accuracy against cost, one curve a model, with the best model shaded behind (PAPER.md Figs. 3, 4, 6, 12 to 20)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from kinetics_jax.cost import Combine
from kinetics_jax.scaling import Allocation, Band, model_bands

from ._style import (
    BAND_MARGIN,
    curve_rows,
    house_style,
    new_figure,
    on_axis,
    price_unit,
    save,
    set_spent_axis,
    short_names,
    size_styles,
    spent_label,
    write_counts,
)

# Pale and broad: a curve that is the best lies on it, and is seen to.
_ENVELOPE: dict[str, Any] = {"color": "#F0E442", "linewidth": 8, "zorder": 1.5, "solid_capstyle": "butt"}


def long_cot_frontier(
    frontiers: Mapping[str, Allocation], path: str | Path, *, combine: Combine = "add", svg: bool = False
) -> tuple[Path, Path]:
    """Draw Long-CoT accuracy and the best length against what was paid, one curve a model, with bands.

    Curves are cross-fitted, with a 90% bootstrap interval over problems; the largest bias of the naive estimate is
    in the title and the naive curve in the CSV. The cost axis is the held-out price of what was chosen, not the cap.
    A band changes only for a model that is a point better.

    Args:
        frontiers: One allocation a model, smallest model first (`scaling.model_frontiers`).
        path: Where the PNG goes; the CSV goes beside it.
        combine: How eFLOPs were joined, for the words.
        svg: Whether an SVG goes beside them.

    Returns:
        The paths of the PNG and the CSV.

    References:
        PAPER.md section 5, Figs. 3, 4, 12, 15, 17 and 19.
    """
    styles = size_styles(list(frontiers))
    with house_style():
        figure = new_figure(7.0, 6.0)
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(2.2, 1))
        bands = _draw_accuracy(top, frontiers, "Long-CoT", combine)
        top.set_ylabel("accuracy (share of problems)")
        _shade_bands(bottom, bands, styles)
        for model, frontier in frontiers.items():
            color, marker = styles[model]
            lengths = frontier.mean_choice("gen_len")
            bottom.plot(*on_axis(frontier, lengths), color=color, marker=marker, markevery=8)
        bottom.set_yscale("log", base=2)
        bottom.yaxis.set_major_formatter("{x:g}")
        bottom.set_ylabel("length limit chosen\n[tokens, mean]")
        bottom.set_xlabel(spent_label(_price(frontiers), combine))
        return save(figure, _rows(frontiers), path, svg=svg)


def best_of_n_frontier(
    frontiers: Mapping[str, Allocation], path: str | Path, *, combine: Combine = "add", svg: bool = False
) -> tuple[Path, Path]:
    """Draw the Best-of-N solving rate against what was paid, with the envelope, and below the trials it takes.

    The envelope is the best solving rate of any model at a price or less. The lower panel has the number of trials
    chosen, mean over the problems that are served, against the solving rate reached.

    Args:
        frontiers: One allocation a model, smallest model first (`scaling.model_frontiers`).
        path: Where the PNG goes; the CSV goes beside it.
        combine: How eFLOPs were joined, for the words.
        svg: Whether an SVG goes beside them.

    Returns:
        The paths of the PNG and the CSV.

    References:
        PAPER.md section 5, Figs. 6, 13, 16, 18 and 20.
    """
    styles = size_styles(list(frontiers))
    with house_style():
        figure = new_figure(7.0, 6.6)
        top, bottom = figure.subplots(2, 1, height_ratios=(2.0, 1))
        top.plot(*_envelope(list(frontiers.values())), label="envelope", **_ENVELOPE)
        _draw_accuracy(top, frontiers, "Best-of-N", combine)
        top.set_ylabel("solving rate (share of problems)")
        top.set_xlabel(spent_label(_price(frontiers), combine))
        for model, frontier in frontiers.items():
            color, marker = styles[model]
            _, rate, trials = on_axis(frontier, np.asarray(frontier.accuracy), frontier.mean_choice("num_trials"))
            bottom.plot(rate, trials, color=color, marker=marker, markevery=8)
        bottom.set_yscale("log", base=2)
        write_counts(bottom.yaxis)
        bottom.set_xlim(0, 1)
        bottom.set_ylabel("trials chosen\n[mean of problems served]")
        bottom.set_xlabel("solving rate (share of problems)")
        return save(figure, _rows(frontiers), path, svg=svg)


def _draw_accuracy(axes: Axes, frontiers: Mapping[str, Allocation], title: str, combine: Combine) -> tuple[Band, ...]:
    """Draw what both strategies share: curves with intervals, shading, names; return the bands."""
    bands = model_bands(frontiers, margin=BAND_MARGIN)
    names, styles = short_names(frontiers), size_styles(list(frontiers))
    for model in _by_final_accuracy(frontiers):
        _draw_curve(axes, frontiers[model], styles[model], names[model])
    _shade_bands(axes, bands, styles)
    bias = max(float(np.max(frontier.bias)) for frontier in frontiers.values())
    axes.set_title(
        f"{title} priced in {price_unit(_price(frontiers), combine)}; shading: best model by 1 point\n"
        f"cross-fitted, 90% interval; the naive estimate is up to {100 * bias:.1f} points higher",
        loc="left",
    )
    set_spent_axis(axes, frontiers.values())
    _name_bands(axes, bands, names, styles)
    axes.set_ylim(0, 1.08)
    axes.set_yticks(np.linspace(0, 1, 6))
    axes.legend(title="model", loc="upper left", bbox_to_anchor=(1.0, 0.97))
    return bands


def _envelope(frontiers: Sequence[Allocation]) -> tuple[np.ndarray, np.ndarray]:
    """Return the best accuracy of any curve at a spending or less: spendings and accuracies, by rising spending."""
    curves = [on_axis(frontier, np.asarray(frontier.accuracy)) for frontier in frontiers]
    spending = np.unique(np.concatenate([spent for spent, _ in curves]))
    lines = [np.interp(spending, spent, accuracy, left=0.0) for spent, accuracy in curves if spent.size]
    return spending, np.maximum.accumulate(np.max(lines, axis=0))


def _price(frontiers: Mapping[str, Allocation]) -> str:
    return next(iter(frontiers.values())).price


def _rows(frontiers: Mapping[str, Allocation]) -> list[dict[str, object]]:
    return [row for model, frontier in frontiers.items() for row in curve_rows(frontier, {"model": model})]


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
