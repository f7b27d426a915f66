"""What a larger budget is best spent on, without a grid, and what one more percent of it is worth."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kinetics_jax.scaling import GridOptimum, Optimum

from ._style import (
    finite_or_blank,
    house_style,
    name_sci,
    new_figure,
    price_unit,
    save,
    short_names,
    size_styles,
)

_SETTINGS = {"num_tokens": "tokens allowed\n[trials x limit]", "budget_len": "KV budget\n[tokens a step]"}
_TIGHT = 1e-3


def optimum_with_cost(
    optima: Mapping[str, Optimum],
    path: str | Path,
    *,
    grid: Mapping[str, GridOptimum] | None = None,
    title: str = "",
    svg: bool = False,
) -> tuple[Path, Path]:
    """Draw the continuous optimum against cost, a curve a model: accuracy, tokens, KV budget and shadow price.

    Dots are the best of a grid on the same surface. Curves end where more money buys nothing. The shadow price, d
    accuracy / d log cost, is drawn as the points that a doubling buys; a corner is a limit that becomes tight.

    Args:
        optima: Optima of one model each, at rising budgets [X] (`scaling.optimal_allocation`), smallest model first;
            NaN where nothing is affordable.
        path: Where the PNG goes; the CSV goes beside it.
        grid: The best of a grid at the same budgets, by model (`scaling.grid_optimum`).
        title: What was allocated, for the words.
        svg: Whether an SVG goes beside them.

    Returns:
        The paths of the PNG and the CSV.

    Raises:
        ValueError: If nothing is affordable at any budget.

    References:
        PAPER.md section 5, Figs. 7 and 23 (the same on a grid); section 3.
    """
    if not any(np.isfinite(np.asarray(optimum.accuracy)).any() for optimum in optima.values()):
        raise ValueError("no budget pays for any setting: there is no optimum to draw. Raise the budgets.")
    styles, names = size_styles(list(optima)), short_names(optima)
    with house_style():
        figure = new_figure(7.4, 8.4)
        top, *middle, bottom = figure.subplots(4, 1, sharex=True, height_ratios=(1.5, 1, 1, 1))
        for model, optimum in reversed(list(optima.items())):
            color, marker = styles[model]
            cost, accuracy, shadow, is_spent = _columns(optimum)
            top.plot(cost, accuracy, color=color, label=names[model])
            for axes, what in zip(middle, _SETTINGS, strict=True):
                axes.plot(cost, np.asarray(getattr(optimum.setting, what)), color=color)
            bottom.plot(cost[is_spent], 100 * np.log(2) * shadow[is_spent], color=color)
            if grid and model in grid:
                best = grid[model]
                dots = {"color": color, "marker": marker, "linestyle": "none", "markersize": 3.5, "alpha": 0.6}
                top.plot(cost, np.where(best.cost > 0, best.accuracy, np.nan), **dots)
                for axes, what in zip(middle, _SETTINGS, strict=True):
                    axes.plot(cost, getattr(best.setting, what), **dots)
        top.set_ylim(0, 1.04)
        top.set_ylabel("accuracy of the law")
        dots_are = "; dots: best of the grid" if grid else ""
        top.set_title(f"{title}{': ' if title else ''}the best use of a budget{dots_are}", loc="left")
        top.legend(title="model", loc="upper left", bbox_to_anchor=(1.0, 1.0))
        for axes, label in zip(middle, _SETTINGS.values(), strict=True):
            axes.set_yscale("log", base=2)
            axes.yaxis.set_major_formatter("{x:,g}")
            axes.set_ylabel(label)
        bottom.set_ylabel("shadow price\n[points a doubling]")
        bottom.set_ylim(bottom=0)
        bottom.set_xscale("log")
        name_sci(bottom.xaxis)
        bottom.set_xlabel(f"price of a request [{price_unit('eflops', 'add')}]")
        return save(figure, [row for model in optima for row in _rows(model, optima[model], grid)], path, svg=svg)


def _columns(optimum: Optimum) -> tuple[np.ndarray, ...]:
    """Return cost, accuracy, shadow price, and whether the budget limits: beyond, costs repeat."""
    cost, accuracy, shadow = (
        np.asarray(leaf, dtype=float) for leaf in (optimum.cost, optimum.accuracy, optimum.shadow_price)
    )
    slack = np.asarray(optimum.slack)[:, optimum.limits.index("cost")]
    return cost, accuracy, shadow, slack < _TIGHT


def _rows(model: str, optimum: Optimum, grid: Mapping[str, GridOptimum] | None) -> list[dict[str, Any]]:
    cost, accuracy, shadow, is_spent = _columns(optimum)
    names = ("gen_len", "num_trials", "num_tokens", "budget_len", "page_len")
    columns: dict[str, Any] = {
        "spent_eflops": cost,
        "accuracy": accuracy,
        **{name: getattr(optimum.setting, name) for name in names},
        "shadow_price": shadow,
        "is_spent": is_spent.astype(float),
    }
    if grid and model in grid:
        best = grid[model]
        columns |= {"grid_accuracy": best.accuracy, "grid_spent_eflops": best.cost}
        columns |= {f"grid_{name}": getattr(best.setting, name) for name in names}
    values = zip(*(np.broadcast_to(column, cost.shape).tolist() for column in columns.values()), strict=True)
    return [{"model": model, **dict(zip(columns, map(finite_or_blank, row), strict=True))} for row in values]
