"""Is every row of these files a trace, once? Checks all of them and lists whatever is wrong.

Called by people and by jobs before they believe or pack a folder. `read_tables` and `compact` refuse the same things,
but stop at the first. Files are checked by whole columns, token ids included; only if something is wrong somewhere are
their rows read one by one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa

from ._columns import valid_columns
from ._files import Source, iter_rows, place, trace_files
from ._jsonl import line_rows, read_shard
from ._runs import RUN_FIELDS, Settings, changed_run, require_same_settings, settings_of
from ._schema import FIELDS, KEY, Trace, TraceKey

IssueKind = Literal["file", "row", "duplicate", "run", "torn"]


@dataclass(frozen=True, kw_only=True)
class TraceIssue:
    """Say what is wrong where.

    Attributes:
        path: The file.
        number: Line (JSONL) or row (Parquet), from 1; None if the file as a whole is meant.
        kind: "file" cannot be read, "row" is no valid trace, "duplicate" repeats a trial, "run" changes its settings,
            "torn" is a last line that was cut off.
        what: One sentence.
    """

    path: str
    number: int | None
    kind: IssueKind
    what: str

    def __str__(self) -> str:
        where = self.path if self.number is None else place(Path(self.path), self.number)
        return f"{where}: {self.what}"


@dataclass(frozen=True, kw_only=True)
class TraceCheck:
    """Hold what `verify_traces` found.

    Attributes:
        num_files: Files that were read.
        num_rows: Valid traces among their rows, repeated ones included.
        issues: Everything that is wrong, in the order of files and rows.
    """

    num_files: int
    num_rows: int
    issues: tuple[TraceIssue, ...]


def verify_traces(source: Source | Sequence[Source]) -> TraceCheck:
    """Check every row of a file, a folder or several of them: fields, values, duplicates, settings, torn tails.

    Args:
        source: A .jsonl or .parquet file, a folder (searched deeply for both), or a sequence of such paths.

    Returns:
        What was found; sound if it has no issues.

    Raises:
        FileNotFoundError: If a path does not exist.
        ValueError: If there is no trace file.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "cut.jsonl").write_text('{"run": "r", ')
        ...     [issue.kind for issue in verify_traces(folder).issues]
        ['torn']
    """
    files = trace_files(source)
    sound = _check_columns(files)
    return _check_rows(files) if sound is None else sound


def _check_columns(files: Sequence[Path]) -> TraceCheck | None:
    """Return the check of files whose rows are all valid, unique and steady; None if not."""
    tables, issues = [], []
    for path in files:
        try:
            data, torn = read_shard(path) if path.suffix == ".jsonl" else (None, None)
            table = valid_columns(path, FIELDS, data)
        except (ValueError, OSError):
            return None
        if table is None:
            return None
        tables.append(table.select(tuple(dict.fromkeys((*KEY, *RUN_FIELDS)))))
        issues += [] if torn is None else [_torn(path, torn)]
    table = pa.concat_tables(tables)
    if table.group_by(list(KEY)).aggregate([]).num_rows < table.num_rows or changed_run(table) is not None:
        return None
    return TraceCheck(num_files=len(files), num_rows=table.num_rows, issues=tuple(issues))


def _check_rows(files: Sequence[Path]) -> TraceCheck:
    seen: dict[TraceKey, tuple[Path, int]] = {}
    runs: dict[str, Settings] = {}
    issues: list[TraceIssue] = []
    num_rows = 0
    for path in files:
        for number, found in _walk(path):
            if isinstance(found, Trace):
                num_rows += 1
                issues += _compare(found, path, number, seen, runs)
            else:
                issues.append(found)
    return TraceCheck(num_files=len(files), num_rows=num_rows, issues=tuple(issues))


def _walk(path: Path) -> Iterator[tuple[int, Trace | TraceIssue]]:
    """Yield the rows of a file, and what is wrong with those that are no traces."""
    rows, torn = iter_rows(path), None
    try:
        if path.suffix == ".jsonl":
            data, torn = read_shard(path)
            rows = line_rows(data)
        for number, row in rows:
            is_trace = isinstance(row, Trace)
            yield number, row if is_trace else TraceIssue(path=str(path), number=number, kind="row", what=str(row))
    except (ValueError, OSError) as error:
        what = str(error).removeprefix(f"{path}: ")
        yield 0, TraceIssue(path=str(path), number=None, kind="file", what=what)
    if torn is not None:
        yield torn, _torn(path, torn)


def _torn(path: Path, number: int) -> TraceIssue:
    what = "the last line was cut off. A TraceWriter that opens the shard removes it; compacting leaves it out."
    return TraceIssue(path=str(path), number=number, kind="torn", what=what)


def _compare(
    trace: Trace, path: Path, number: int, seen: dict[TraceKey, tuple[Path, int]], runs: dict[str, Settings]
) -> list[TraceIssue]:
    """Hold a trace against those before it."""
    issues = []
    if trace.key in seen:
        what = (
            f"run {trace.run!r}, problem {trace.problem!r}, trial {trace.trial} is already in {place(*seen[trace.key])}"
        )
        issues.append(TraceIssue(path=str(path), number=number, kind="duplicate", what=what))
    seen.setdefault(trace.key, (path, number))
    now = settings_of(trace)
    try:
        require_same_settings(trace.run, runs.setdefault(trace.run, now), now)
    except ValueError as error:
        issues.append(TraceIssue(path=str(path), number=number, kind="run", what=str(error)))
    return issues
