"""Traces as Arrow columns, from JSONL or Parquet alike: what tables and compaction are computed from.

Values are checked as whole columns. Where a check fails, the rows are read again one by one, so that the error comes
from the one place that defines a valid row (`Trace`) and names file and line.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from ._files import SCHEMA, iter_traces, list_files, read_parquet
from ._jsonl import complete_lines, parse_lines
from ._runs import RUN_FIELDS, Settings, changed_run
from ._schema import (
    ADDED_IN_3,
    FIELDS,
    FINISH_REASONS,
    KNOWN_VERSIONS,
    LEN_OF,
    SCHEMA_VERSION,
    TEXT_FIELDS,
    Trace,
    require_canonical_attention,
)

_BLOCK_LEN = 1 << 20
_NULLABLE = ("seed", "prompt_ids", "output_ids", "answer", "score", "solved_len", "time_s", *ADDED_IN_3)
_CHECKED = tuple(name for name in FIELDS if name not in (*LEN_OF, "answer"))
"""Columns that every read checks: all but the long ones."""


def read_columns(files: Sequence[Path], columns: Sequence[str] = FIELDS) -> pa.Table:
    """Return columns of files of traces, checked; rows of older versions are lifted to the newest.

    Args:
        files: .jsonl and .parquet files.
        columns: Which of `FIELDS`; those that the checks need are read anyway.

    Raises:
        ValueError: If a file is broken, a row is no valid trace, a run changes its settings, or there is no row;
            names file and line or row.
    """
    table = pa.concat_tables([_read_file(path, columns) for path in files])
    if not table.num_rows:
        raise ValueError(f"no traces in {list_files(files)}: every file is empty")
    change = changed_run(table.select(["run", *RUN_FIELDS]))
    if change is not None:
        runs: dict[str, Settings] = {}
        for path in files:
            for _ in iter_traces(path, runs):
                pass
        raise ValueError(f"{list_files(files)}: {change}")  # pragma: no cover
    return table.select(columns)


def columns_from_traces(traces: Sequence[Trace]) -> pa.Table:
    """Return all columns of the traces."""
    return pa.Table.from_pylist([{name: getattr(trace, name) for name in FIELDS} for trace in traces], schema=SCHEMA)


def valid_columns(path: Path, columns: Sequence[str], data: bytes | None = None) -> pa.Table | None:
    """Return columns of one file and those that every read checks, or None if a row is no valid trace.

    Args:
        path: A .jsonl or .parquet file.
        columns: Which of `FIELDS`.
        data: The complete lines of a .jsonl file; all of their fields are checked.

    Raises:
        ValueError: If the file is broken.
    """
    wanted = tuple(dict.fromkeys((*columns, *_CHECKED)))
    if data is None:
        table = read_parquet(path, wanted)
    else:
        parsed = _parse_with_arrow(data) if data else None
        table = columns_from_traces(list(parse_lines(data, path))) if parsed is None else parsed
    if not _is_valid(table):
        return None
    newest = pa.array(np.full(table.num_rows, SCHEMA_VERSION, np.int8))
    table = table.set_column(table.column_names.index("schema_version"), SCHEMA.field("schema_version"), newest)
    return table.select(wanted)


def _read_file(path: Path, columns: Sequence[str]) -> pa.Table:
    table = valid_columns(path, columns, complete_lines(path) if path.suffix == ".jsonl" else None)
    if table is None:
        for _ in iter_traces(path, {}):
            pass
        raise ValueError(f"{path}: a column holds values that no trace may have")  # pragma: no cover
    return table


def _parse_with_arrow(data: bytes) -> pa.Table | None:
    """Return the columns of lines of JSON, or None where Arrow is stricter or laxer than the parser of single lines."""
    if not _is_utf8(data):  # it takes any bytes for text
        return None
    block_len = _BLOCK_LEN if len(data) <= _BLOCK_LEN else max(_BLOCK_LEN, 2 * _longest_line(data))
    try:
        table = pyarrow.json.read_json(
            pa.BufferReader(data),
            read_options=pyarrow.json.ReadOptions(block_size=block_len),
            parse_options=pyarrow.json.ParseOptions(explicit_schema=SCHEMA, unexpected_field_behavior="error"),
        ).select(FIELDS)
    except pa.ArrowInvalid:
        return None
    # It skips blank lines, and takes several objects on one line and one object on several.
    if not table.num_rows == data.count(b"\n") == data.count(b"}\n"):
        return None
    if not _are_fields_given(table, data):
        return None
    is_old = pc.call_function("equal", [table["schema_version"], pa.scalar(1, pa.int8())])
    for name, len_name in LEN_OF.items():
        given = pc.call_function("is_valid", [table[len_name]])
        if pc.call_function("any", [pc.call_function("equal", [given, is_old])]).as_py():
            return None  # version 1 must leave the lengths out, later ones must not
        counted = pc.call_function("list_value_length", [table[name]])
        filled = pc.call_function("coalesce", [table[len_name], counted])
        table = table.set_column(table.column_names.index(len_name), SCHEMA.field(len_name), filled)
    return table


def _are_fields_given(table: pa.Table, data: bytes) -> bool:
    """Say whether nullable fields are there in every line whose version has them, and in no other.

    Arrow takes a missing field for null. No text can hold these bytes: its quotes would have backslashes before them.
    """
    has_all = table["schema_version"].to_numpy() >= 3
    for name in _NULLABLE:
        num_wanted = int(has_all.sum()) if name in ADDED_IN_3 else table.num_rows
        if table[name].null_count and data.count(f'"{name}":'.encode()) != num_wanted:
            return False
        if name in ADDED_IN_3 and (table[name].is_valid().to_numpy() & ~has_all).any():
            return False
    return True


def _is_utf8(data: bytes) -> bool:
    if data.isascii():  # as all that `TraceWriter` writes
        return True
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _longest_line(data: bytes) -> int:
    """Return an upper bound of the longest line's length [bytes], at most four times too high, without splitting."""
    step = 1 << 10
    while any(data.find(b"\n", start, start + step) < 0 for start in range(0, len(data), step)):
        step *= 2
    return 2 * step


