"""Lines of equal accuracy and lines of equal cost: where they touch, a budget is spent best."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes

from kinetics_jax.scaling import Bounds, Optimum, Price, Setting, Surface

from ._style import finite_or_blank, house_style, new_figure, save, write_counts

_NUM_PLACES = 121
_LEVELS = np.array([0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99])
_COST, _ACCURACY = "#C24A00", "#3b528b"
_LABELS = {
    "gen_len": "length limit [tokens]",
    "num_trials": "trials",
    "budget_len": "KV budget [tokens a step]",
    "page_len": "page [tokens]",
}


def tangency(
    surface: Surface,
    price: Price,
    optima: Optimum,
    path: str | Path,
    *,
    bounds: Bounds,
    title: str = "",
    svg: bool = False,
) -> tuple[Path, Path]:
    """Draw accuracy and cost over the two variables that are free, with the optimum of each budget and its path.

    At an inner optimum the line of equal cost touches a line of equal accuracy: a percent more of either variable buys
    accuracy in proportion to what it costs. At the edge of the box it need not.

    Args:
        surface: The law.
        price: The price.
        optima: Its optima at some budgets, [X] (`scaling.optimal_allocation`).
        path: Where the PNG goes; the CSV goes beside it.
        bounds: The box of the optima; two variables are free.
        title: What is drawn, for the words.
        svg: Whether an SVG goes beside them.

    Returns:
        The paths of the PNG and the CSV.

    Raises:
        ValueError: If not two variables are free.

    References:
        PAPER.md section 5, Figs. 5b and 5c (lines of equal cost only).
    """
    free = bounds.free
    if len(free) != 2:
        raise ValueError(f"contours need two free variables; got {', '.join(free) or 'none'}. Hold the others fixed.")
    chosen = {name: np.asarray(getattr(optima.setting, name), dtype=float) for name in free}
    across, up = (_places(*bounds.ends(name), float(np.nanmax(chosen[name]))) for name in free)
    at = dict(zip(free, np.meshgrid(across, up, indexing="xy"), strict=True))
    fixed = {name: getattr(bounds, name) for name in _LABELS if name not in free}
    accuracy, cost = _evaluate(surface, price, at, fixed)
    with house_style():
        figure = new_figure(7.0, 5.4)
        axes = figure.subplots()
        levels = _LEVELS[(accuracy.min() < _LEVELS) & (accuracy.max() > _LEVELS)]
        if levels.size:
            lines = axes.contour(across, up, accuracy, levels=levels, colors=_ACCURACY, linewidths=1.0)
            axes.clabel(lines, fmt="%g", fontsize=8)
        _draw_costs(axes, across, up, cost, optima)
        path_look = {"color": "#000000", "linewidth": 1.0, "linestyle": "--", "marker": "o"}
        axes.plot(*chosen.values(), label="optimum\n(eFLOPs: accuracy)", clip_on=False, **path_look)
        axes.plot([], [], color=_ACCURACY, linewidth=1.0, label="equal accuracy")
        axes.plot([], [], color=_COST, linewidth=1.8, label="equal cost")
        middle = np.sqrt(across[0] * across[-1])
        for x, y, paid, right in zip(*chosen.values(), np.ravel(optima.cost), np.ravel(optima.accuracy), strict=True):
            _write_optimum(axes, x, y, f"{float(paid):.1e}:\n{float(right):.2f}", is_left=bool(x < middle))
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        write_counts(axes.xaxis)
        write_counts(axes.yaxis)
        axes.set_xlabel(_LABELS[free[0]])
        axes.set_ylabel(_LABELS[free[1]])
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        axes.set_title(
            f"{title}{': ' if title else ''}where lines of equal cost touch lines of equal accuracy", loc="left"
        )
        return save(figure, _rows(at, accuracy, cost, optima, free), path, svg=svg)


def _places(low: Any, high: Any, largest: float) -> np.ndarray:
    """Return places along an axis; without an upper bound a little beyond the largest optimum."""
    return np.geomspace(float(low), 1.3 * largest if high is None else float(high), _NUM_PLACES)


def _evaluate(
    surface: Surface, price: Price, at: dict[str, np.ndarray], fixed: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    def one(free: dict[str, Any]) -> tuple[Any, Any]:
        setting = Setting(**free, **fixed)
        return surface.accuracy(setting), price(setting)

    flat = {name: jnp.asarray(values.ravel(), jnp.zeros(()).dtype) for name, values in at.items()}
    shape = next(iter(at.values())).shape
    accuracy, cost = jax.jit(jax.vmap(one))(flat)
    return np.asarray(accuracy, dtype=float).reshape(shape), np.asarray(cost, dtype=float).reshape(shape)


def _draw_costs(axes: Axes, across: np.ndarray, up: np.ndarray, cost: np.ndarray, optima: Optimum) -> None:
    """Draw the line of equal cost through each optimum."""
    costs = np.unique(np.asarray(optima.cost, dtype=float))
    inside = costs[np.isfinite(costs) & (costs > cost.min()) & (costs < cost.max())]
    if inside.size:
        axes.contour(across, up, cost, levels=inside, colors=_COST, linewidths=1.8)


def _write_optimum(axes: Axes, x: float, y: float, text: str, *, is_left: bool) -> None:
    """Write beside a dot where the path, which rises to the right, does not pass: inside the picture in either half."""
    offset, across, up = ((6, -5), "left", "top") if is_left else ((-6, 5), "right", "bottom")
    ground = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
    look = {"fontsize": 8, "color": _COST, "ha": across, "va": up, "bbox": ground}
    axes.annotate(text, (x, y), xytext=offset, textcoords="offset points", **look)


def _rows(
    at: dict[str, np.ndarray], accuracy: np.ndarray, cost: np.ndarray, optima: Optimum, free: tuple[str, ...]
) -> list[dict[str, Any]]:
    thin = (slice(None, None, 10),) * 2  # a tenth of the lines in each direction says as much
    columns = [*(at[name][thin].ravel() for name in free), accuracy[thin].ravel(), cost[thin].ravel()]
    best = [np.asarray(getattr(optima.setting, name)) for name in free]
    best += [np.asarray(optima.accuracy), np.asarray(optima.cost)]
    rows = []
    for kind, group in (("grid", columns), ("optimum", best)):
        for values in zip(*(np.ravel(column).tolist() for column in group), strict=True):
            numbers = dict(zip((*free, "accuracy", "eflops"), map(finite_or_blank, values), strict=True))
            rows.append({"kind": kind, **numbers})
    return rows
