"""The two laws side by side: the model each picks for an accuracy, and what the wrong pick costs (PAPER.md Fig. 1)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from kinetics_jax.cost import Combine
from kinetics_jax.scaling import Allocation, Band, LawComparison, model_bands

from ._style import (
    BAND_MARGIN,
    finite_or_blank,
    house_style,
    is_light,
    new_figure,
    price_unit,
    save,
    short_names,
    size_styles,
)


def law_bands(
    flops_frontiers: Mapping[str, Allocation],
    eflops_frontiers: Mapping[str, Allocation],
    comparisons: Sequence[LawComparison],
    path: str | Path,
    *,
    combine: Combine = "add",
    svg: bool = False,
) -> tuple[Path, Path]:
    """Draw which model each law picks by accuracy, above the cost ratio of following FLOPs.

    Args:
        flops_frontiers: One allocation a model priced in FLOPs, smallest model first.
        eflops_frontiers: The same priced in eFLOPs.
        comparisons: `scaling.wrong_law_cost` of the two, by rising accuracy.
        path: Where the PNG goes; the CSV goes beside it.
        combine: How the eFLOPs were joined, for the words.
        svg: Whether an SVG goes beside them.

    Returns:
        The paths of the PNG and the CSV.

    Raises:
        ValueError: If there are fewer than two models.

    References:
        PAPER.md section 5, Fig. 1.
    """
    if len(eflops_frontiers) < 2:
        raise ValueError(f"laws choose among models: give two or more; got {list(eflops_frontiers)}")
    names = short_names(eflops_frontiers)
    styles = size_styles(list(eflops_frontiers))
    with house_style():
        figure = new_figure(7.0, 4.6)
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1.3))
        for height, frontiers in ((1.0, flops_frontiers), (0.0, eflops_frontiers)):
            _draw_bar(top, height, model_bands(frontiers, margin=BAND_MARGIN), names, styles)
        unit = price_unit("eflops", combine)
        top.set_yticks([1, 0], ["FLOPs law", f"{unit} law".replace(" (", "\n(")])
        top.set_ylim(-0.5, 1.5)
        top.grid(visible=False)
        top.set_title(
            f"Model that reaches an accuracy at the lowest price (by 1 point)\n{_worst(comparisons)}", loc="left"
        )
        handles = [Patch(color=styles[model][0], label=names[model]) for model in names]
        top.legend(handles=handles, title="model", loc="upper left", bbox_to_anchor=(1.0, 1.05))
        accuracy = np.array([row.accuracy for row in comparisons])
        ratio = np.array([row.cost_ratio for row in comparisons])
        shown = np.where(np.isfinite(ratio), ratio, np.nan)
        bottom.axhline(1, color="#777777", linewidth=1, linestyle="--")
        bottom.fill_between(accuracy, 1, shown, step="mid", color="#D55E00", alpha=0.25, linewidth=0)
        bottom.step(accuracy, shown, where="mid", color="#000000")
        bottom.set_ylim(0.95, max(1.2, 1.05 * np.max(ratio, initial=1.0, where=np.isfinite(ratio))))
        bottom.set_xlim(0, 1)
        bottom.set_ylabel(f"{unit} of the FLOPs law's\nmodel, times the best")
        bottom.set_xlabel("accuracy to reach (share of problems)")
        return save(figure, _rows(comparisons), path, svg=svg)


def _worst(comparisons: Sequence[LawComparison]) -> str:
    """Say in one line what following FLOPs costs at most."""
    if not any(row.cost_ratio < float("inf") for row in comparisons):
        return "no model gets to any of the accuracies compared"
    dearer = [row for row in comparisons if 1 < row.cost_ratio < float("inf")]
    if not dearer:
        return "the two laws never differ in what it costs"
    worst = max(dearer, key=lambda row: row.cost_ratio)
    return f"following FLOPs costs up to {worst.cost_ratio:.2f}x (at an accuracy of {worst.accuracy:.2f})"


def _draw_bar(
    axes: Axes, height: float, bands: Sequence[Band], names: Mapping[str, str], styles: Mapping[str, tuple[str, str]]
) -> None:
    for band in bands:
        width = band.accuracy_to - band.accuracy_from
        axes.barh(height, width, left=band.accuracy_from, height=0.7, color=styles[band.model][0], edgecolor="white")
        if width > 0.018 * (len(names[band.model]) + 1):
            axes.text(
                band.accuracy_from + width / 2,
                height,
                names[band.model],
                color="black" if is_light(styles[band.model][0]) else "white",
                ha="center",
                va="center",
                weight="bold",
            )


def _rows(comparisons: Sequence[LawComparison]) -> list[dict[str, object]]:
    return [
        {
            "accuracy": row.accuracy,
            "flops_law_model": row.flops_model or "",
            "flops_law_eflops": finite_or_blank(row.flops_model_eflops),
            "eflops_law_model": row.eflops_model or "",
            "eflops_law_eflops": finite_or_blank(row.eflops_model_eflops),
            "cost_ratio": finite_or_blank(row.cost_ratio),
        }
        for row in comparisons
    ]
