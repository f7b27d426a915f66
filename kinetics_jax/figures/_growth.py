"""How the best number of tokens and the best KV budget grow with cost, with power laws (PAPER.md Figs. 7 and 23)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from matplotlib.axes import Axes

from kinetics_jax.cost import Combine
from kinetics_jax.scaling import Allocation, PowerLaw

from ._style import (
    finite_or_blank,
    house_style,
    new_figure,
    on_axis,
    save,
    set_spent_axis,
    short_names,
    size_styles,
    spent_label,
)

GrowthQuantity = Literal["num_tokens", "budget_len"]
"""What grows: trials times limit, or the KV budget."""
_PANELS: Mapping[GrowthQuantity, str] = {
    "num_tokens": "tokens allowed\n[trials x limit, mean]",
    "budget_len": "KV budget chosen\n[tokens a step, mean]",
}


def growth_with_cost(
    curves: Mapping[str, Allocation],
    laws: Mapping[str, Mapping[GrowthQuantity, PowerLaw]],
    path: str | Path,
    *,
    title: str = "",
    combine: Combine = "add",
    svg: bool = False,
) -> tuple[Path, Path]:
    """Draw the tokens and the KV budget chosen against what was paid, a curve a model, with power laws.

    The legends tell by which factor the quantity grows when the price doubles, with its interval. Where the grid of
    candidates ends, points level off and flatten the line.

    Args:
        curves: One allocation a model among sparse candidates, smallest model first.
        laws: What `scaling.choice_power_law` fitted to "num_tokens" and to "budget_len", by model.
        path: Where the PNG goes; the CSV goes beside it.
        title: What was allocated ("Best-of-N, block top-k"), for the words.
        combine: How eFLOPs were joined, for the words.
        svg: Whether an SVG goes beside them.

    Returns:
        The paths of the PNG and the CSV.

    Raises:
        ValueError: If a curve has no laws.

    References:
        PAPER.md section 5, Figs. 7 and 23; section 6 (1.74x tokens and 1.18x budget per doubling).
    """
    lawless = [model for model in curves if set(laws.get(model, ())) < set(_PANELS)]
    if lawless:
        raise ValueError(f"every curve needs a law of {' and of '.join(_PANELS)}; {', '.join(lawless)} lacks one")
    names, styles = short_names(curves), size_styles(list(curves))
    price = next(iter(curves.values())).price
    with house_style():
        figure = new_figure(7.4, 6.0)
        panels = figure.subplots(2, 1, sharex=True)
        for axes, (what, label) in zip(panels, _PANELS.items(), strict=True):
            for model, curve in reversed(list(curves.items())):
                _draw_curve(axes, curve, what, laws[model][what], styles[model], names[model])
            axes.set_ylabel(label)
            axes.set_yscale("log", base=2)
            axes.yaxis.set_major_formatter("{x:,g}")
            axes.legend(title="growth per doubling\nof the price", loc="upper left", bbox_to_anchor=(1.0, 1.03))
        set_spent_axis(panels[0], curves.values())
        panels[-1].set_xlabel(spent_label(price, combine))
        panels[0].set_title(
            f"{title}{': ' if title else ''}what a larger budget is spent on\n"
            f"lines: least squares; brackets: {100 * _level(laws):.0f}% interval over problems",
            loc="left",
        )
        rows = [row for model in curves for row in _rows(model, curves[model], laws[model])]
        return save(figure, rows, path, svg=svg)


def _level(laws: Mapping[str, Mapping[GrowthQuantity, PowerLaw]]) -> float:
    return next(law.level for by_quantity in laws.values() for law in by_quantity.values())


def _draw_curve(
    axes: Axes, curve: Allocation, what: GrowthQuantity, law: PowerLaw, style: tuple[str, str], name: str
) -> None:
    color, marker = style
    spent, values = on_axis(curve, curve.mean_choice(what))
    axes.plot(spent, values, color=color, marker=marker, markersize=3.5, linestyle="none", alpha=0.6)
    label = f"{name}: {law.factor_per_doubling:.2f}x [{law.factor_low:.2f}, {law.factor_high:.2f}]"
    axes.plot(spent[[0, -1]], law(spent[[0, -1]]), color=color, linewidth=1.4, label=label)


def _rows(model: str, curve: Allocation, laws: Mapping[GrowthQuantity, PowerLaw]) -> list[dict[str, Any]]:
    columns = {
        f"spent_{curve.price}": on_axis(curve)[0],
        **{f"mean_{what}": on_axis(curve, curve.mean_choice(what))[1] for what in _PANELS},
    }
    fits = {
        f"{what}_{name}": finite_or_blank(getattr(law, name))
        for what, law in laws.items()
        for name in ("exponent", "exponent_low", "exponent_high", "factor_per_doubling")
    }
    values = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [{"model": model, **dict(zip(columns, map(finite_or_blank, row), strict=True)), **fits} for row in values]