def _is_valid(table: pa.Table) -> bool:
    """Say whether every row is a valid trace, as far as whole-column tests can tell."""
    if any(table[name].null_count for name in table.column_names if name not in _NULLABLE):
        return False
    return _are_texts_valid(table) and _are_numbers_valid(table) and _are_token_ids_valid(table)


def _are_texts_valid(table: pa.Table) -> bool:
    for name in (*TEXT_FIELDS, *ADDED_IN_3):
        texts = table[name].unique().to_pylist()
        if "" in texts:
            return False
        if name == "finish_reason" and not set(texts) <= set(FINISH_REASONS):
            return False
        if name == "attention":
            try:
                for text in texts:
                    require_canonical_attention(text)
            except ValueError:
                return False
    return True


def _are_numbers_valid(table: pa.Table) -> bool:
    version, difficulty, trial, prompt_len, gen_len, max_gen_len = (
        table[name].to_numpy()
        for name in ("schema_version", "difficulty", "trial", "prompt_len", "gen_len", "max_gen_len")
    )
    score = table["score"].fill_null(0.0).to_numpy()  # an ungradable trial must satisfy what a wrong one must
    solved_len, has_solved_len = table["solved_len"].fill_null(0).to_numpy(), table["solved_len"].is_valid().to_numpy()
    time_s = table["time_s"].fill_null(0.0).to_numpy()
    tests = (
        np.isin(version, KNOWN_VERSIONS),
        (score == 0) | (score == 1),
        (score == 1) == has_solved_len,
        (solved_len >= 0) & (solved_len <= gen_len),
        gen_len <= max_gen_len,
        (difficulty >= 0) & (trial >= 0) & (prompt_len >= 0),
        (time_s >= 0) & np.isfinite(time_s),
    )
    return all(test.all() for test in tests)


def _are_token_ids_valid(table: pa.Table) -> bool:
    """Compare the token ids that were read with their lengths; a length without ids must be given, and is."""
    for name, len_name in LEN_OF.items():
        if name not in table.column_names:
            continue
        counted = pc.call_function("list_value_length", [table[name]])
        if pc.call_function("any", [pc.call_function("not_equal", [counted, table[len_name]])]).as_py():
            return False
        ids = pc.call_function("list_flatten", [table[name]])
        if ids.null_count or (len(ids) and pc.call_function("min_max", [ids])["min"].as_py() < 0):
            return False
    return True
