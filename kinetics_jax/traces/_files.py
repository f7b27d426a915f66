"""Files of traces: which there are, and their rows one by one, from JSONL or Parquet alike."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ._jsonl import Row, complete_lines, line_rows, require_trace
from ._runs import Settings, require_same_settings, settings_of
from ._schema import ADDED_IN_3, FIELDS, FIELDS_OF_2, KNOWN_VERSIONS, SCHEMA_VERSION, Trace, trace_from_row

Source = str | os.PathLike[str]

_SUFFIXES = (".jsonl", ".parquet")
_TYPES = {
    "schema_version": pa.int8(),
    "difficulty": pa.int32(),
    "trial": pa.int32(),
    "seed": pa.int64(),
    "max_gen_len": pa.int32(),
    "prompt_ids": pa.list_(pa.int32()),
    "output_ids": pa.list_(pa.int32()),
    "prompt_len": pa.int32(),
    "gen_len": pa.int32(),
    "score": pa.float64(),
    "solved_len": pa.int32(),
    "time_s": pa.float64(),
}
SCHEMA = pa.schema([pa.field(name, _TYPES.get(name, pa.string())) for name in FIELDS])
"""Columns of a Parquet file: the fields of a trace, the lengths included in every version."""


def trace_files(source: Source | Sequence[Source]) -> list[Path]:
    """Return the .jsonl and .parquet files that `source` names: a file, a folder of them (searched deeply), or several.

    Raises:
        FileNotFoundError: If a path does not exist.
        ValueError: If a file is of another kind, or there is none.
    """
    roots = [source] if isinstance(source, (str, os.PathLike)) else list(source)
    files: list[Path] = []
    for root in map(Path, roots):
        if not root.exists():
            raise FileNotFoundError(f"no traces at {root}: there is no such file or folder")
        if root.is_dir():
            files += sorted(path for suffix in _SUFFIXES for path in root.rglob(f"[!.]*{suffix}"))
        elif root.suffix in _SUFFIXES:
            files.append(root)
        else:
            raise ValueError(f"{root}: traces are .jsonl or .parquet files; got {root.suffix or 'no suffix'}")
    if not files:
        raise ValueError(f"no traces in {', '.join(map(str, roots))}: wanted .jsonl or .parquet files, found none")
    return files


def list_files(files: Sequence[Path]) -> str:
    """Return the first three names for an error message, and how many more there are."""
    shown = ", ".join(map(str, files[:3]))
    return f"{shown} and {len(files) - 3} more" if len(files) > 3 else shown


def place(path: Path, number: int) -> str:
    """Return how an error names a row."""
    return f"{path}, {'line' if path.suffix == '.jsonl' else 'row'} {number}"


def iter_rows(path: Path) -> Iterator[Row]:
    """Yield every row of one file with its number, as a trace or as the error that says why it is none.

    Raises:
        ValueError: If the file as a whole cannot be read.
    """
    if path.suffix == ".jsonl":
        yield from line_rows(complete_lines(path))
        return
    number = 0
    with _open_parquet(path) as file:
        for batch in _batches(file, path):
            for row in batch.to_pylist():
                number += 1
                if row["schema_version"] in KNOWN_VERSIONS:
                    row["schema_version"] = SCHEMA_VERSION
                try:
                    yield number, trace_from_row({**dict.fromkeys(ADDED_IN_3), **row})
                except (TypeError, ValueError) as error:
                    yield number, error


def iter_traces(path: Path, runs: dict[str, Settings]) -> Iterator[Trace]:
    """Yield the traces of one file, each checked; errors name the file and the line (JSONL) or row (Parquet).

    Args:
        path: A .jsonl or .parquet file.
        runs: Settings of the runs seen so far, to which new ones are added.
    """
    for number, row in iter_rows(path):
        trace = require_trace(row, place(path, number))
        now = settings_of(trace)
        try:
            require_same_settings(trace.run, runs.setdefault(trace.run, now), now)
        except ValueError as error:
            raise ValueError(f"{place(path, number)}: {error}") from error
        yield trace


def read_parquet(path: Path, columns: Sequence[str]) -> pa.Table:
    """Return columns of a Parquet file, unchecked but for their names and types."""
    with _open_parquet(path) as file:
        stored = [name for name in columns if name in file.schema_arrow.names]
        try:
            table = file.read(columns=stored, use_threads=True).select(stored)
        except (pa.ArrowException, OSError) as error:
            raise _broken(path, error) from error
    for name in columns:
        if name not in stored:  # a file of an older version
            table = table.append_column(SCHEMA.field(name), pa.nulls(table.num_rows, SCHEMA.field(name).type))
    table = table.select(columns)
    try:
        return table.cast(pa.schema([SCHEMA.field(name) for name in columns]))  # token ids are stored in fewer bytes
    except pa.ArrowException as error:
        raise ValueError(f"{path}: not a table of traces; a column has the wrong type ({error})") from error


def _open_parquet(path: Path) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise _broken(path, error) from error
    missing = [name for name in FIELDS_OF_2 if name not in file.schema_arrow.names]
    if missing:
        raise ValueError(f"{path}: not a table of traces; missing columns {', '.join(missing)}")
    return file


def _batches(file: pq.ParquetFile, path: Path) -> Iterator[pa.RecordBatch]:
    try:
        stored = [name for name in FIELDS if name in file.schema_arrow.names]
        yield from file.iter_batches(batch_size=256, columns=stored)
    except (pa.ArrowException, OSError) as error:
        raise _broken(path, error) from error


def _broken(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path}: not a readable Parquet file ({error}). Compact the shards again.")
