"""`kinetics figures`: every figure of the paper that some traces support, and why the others are missing."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from kinetics_jax.figures import FigureReport, ThroughputRow, check_figure_names, draw_all, throughput_rows
from kinetics_jax.specs import HARDWARE
from kinetics_jax.zoo import RECORDED_TRACES

from ._app import app, console
from ._output import print_json, print_table
from ._pricing import AsJson, Hardware
from ._tables import Traces, load_tables, named


@app.command()
def figures(
    traces: Traces = RECORDED_TRACES,
    out: Annotated[Path, typer.Option(help="Folder for the pictures and their CSV.")] = Path("out/figures"),
    hardware: Hardware = "H100-SXM",
    only: Annotated[list[str] | None, typer.Option(help="Figure by name; repeat for more.", show_default="all")] = None,
    measured: Annotated[
        list[Path] | None, typer.Option(help="JSON of a benchmark with rates of whole models; repeat for more.")
    ] = None,
    svg: Annotated[bool, typer.Option("--svg/--no-svg", help="Whether each gets an SVG beside the PNG.")] = True,
    as_json: AsJson = False,
) -> None:
    """Draw every figure that the traces support as PNG, SVG and CSV, and say of the others why not."""
    chip = HARDWARE[hardware]
    check_figure_names(only or ())
    rates = [row for path in measured or () for row in _read_measured(path)]
    tables = load_tables(traces)
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress,
        named(traces),
    ):
        bar = progress.add_task("Drawing", total=None)

        def on_figure(name: str, count: int) -> None:
            progress.update(bar, description=name, total=count, advance=1)

        report = draw_all(tables, chip, out, measured=rates, only=only, svg=svg, on_figure=on_figure)
        if not report.drawn:
            name, why = next(iter(report.missing.items()))
            raise ValueError(f"no figure could be drawn; {name}: {why}")
    if as_json:
        drawn = {name: str(path) for name, path in report.drawn.items()}
        print_json({"traces": str(traces), "hardware": hardware, "drawn": drawn, "missing": dict(report.missing)})
    else:
        _print_report(report, out)


def _read_measured(path: Path) -> list[ThroughputRow]:
    """Return the rows of whole models in a benchmark's JSON."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{path}: a benchmark's JSON is an object with a list named rows; got {type(content).__name__}"
        )
    with named(path):
        return throughput_rows(content)


def _print_report(report: FigureReport, out: Path) -> None:
    rows = [(name, str(path.relative_to(out))) for name, path in report.drawn.items()]
    plural = "" if len(rows) == 1 else "s"
    print_table(f"{len(rows)} figure{plural} in {out}", ("figure", "file"), rows, num_labels=2)
    if report.missing:
        print_table(
            f"{len(report.missing)} could not be drawn", ("figure", "why"), report.missing.items(), num_labels=2
        )
