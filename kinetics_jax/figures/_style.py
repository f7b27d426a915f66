"""One look for all figures, and the only place that writes files: a PNG (an SVG if wanted) and the CSV it came from."""

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, Formatter, LogFormatterSciNotation, LogLocator, NullFormatter, NullLocator

from kinetics_jax.cost import Combine
from kinetics_jax.scaling import Allocation

# Dark to light, in the order of model size: read correctly with any colour vision, and in grey.
_SIZE_COLORS = ("#440154", "#3b528b", "#21918c", "#5ec962", "#c9b412", "#8c5a13")
_SIZE_MARKERS = ("o", "s", "^", "D", "v", "P")

# Okabe and Ito's palette: distinct under the three common colour deficiencies.
METHOD_STYLES: Mapping[str, tuple[str, str, str]] = {
    "dense": ("dense", "#000000", "o"),
    "topk": ("oracle top-k", "#0072B2", "s"),
    "block_topk": ("block top-k", "#D55E00", "^"),
    "quest": ("Quest", "#CC79A7", "v"),
    "local": ("local window", "#009E73", "D"),
}
# Accuracy by which a new leader must be better: less is noise, and equal models would take turns.
BAND_MARGIN = 0.01
# Accuracy below which a curve is on the floor: the axis of costs starts where the first one leaves it.
WORTH_DRAWING = 0.01

_RC: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "figure.dpi": 160,
    "savefig.dpi": 160,
    "svg.hashsalt": "kinetics",  # else the same picture gets other names inside at every run
}


class CannotWriteError(ValueError):
    """Say that a figure could be drawn and not be written: no room, no right, no folder."""


def size_styles(models: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return (colour, marker) by model, in the order given: smallest first."""
    if len(models) > len(_SIZE_COLORS):
        raise ValueError(f"a figure shows at most {len(_SIZE_COLORS)} models; got {len(models)}. Draw a part of them.")
    return {model: (_SIZE_COLORS[rank], _SIZE_MARKERS[rank]) for rank, model in enumerate(models)}


def is_light(color: str) -> bool:
    """Tell whether black text reads better than white on a colour."""
    red, green, blue = to_rgb(color)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.45


def ink(color: str) -> tuple[float, float, float]:
    """Return the colour for text on white: a light one darkened."""
    red, green, blue = to_rgb(color)
    factor = 0.7 if is_light(color) else 1.0
    return factor * red, factor * green, factor * blue


def short_names(models: Iterable[str]) -> dict[str, str]:
    """Return each model's name without what all names share: Qwen3-8B -> 8B."""
    names = list(models)
    families = {name.rpartition("-")[0] for name in names}
    return {name: name.rpartition("-")[2] if len(families) == 1 else name for name in names}


@contextmanager
def house_style() -> Iterator[None]:
    """Draw inside with the shared settings; the caller's matplotlib settings are untouched."""
    with mpl.rc_context(_RC):
        yield


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure [inches] on a canvas that needs no display."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(
    figure: Figure, rows: Sequence[Mapping[str, Any]], path: str | Path, *, svg: bool = False
) -> tuple[Path, Path]:
    """Write the picture and its data beside each other: written whole under another name, then renamed.

    Args:
        figure: The picture.
        rows: Its data, one mapping a line; the keys of the first are the columns.
        path: Where the PNG goes; the CSV gets the same name. Missing folders are made.
        svg: Whether an SVG goes beside them.

    Returns:
        The paths of the PNG and the CSV.

    Raises:
        ValueError: If `path` does not end in .png.
        CannotWriteError: If its folder cannot be written.
    """
    png = Path(path)
    if png.suffix != ".png":
        raise ValueError(f"a figure's path must end in .png (its data goes to the .csv beside); got {png.name!r}")
    table = png.with_suffix(".csv")
    pictures = [png, *([png.with_suffix(".svg")] if svg else [])]
    parts = {target: target.with_name(f".{target.name}.part") for target in (table, *pictures)}
    try:
        png.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotWriteError(f"cannot make the folder {png.parent}: {error.strerror}. Choose another one.") from error
    try:
        with parts[table].open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else [])
            writer.writeheader()
            writer.writerows(rows)
        for picture in pictures:
            kind = picture.suffix.removeprefix(".")
            figure.savefig(parts[picture], format=kind, metadata={"Date": None} if kind == "svg" else None)
        for target, part in parts.items():
            part.replace(target)
    except OSError as error:
        raise CannotWriteError(
            f"cannot write {png}: {error.strerror}. Choose a folder that you may write to."
        ) from error
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)
    return png, table


