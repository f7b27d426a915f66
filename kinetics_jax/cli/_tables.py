"""Trace tables for the commands that compute on them, and errors that name the folder they came from."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from kinetics_jax.traces import TraceTable, read_tables

Traces = Annotated[
    Path,
    typer.Option("--traces", help="A trace file, or a folder of them (.jsonl, .parquet).", show_default="the recorded"),
]


def load_tables(traces: Path, *, models: Sequence[str] = ()) -> list[TraceTable]:
    """Return the tables of a file or folder, of some models or all.

    Raises:
        FileNotFoundError: If the path does not exist.
        ValueError: If a row is not valid or a model has no trace; the path is named.
    """
    tables = read_tables(traces)
    known = list(dict.fromkeys(table.model for table in tables))
    unknown = [name for name in models if name not in known]
    if unknown:
        raise ValueError(f"{traces} has no traces of {', '.join(unknown)}. It has {', '.join(known)}.")
    return [table for table in tables if not models or table.model in models]


def one_task(tables: Sequence[TraceTable], traces: Path, task: str | None) -> list[TraceTable]:
    """Return the tables of the named task; without a name there must be one task only.

    Raises:
        ValueError: If the task is not there, or must be named.
    """
    tasks = sorted({table.task for table in tables})
    if task is None and len(tasks) > 1:
        raise ValueError(f"{traces} holds {len(tasks)} tasks: {', '.join(tasks)}. Choose one with --task.")
    if task is not None and task not in tasks:
        raise ValueError(f"{traces} has no task {task!r}. It has {', '.join(tasks)}.")
    return [table for table in tables if task in (None, table.task)]


@contextmanager
def named(traces: Path) -> Iterator[None]:
    """Put the path in front of what a computation on its tables says is wrong with them."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{traces}: {error}") from error
