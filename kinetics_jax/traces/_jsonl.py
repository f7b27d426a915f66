"""Trace shards as text: complete lines are rows; what follows the last newline is none."""

import warnings
from collections.abc import Iterator
from pathlib import Path

from ._schema import Trace, trace_from_json

Row = tuple[int, Trace | Exception]
"""The number of a line or row, from 1, and its trace or what is wrong with it."""


def read_shard(path: Path) -> tuple[bytes, int | None]:
    """Return the complete lines of a shard, and the number of the line that was cut off behind them, if one was."""
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    return data[:end], data.count(b"\n") + 1 if end < len(data) else None


def complete_lines(path: Path) -> bytes:
    """Return the bytes of a shard up to its last newline; warn of what follows, which nobody acknowledged."""
    data, torn = read_shard(path)
    if torn is not None:
        warnings.warn(
            f"{path}, line {torn}: the last line was cut off and is left out. "
            "A TraceWriter that opens the shard removes it.",
            stacklevel=2,
        )
    return data


def line_rows(data: bytes) -> Iterator[Row]:
    """Yield every complete line as a trace, or as the error that says why it is none."""
    start = 0
    for number in range(1, data.count(b"\n") + 1):
        end = data.index(b"\n", start)
        try:
            yield number, trace_from_json(data[start:end])
        except (TypeError, ValueError) as error:
            yield number, error
        start = end + 1


def parse_lines(data: bytes, path: Path) -> Iterator[Trace]:
    """Yield the trace of every line.

    Raises:
        ValueError: If a line is no valid trace; the message names `path` and the line.
    """
    for number, row in line_rows(data):
        yield require_trace(row, f"{path}, line {number}")


def require_trace(row: Trace | Exception, where: str) -> Trace:
    """Return the trace, or raise what is wrong with it and where."""
    if isinstance(row, Exception):
        raise ValueError(f"{where}: {row}") from row
    return row
