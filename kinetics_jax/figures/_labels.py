"""Names beside points where nothing else stands. Used by the figures that name every point."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patheffects import withStroke
from matplotlib.transforms import BboxBase

from ._style import ink

_HALO = withStroke(linewidth=2.5, foreground="white")  # a line may pass behind a name
_DIRECTIONS = ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, 1), (1, -1), (-1, -1))


Box = tuple[float, float, float, float]  # left, low, right, high [pixels]


@dataclass(frozen=True, kw_only=True)
class PointLabel:
    """Hold a name for a point.

    Attributes:
        x: Where the point is, in data units.
        y: The same.
        text: What to write.
        color: Its colour.
        marker_size: Width of the point's marker [points].
    """

    x: float
    y: float
    text: str
    color: str
    marker_size: float = 7.0


def place_labels(
    axes: Axes,
    labels: Sequence[PointLabel],
    *,
    lines: Sequence[np.ndarray] = (),
    fontsize: float = 8.0,
) -> int:
    """Write each name at the first free side of its point; a name without room is left to the legend and the CSV.

    Call it last: limits, legends and titles must stand. The layout is settled here and does not move afterwards.

    Args:
        axes: Where to write.
        labels: Names, the most important first. All their points are kept free of names.
        lines: Curves [points, 2] in data units that names should not cross, if they can help it.
        fontsize: Size of the names [points].

    Returns:
        How many names found room.
    """
    figure = axes.figure.get_figure(root=True)
    assert figure is not None
    assert isinstance(figure.canvas, FigureCanvasAgg), "sizes in pixels are known on the canvas of new_figure only"
    figure.canvas.draw()
    figure.set_layout_engine("none")
    renderer = figure.canvas.get_renderer()
    points = axes.transData.transform(np.reshape([(label.x, label.y) for label in labels], (-1, 2))).tolist()
    halves = [(label.marker_size / 2 + 1.5) * figure.dpi / 72 for label in labels]
    taken = [(x - half, y - half, x + half, y + half) for (x, y), half in zip(points, halves, strict=True)]
    legend = axes.get_legend()
    written = [*axes.texts, *([legend] if legend else [])]
    taken += [_box_of(artist.get_window_extent(renderer)) for artist in written]
    crossed = np.concatenate([_dots(axes.transData.transform(line)) for line in lines] or [np.zeros((0, 2))])
    inside = _box_of(axes.get_window_extent(renderer))
    num_placed = 0
    for index, (label, (x, y), half) in enumerate(zip(labels, points, halves, strict=True)):
        others = taken[:index] + taken[index + 1 :]  # a diagonal name may touch the corner of its own marker
        text = axes.text(
            0, 0, label.text, color=ink(label.color), fontsize=fontsize, ha="center", va="center", zorder=6
        )
        text.set_path_effects([_HALO])
        left, low, right, high = _box_of(text.get_window_extent(renderer))
        width, height = right - left + 3, high - low + 2
        choices = []
        for rank, (east, north) in enumerate(_DIRECTIONS):
            reach = half if 0 in (east, north) else 0.5 * half
            centre = (x + east * (reach + width / 2), y + north * (reach + height / 2))
            box = (centre[0] - width / 2, centre[1] - height / 2, centre[0] + width / 2, centre[1] + height / 2)
            if _is_within(box, inside) and not any(_overlap(box, other) for other in others):
                choices.append((_num_inside(crossed, box), rank, centre, box))
        if not choices:
            text.remove()
            continue
        _, _, centre, box = min(choices)
        at_x, at_y = axes.transData.inverted().transform(centre).tolist()
        text.set_position((at_x, at_y))
        taken.append(box)
        num_placed += 1
    return num_placed


def name_ends(axes: Axes, labels: Sequence[PointLabel], *, fontsize: float = 10.0) -> None:
    """Write the names of curves to the right of their ends, pushed apart where the curves end close together.

    Call it before `place_labels`, when the limits stand.

    Args:
        axes: Where to write.
        labels: Names at the curves' right ends.
        fontsize: Size of the names [points].
    """
    figure = axes.figure.get_figure(root=True)
    assert figure is not None
    spacing = 1.15 * fontsize * figure.dpi / 72
    from_top = sorted(labels, key=lambda label: -label.y)
    heights = axes.transData.transform([(label.x, label.y) for label in from_top])[:, 1]
    placed = heights.copy()
    for _ in range(len(placed)):  # each pass moves every crowded pair apart by half of what is missing
        missing = np.maximum(spacing - (placed[:-1] - placed[1:]), 0.0) / 2
        placed[:-1] += missing
        placed[1:] -= missing
    for label, height, start in zip(from_top, placed, heights, strict=True):
        axes.annotate(
            label.text,
            (label.x, label.y),
            xytext=(6, (height - start) * 72 / figure.dpi),
            textcoords="offset points",
            va="center",
            color=ink(label.color),
            weight="bold",
            fontsize=fontsize,
        )


def _dots(line: np.ndarray) -> np.ndarray:
    """Cut a polyline [points, 2] into dots a few pixels apart."""
    lengths = np.hypot(*np.diff(line, axis=0).T)
    walked = np.concatenate([[0.0], np.cumsum(lengths)])
    at = np.arange(0.0, walked[-1], 3.0)
    return np.stack([np.interp(at, walked, line[:, axis]) for axis in (0, 1)], axis=1)


def _box_of(extent: BboxBase) -> Box:
    return float(extent.x0), float(extent.y0), float(extent.x1), float(extent.y1)


def _num_inside(dots: np.ndarray, box: Box) -> int:
    left, low, right, high = box
    return int(np.sum((dots[:, 0] > left) & (dots[:, 0] < right) & (dots[:, 1] > low) & (dots[:, 1] < high)))


def _is_within(box: Box, outer: Box) -> bool:
    return box[0] >= outer[0] and box[1] >= outer[1] and box[2] <= outer[2] and box[3] <= outer[3]


def _overlap(box: Box, other: Box) -> bool:
    return box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]
