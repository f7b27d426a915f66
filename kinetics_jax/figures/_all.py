"""Draw every figure of PAPER.md section 5 that the data supports, and say of the others why not."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from kinetics_jax.specs import MODELS, HardwareSpec

from ._data import GroupData
from ._kv_growth import kv_per_token
from ._plates import GROUP_PLATES, Paths
from ._speed_up import speed_up
from ._style import CannotWriteError
from ._throughput import ThroughputRow, throughput


@dataclass(frozen=True, kw_only=True)
class FigureReport:
    """Say what was drawn.

    Attributes:
        drawn: The PNG of each figure by name; a CSV stands beside it.
        missing: Why a figure could not be drawn, by name.
    """

    drawn: Mapping[str, Path]
    missing: Mapping[str, str]


def draw_all(
    tables: Iterable[Any],
    hardware: HardwareSpec,
    out: str | Path,
    *,
    measured: Sequence[ThroughputRow] = (),
    only: Collection[str] | None = None,
    num_budgets: int = 96,
    num_resamples: int = 100,
    svg: bool = True,
    on_figure: Callable[[str, int], None] | None = None,
) -> FigureReport:
    """Draw all figures that the tables support into one folder, one group of a task and a model family after another.

    Where there are several tasks or several families each has a folder of its own below `out`, named by what differs.
    A figure that lacks data is no error: the report says what it lacks.

    Args:
        tables: Trace tables (`traces.TraceTable`), one a (task, model, attention).
        hardware: The chip whose intensity prices memory traffic.
        out: The folder; it is made.
        measured: Measurements of whole models for the figures of throughput and speed-up (`throughput_rows`).
        only: Names of the figures to draw (`figure_names`); None draws all.
        num_budgets: Caps of a curve, at least 2.
        num_resamples: Bootstrap draws of a power law; each is an allocation of ten to thirty milliseconds.
        svg: Whether each gets an SVG beside the PNG and the CSV.
        on_figure: Called after each figure with its name and the number of all.

    Returns:
        What was drawn and what was not.

    Raises:
        ValueError: If there is no table, a model or a name in `only` is unknown, or the folder cannot be written.

    References:
        PAPER.md section 5.
    """
    check_figure_names(only or ())
    groups = _groups(tables)
    families = {MODELS[table.model].family for group in groups.values() for table in group}
    geometries = [spec for spec in MODELS.values() if spec.family != "Kinetics-Mini" or spec.family in families]
    jobs: dict[str, Callable[[Path], Paths]] = {
        "kv_per_token": partial(kv_per_token, geometries, svg=svg),
        "throughput": partial(_throughput, measured, svg=svg),
        "speed_up": partial(speed_up, measured, svg=svg),
    }
    kinds = {name: name for name in jobs}
    for folder, group in groups.items():
        data = GroupData(group, hardware, num_budgets=num_budgets, num_resamples=num_resamples)
        for plate in GROUP_PLATES:
            jobs[f"{folder}{plate.name}"] = partial(plate.draw, data, svg=svg)
            kinds[f"{folder}{plate.name}"] = plate.name
    jobs = {name: draw for name, draw in jobs.items() if only is None or kinds[name] in only}
    drawn: dict[str, Path] = {}
    missing: dict[str, str] = {}
    for name, draw in jobs.items():
        try:
            drawn[name] = draw(Path(out) / f"{name}.png")[0]
        except CannotWriteError:
            raise
        except ValueError as error:
            missing[name] = str(error)
        if on_figure is not None:
            on_figure(name, len(jobs))
    return FigureReport(drawn=drawn, missing=missing)


def figure_names() -> tuple[str, ...]:
    """Return the names of the figures that `draw_all` knows."""
    return ("kv_per_token", "throughput", "speed_up", *(plate.name for plate in GROUP_PLATES))


def check_figure_names(names: Collection[str]) -> None:
    """Raise ValueError if `draw_all` does not know one of the names."""
    unknown = [name for name in names if name not in figure_names()]
    if unknown:
        raise ValueError(f"unknown figures {unknown}. Known: {', '.join(figure_names())}")


def _groups(tables: Iterable[Any]) -> dict[str, list[Any]]:
    """Return the tables by folder: one a task and family, named by what differs ("" where nothing does)."""
    by_kind: dict[tuple[str, str], list[Any]] = {}
    for table in tables:
        by_kind.setdefault((table.task, MODELS[table.model].family), []).append(table)
    if not by_kind:
        raise ValueError("figures need at least one trace table; got none. Is the trace folder empty?")
    varies = [len(set(names)) > 1 for names in zip(*by_kind, strict=True)]
    return {
        "".join(f"{name.replace('/', '_')}/" for name, differs in zip(kind, varies, strict=True) if differs): group
        for kind, group in by_kind.items()
    }


def _throughput(rows: Sequence[ThroughputRow], path: Path, *, svg: bool) -> Paths:
    if not rows:
        raise ValueError(
            "no measurement of a whole model was given; the times of kernels are no throughput. "
            "Pass rows with model, attention, context_len, batch_size and tokens_per_s."
        )
    return throughput(rows, path, svg=svg)
