"""How results leave a command: tables for people, the same rows as JSON for programs, files written whole."""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

_FILE_WIDTH = 240


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, num_labels: int = 1) -> None:
    """Print a table to standard output; the first `num_labels` columns are text, the others right-aligned numbers.

    What stands in brackets is no markup: names and reasons come from files.
    """
    table = Table(title=Text(title), title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < num_labels else "right")
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:  # a file has no width: nothing is cut off
        console = Console(width=_FILE_WIDTH)
    console.print(table)


def print_json(content: Any) -> None:
    """Print JSON to standard output, nothing else beside it."""
    typer.echo(json.dumps(content, indent=2))


def write_whole(path: Path, text: str) -> None:
    """Write beside and rename, so that a reader never meets half a file; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.partial")
    try:
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
