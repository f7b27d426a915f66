"""`kinetics grade`: grade stored traces again, without sampling."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from checkpoints_conversion import load_tokenizer
from kinetics_jax.collect import Regrading, regrade
from kinetics_jax.tasks import TASKS, Task, get_task, tokenised
from kinetics_jax.traces import TraceSummary, inspect_traces, trace_files

from ._app import app, console
from ._output import print_json, print_table
from ._pricing import AsJson

_SHOWN = 12
"""Reasons that are printed, the commonest first: programs fail in many ways."""


@app.command()
def grade(
    sources: Annotated[list[Path], typer.Argument(help="Traces: JSONL or Parquet files, or folders of them.")],
    task: Annotated[
        str | None, typer.Option(help="Only traces of this task; all that are known by default.", show_default=False)
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Only traces of this model; all by default.", show_default=False)
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="The model's folder (tokenizer.json), for tasks that are asked in words.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Local copy of the task's problems.")] = None,
    workers: Annotated[int | None, typer.Option(help="Answers judged at a time.", min=1, show_default="cores")] = None,
    as_json: AsJson = False,
) -> None:
    """Judge stored traces anew and rewrite the files in place; a second time changes nothing."""
    if data is not None and task is None:
        raise ValueError("--data belongs to one task; say which with --task")
    files = trace_files(sources)
    recorded = inspect_traces(files)
    summaries = [
        summary
        for summary in recorded
        if (task is None or summary.task == task) and (model is None or summary.model == model)
    ]
    graders = _graders(summaries, task, tokenizer, data)
    with _progress() as bar:
        row = bar.add_task("grade", total=sum(summary.num_rows for summary in recorded))
        done = regrade(
            files,
            graders,
            num_threads=workers or os.cpu_count() or 1,
            models=None if model is None else [model],
            on_progress=lambda num_rows: bar.update(row, completed=num_rows),
        )
    _print(done, as_json)


def _graders(
    summaries: Sequence[TraceSummary], task: str | None, tokenizer: Path | None, data: Path | None
) -> dict[str, Task]:
    """Return the task of every name that is to be graded; unknown ones stay as they are unless asked for."""
    names = sorted({summary.task for summary in summaries if summary.task in TASKS})
    if not names:
        found = ", ".join(sorted({summary.task for summary in summaries})) or "none"
        raise ValueError(
            f"no traces to grade{'' if task is None else f' of task {task!r}'}: got traces of {found}. "
            f"Known tasks: {', '.join(TASKS)}"
        )
    graders: dict[str, Task] = {}
    for name in names:
        known = get_task(name, data=data)
        if isinstance(known, Task):
            graders[name] = known
            continue
        models = sorted({summary.model for summary in summaries if summary.task == name})
        if tokenizer is None:
            raise ValueError(
                f"task {name} is judged by its text; give --tokenizer, the folder of {', '.join(models)} that has "
                "tokenizer.json"
            )
        if len(models) > 1:
            raise ValueError(
                f"traces of {name} are from {', '.join(models)}, and one tokenizer reads one model. Say which with "
                "--model, and grade the others after it."
            )
        graders[name] = tokenised(known, load_tokenizer(tokenizer))
    return graders


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _print(done: Regrading, as_json: bool) -> None:
    verdicts = [
        {"before": before, "after": after, "num_rows": count}
        for (before, after), count in sorted(done.verdicts.items())
    ]
    if as_json:
        counts = {name: value for name, value in vars(done).items() if name.startswith("num_")}
        print_json({**counts, "verdicts": verdicts, "reasons": done.reasons})
        return
    print_table(
        f"{done.num_graded:,} of {done.num_rows:,} traces graded",
        ("before", "now", "traces"),
        [(str(row["before"]), str(row["after"]), f"{row['num_rows']:,}") for row in verdicts],
        num_labels=2,
    )
    for reason, count in list(done.reasons.items())[:_SHOWN]:
        typer.echo(f"{reason}: {count:,}")
    if len(done.reasons) > _SHOWN:
        typer.echo(f"{len(done.reasons) - _SHOWN:,} rarer reasons: --json has all")
    if done.num_without_ids:
        typer.echo(f"{done.num_without_ids:,} traces hold no token ids and stay as they are")
    typer.echo(f"{done.num_changed:,} rows written anew" if done.num_changed else "nothing changed")
