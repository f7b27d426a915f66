"""A progress bar in bytes for the commands that move weights."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from ._app import console


@dataclass
class Seen:
    """What was reported so far [bytes]: the first and the newest count done, and all there are."""

    first: int = 0
    done: int = 0
    total: int = 0


@contextmanager
def byte_progress(title: str) -> Iterator[tuple[Callable[[int, int], None], Seen]]:
    """Show a bar while the block runs; give the function to report to, and what it was told."""
    seen = Seen()
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    hidden = not console.is_terminal
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=hidden) as bar:
        row = bar.add_task(title, total=None)

        def report(done: int, total: int) -> None:
            if not seen.total:
                seen.first = done
            seen.done, seen.total = done, total
            bar.update(row, completed=done, total=total)

        yield report, seen
