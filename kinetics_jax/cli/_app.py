"""The command `kinetics`: its groups and how errors become one sentence. Each command has a file of its own."""

import sys
import warnings

import typer
from rich.console import Console

app = typer.Typer(
    name="kinetics",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
console = Console(stderr=True)
"""Progress and errors go to standard error; results go to standard output."""


@app.callback()
def _root() -> None:
    """A laboratory for test-time scaling: price it, run it, measure it, spend a budget well."""


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    console.print(f"Warning: {message}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def main() -> None:
    """Run the command line; a mistake of the caller or a file, or a missing extra, ends in one sentence and code 2.

    Warnings are sentences, too.
    """
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            app()
    except (ValueError, OSError, ImportError) as error:
        console.quiet = False  # of many processes one speaks, but any of them may fail
        console.print(f"Error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
