"""What looking at the length so far buys: a policy between the best fixed choice and an oracle (PAPER.md section 8)."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from kinetics_jax.cost import Combine
from kinetics_jax.scaling import PolicyValue

from ._style import house_style, name_sci, new_figure, price_unit, save

_NUM_COLUMNS = 3
_FIXED_COLOR, _POLICY_COLOR, _ORACLE_COLOR = "#000000", "#0072B2", "#E69F00"


def adaptive_policy(
    panels: Mapping[str, PolicyValue],
    path: str | Path,
    *,
    title: str = "",
    price: str = "eflops",
    combine: Combine = "add",
    svg: bool = False,
) -> tuple[Path, Path]:
    """Draw the policy's solving rate against what it paid, beside the best fixed choice and the bounds of an oracle.

    The title of a panel has the gain over the best fixed choice at the middle price, with its paired 90% interval.

    Args:
        panels: What `scaling.evaluate_policy` found, by model, smallest first.
        path: Where the PNG goes; the CSV goes beside it.
        title: Which policy, for the words.
        price: The price of the budgets, "eflops" or "flops".
        combine: How eFLOPs were joined, for the words.
        svg: Whether an SVG goes beside them.

    Returns:
        The paths of the PNG and the CSV.

    Raises:
        ValueError: If there is no panel, or a policy was evaluated at no budget that serves every request.

    References:
        PAPER.md section 8 (adaptive N and B from the length seen so far).
    """
    if not panels:
        raise ValueError("a figure of a policy needs the values of at least one model; got none")
    idle = [name for name, value in panels.items() if not (value.served >= 1).any()]
    if idle:
        raise ValueError(f"no budget pays the first trial of every request for {', '.join(idle)}. Raise the budgets.")
    num_columns = 2 if len(panels) == 4 else min(_NUM_COLUMNS, len(panels))
    num_rows = -(-len(panels) // num_columns)
    with house_style():
        figure = new_figure(max(6.6, 3.6 * num_columns), 1.4 + 2.9 * num_rows)
        grid = figure.subplots(num_rows, num_columns, sharey=True, squeeze=False)
        for axes, (name, value) in zip(grid.flat, panels.items(), strict=False):
            _draw_panel(axes, value)
            axes.set_title(f"{name}\n{_describe(value)}", loc="left", fontsize=9.5)
        for axes in list(grid.flat)[len(panels) :]:
            axes.remove()
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
        figure.suptitle(
            f"Adding trials by the length of the first{f': {title}' if title else ''}\n"
            "points: over the best fixed choice at the middle price, 90% interval",
            fontsize=11,
        )
        solved = np.concatenate([value.accuracy[value.served >= 1] for value in panels.values()])
        grid[0, 0].set_ylim(max(0.0, np.floor(10 * solved.min()) / 10 - 0.1), 1.02)
        for axes in grid[:, 0]:
            axes.set_ylabel("solving rate\n(share of problems)")
        for axes in list(grid.flat)[: len(panels)][-num_columns:]:
            axes.set_xlabel(f"price of a request, mean [{price_unit(price, combine)}]")
        return save(figure, [row for name, value in panels.items() for row in _rows(name, value, price)], path, svg=svg)


def _draw_panel(axes: Axes, value: PolicyValue) -> None:
    whole = value.served >= 1
    spent = value.spent[whole]
    axes.fill_between(
        spent,
        value.oracle_low[whole],
        value.oracle_high[whole],
        color=_ORACLE_COLOR,
        alpha=0.3,
        linewidth=0,
        label="an oracle by problem: at least, at most",
    )
    axes.plot(spent, value.fixed_accuracy[whole], color=_FIXED_COLOR, linestyle="--", label="best fixed choice")
    axes.plot(spent, value.accuracy[whole], color=_POLICY_COLOR, marker="o", markevery=4, label="policy")
    axes.set_xscale("log")
    name_sci(axes.xaxis)
    axes.tick_params(labelleft=True)


def _describe(value: PolicyValue) -> str:
    """Say what the policy gains at the middle price: a place that the data has not chosen."""
    low, high = value.regret_interval()
    whole = np.flatnonzero(value.served >= 1)
    place = int(whole[len(whole) // 2])
    has_interval = np.isfinite(low[place])  # one problem has none
    ends = f" [{-100 * high[place]:+.1f}, {-100 * low[place]:+.1f}]" if has_interval else ""
    return f"{-100 * value.regret_to_fixed[place]:+.1f} points{ends} at {value.spent[place]:.1e}"


def _rows(name: str, value: PolicyValue, price: str) -> list[dict[str, object]]:
    low, high = value.regret_interval()
    columns = {
        f"budget_{price}": value.budgets,
        f"spent_{price}": value.spent,
        "served": value.served,
        "accuracy": value.accuracy,
        "fixed_accuracy": value.fixed_accuracy,
        "regret_to_fixed": value.regret_to_fixed,
        "regret_to_fixed_low": low,
        "regret_to_fixed_high": high,
        "oracle_low": value.oracle_low,
        "oracle_high": value.oracle_high,
    }
    values = zip(*(np.asarray(column).tolist() for column in columns.values()), strict=True)
    return [{"panel": name, **dict(zip(columns, row, strict=True))} for row in values]
