"""Trace shards as text: complete lines are rows, and an error names its file and line."""

import warnings
from collections.abc import Iterator
from pathlib import Path

from ._schema import Trace, trace_from_json


def complete_lines(path: Path) -> bytes:
    """Return the bytes of a shard up to its last newline; warn of what follows, which nobody acknowledged."""
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    if end < len(data):
        number = data.count(b"\n") + 1
        warnings.warn(
            f"{path}, line {number}: the last line was cut off and is left out. "
            "A TraceWriter that opens the shard removes it.",
            stacklevel=2,
        )
    return data[:end]


def parse_lines(data: bytes, path: Path) -> Iterator[Trace]:
    """Yield the trace of every line.

    Raises:
        ValueError: If a line is no valid trace; the message names `path` and the line.
    """
    lines = data.split(b"\n")
    for number, line in enumerate(lines[:-1], start=1):
        try:
            yield trace_from_json(line)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