def curve_rows(curve: Allocation, head: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the CSV rows of one curve, a row a cap, each behind the columns of `head`."""
    low, high = curve.interval()
    columns = {
        f"cap_{curve.price}": curve.budgets,
        f"spent_{curve.price}": curve.spent,
        "accuracy": curve.accuracy,
        "accuracy_low": low,
        "accuracy_high": high,
        "naive_accuracy": curve.naive_accuracy,
        "naive_bias": curve.bias,
        **{f"mean_{what}": curve.mean_choice(what) for what in ("gen_len", "num_trials", "budget_len")},
    }
    values = zip(*(np.asarray(column).tolist() for column in columns.values()), strict=True)
    return [{**head, **dict(zip(columns, map(finite_or_blank, row), strict=True))} for row in values]


def price_unit(price: str, combine: Combine) -> str:
    """Return the unit of a price, with how compute and memory were joined where it is not by adding."""
    if price == "flops":
        return "FLOPs"
    return "eFLOPs" if combine == "add" else "eFLOPs (max)" if combine == "max" else f"eFLOPs ({combine:g}-norm)"


def spent_label(price: str, combine: Combine = "add") -> str:
    """Return the label of the axis that all cost curves share."""
    return f"price of a request, mean of what held-out trials paid [{price_unit(price, combine)}]"


def set_spent_axis(axes: Axes, curves: Iterable[Allocation]) -> None:
    """Make the cost axis logarithmic, from where a curve first solves one in a hundred to a little beyond the last."""
    spent, accuracy = np.concatenate([on_axis(curve, np.asarray(curve.accuracy)) for curve in curves], axis=1)
    solving = accuracy >= WORTH_DRAWING
    axes.set_xscale("log")
    axes.set_xlim(spent[solving if solving.any() else ...].min() / 1.15, spent.max() * 1.15)
    name_sci(axes.xaxis)


def write_counts(axis: Axis) -> None:
    """Write the numbers of a logarithmic axis of counts: powers of two and the halves between."""
    axis.set_major_locator(LogLocator(base=2, subs=(1.0, 1.5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter("{x:g}")


def name_sci(axis: Axis) -> None:
    """Write a logarithmic axis in powers of ten. Call it when the limits stand."""
    name_powers(axis, LogFormatterSciNotation(minor_thresholds=(np.inf, np.inf)))


def name_powers(axis: Axis, formatter: Formatter) -> None:
    """Write a logarithmic axis' powers of ten, and multiples of them where those are too few to read it by.

    Call it when the limits stand.
    """
    low, high = axis.get_view_interval()
    tens = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    axis.set_major_locator(LogLocator())
    if high < 40 * low:
        for multiples in ((1, 2, 5), (1, 1.5, 2, 3, 5, 7), (1, 1.2, 1.4, 1.7, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9)):
            ticks = np.sort(np.outer(tens, multiples).ravel())
            ticks = ticks[(low <= ticks) & (ticks <= high)]
            axis.set_major_locator(FixedLocator(ticks.tolist()))
            if ticks.size >= 2:
                break
    axis.set_major_formatter(formatter)
    axis.set_minor_formatter(NullFormatter())


def write_lens(axis: Axis) -> None:
    """Write the token counts of an axis with base 2 in full, every second power of two."""
    axis.set_major_locator(LogLocator(base=4))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter("{x:,.0f}")


def on_axis(curve: Allocation, *columns: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return spendings, then columns [X], at the caps that are worth comparing (`Allocation.is_serving`)."""
    kept = curve.is_serving
    return np.asarray(curve.spent, dtype=np.float64)[kept], *(np.asarray(column)[kept] for column in columns)


def finite_or_blank(value: float) -> float | str:
    """Return the number for a CSV cell, an empty one for NaN or infinity."""
    return float(value) if abs(value) < float("inf") else ""
