"""Traces as Arrow columns, from JSONL or Parquet alike: what tables and compaction are computed from.

Values are checked as whole columns. Where a check fails, the rows are read again one by one, so that the error comes
from the one place that defines a valid row (`Trace`) and names file and line.
"""

import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json
import pyarrow.parquet as pq

from ._jsonl import complete_lines, parse_lines
from ._schema import FIELDS, FINISH_REASONS, SCHEMA_VERSION, Trace, trace_from_row

Source = str | os.PathLike[str]

_SUFFIXES = (".jsonl", ".parquet")
_TOKEN_FIELDS = {"prompt_ids": "prompt_len", "output_ids": "gen_len"}
_TYPES = {
    "schema_version": pa.int8(),
    "difficulty": pa.int32(),
    "trial": pa.int32(),
    "seed": pa.int64(),
    "max_gen_len": pa.int32(),
    "prompt_ids": pa.list_(pa.int32()),
    "output_ids": pa.list_(pa.int32()),
    "score": pa.float64(),
    "solved_len": pa.int32(),
    "time_s": pa.float64(),
}
_NULLABLE = ("answer", "score", "solved_len")
SCHEMA = pa.schema([pa.field(name, _TYPES.get(name, pa.string())) for name in FIELDS])
LEN_COLUMNS = tuple(_TOKEN_FIELDS.values())
COLUMNS = (*FIELDS, *LEN_COLUMNS)
"""Columns of a Parquet file: the fields of a trace and the two lengths, so that tables need not read token ids."""


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


def iter_traces(path: Path) -> Iterator[Trace]:
    """Yield the traces of one file, each checked; errors name the file and the line (JSONL) or row (Parquet)."""
    if path.suffix == ".jsonl":
        yield from parse_lines(complete_lines(path), path)
        return
    number = 0
    with _open_parquet(path) as file:
        _require_columns(file, path, COLUMNS)
        for batch in _batches(file, path):
            for row in batch.to_pylist():
                number += 1
                try:
                    lengths = {name: row.pop(name) for name in LEN_COLUMNS}
                    trace = trace_from_row(row)
                    for name, length in lengths.items():
                        if getattr(trace, name) != length:
                            raise ValueError(f"{name} is {length}, but there are {getattr(trace, name)} token ids")
                except (TypeError, ValueError) as error:
                    raise ValueError(f"{path}, row {number}: {error}") from error
                yield trace


def read_columns(path: Path, columns: Sequence[str] = COLUMNS) -> pa.Table:
    """Return columns of one file of traces, checked.

    Args:
        path: A .jsonl or .parquet file.
        columns: Which of `COLUMNS`; those that the checks need are read anyway.

    Raises:
        ValueError: If the file is broken or a row is no valid trace; names file and line or row.
    """
    if path.suffix == ".parquet":
        wanted = tuple(dict.fromkeys((*columns, *_CHECKED)))
        with _open_parquet(path) as file:
            _require_columns(file, path, COLUMNS)
            try:
                table = file.read(columns=list(wanted), use_threads=True).select(wanted)
            except (pa.ArrowException, OSError) as error:
                raise _broken(path, error) from error
    else:
        table = _read_jsonl(path)
    if not _is_valid(table):
        for _ in iter_traces(path):
            pass
        raise ValueError(f"{path}: a column holds values that no trace may have")  # pragma: no cover
    return table.select(columns)


def columns_from_traces(traces: Sequence[Trace]) -> pa.Table:
    """Return all columns of the traces."""
    rows = [{name: getattr(trace, name) for name in FIELDS} for trace in traces]
    return _with_lengths(pa.Table.from_pylist(rows, schema=SCHEMA))


def _read_jsonl(path: Path) -> pa.Table:
    data = complete_lines(path)
    if not data:
        return columns_from_traces([])
    try:
        table = pyarrow.json.read_json(
            io.BytesIO(data),
            read_options=pyarrow.json.ReadOptions(block_size=max(1 << 20, 2 * max(map(len, data.split(b"\n"))))),
            parse_options=pyarrow.json.ParseOptions(explicit_schema=SCHEMA, unexpected_field_behavior="error"),
        )
    except pa.ArrowInvalid:
        return columns_from_traces(list(parse_lines(data, path)))  # says which line, or is right where Arrow is strict
    if table.num_rows != data.count(b"\n"):  # Arrow skips blank lines and takes several objects on one
        return columns_from_traces(list(parse_lines(data, path)))
    return _with_lengths(table.select(FIELDS))


def _with_lengths(table: pa.Table) -> pa.Table:
    for tokens, length in _TOKEN_FIELDS.items():
        table = table.append_column(length, pc.call_function("list_value_length", [table[tokens]]))
    return table


def _open_parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise _broken(path, error) from error


def _batches(file: pq.ParquetFile, path: Path) -> Iterator[pa.RecordBatch]:
    try:
        yield from file.iter_batches(batch_size=4096, columns=list(COLUMNS))
    except (pa.ArrowException, OSError) as error:
        raise _broken(path, error) from error


def _require_columns(file: pq.ParquetFile, path: Path, columns: Sequence[str]) -> None:
    missing = [name for name in columns if name not in file.schema_arrow.names]
    if missing:
        raise ValueError(f"{path}: not a table of traces; missing columns {', '.join(missing)}")


def _broken(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path}: not a readable Parquet file ({error}). Compact the shards again.")


_CHECKED = ("schema_version", "finish_reason", "score", "solved_len", "gen_len", "max_gen_len", "trial")


def _is_valid(table: pa.Table) -> bool:
    """Say whether every row is a valid trace, as far as whole-column tests can tell."""
    if any(table[name].null_count for name in table.column_names if name not in _NULLABLE):
        return False
    if not set(table["finish_reason"].unique().to_pylist()) <= set(FINISH_REASONS):
        return False
    version, gen_len, max_gen_len, trial = (
        table[name].to_numpy() for name in ("schema_version", "gen_len", "max_gen_len", "trial")
    )
    score = table["score"].fill_null(0.0).to_numpy()  # an ungradable trial must satisfy what a wrong one must
    solved_len, has_solved_len = table["solved_len"].fill_null(0).to_numpy(), table["solved_len"].is_valid().to_numpy()
    tests = (
        version == SCHEMA_VERSION,
        (score == 0) | (score == 1),
        (score == 1) == has_solved_len,
        (solved_len >= 0) & (solved_len <= gen_len),
        gen_len <= max_gen_len,
        trial >= 0,
    )
    return all(test.all() for test in tests)
