"""Traces as Python objects, for whoever looks at single trials; tables come from `read_tables`."""

from collections.abc import Sequence

from ._files import Source, iter_traces, trace_files
from ._runs import Settings
from ._schema import Trace, TraceKey


def read_traces(source: Source | Sequence[Source]) -> list[Trace]:
    """Read every trial of a file, a folder or several of them, each row checked.

    Args:
        source: A .jsonl or .parquet file, a folder (searched deeply for both), or a sequence of such paths.

    Returns:
        The traces in the order of the sorted files and their lines.

    Raises:
        FileNotFoundError: If a path does not exist.
        ValueError: If there is no trace file, a row is not valid, a run changes its settings, or a trial occurs twice;
            names the file. The unterminated last line of a shard is left out with a warning: its writer was cut off, or
            is still writing.
    """
    runs: dict[str, Settings] = {}
    seen: set[TraceKey] = set()
    traces: list[Trace] = []
    for path in trace_files(source):
        for trace in iter_traces(path, runs):
            if trace.key in seen:
                raise ValueError(
                    f"{path}: run {trace.run!r}, problem {trace.problem!r}, trial {trace.trial} occurs more than once. "
                    "Read either the shards or the file compacted from them."
                )
            seen.add(trace.key)
            traces.append(trace)
    return traces
