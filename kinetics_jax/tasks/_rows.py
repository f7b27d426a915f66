"""Rows of a published data set: from the Hugging Face hub at a pinned commit, or from a local file of the same columns.

Used by the tasks whose problems are published. Nothing is downloaded before problems are asked for.
"""

import hashlib
import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

Rows = tuple[dict[str, Any], ...]
_SUFFIXES = (".jsonl", ".parquet")


@dataclass(frozen=True, kw_only=True)
class HubRows:
    """Name a published table.

    Attributes:
        repo: Data set on the hub ("openai/gsm8k").
        revision: Commit that was looked at; what is downloaded never changes under a name.
        split: Split that is asked ("test").
        config: Configuration of the data set, where it has several.
    """

    repo: str
    revision: str
    split: str
    config: str | None = None

    def __str__(self) -> str:
        return f"{self.repo} at {self.revision[:12]}"


def read_rows(source: HubRows, data: Path | None, columns: Sequence[str]) -> Rows:
    """Return the rows of the local file `data`, or of `source` if there is none.

    Args:
        source: Where the rows are published.
        data: A .jsonl or .parquet file with the same columns.
        columns: Those that every row must have; others are kept.

    Raises:
        FileNotFoundError: If the file does not exist.
        ImportError: If rows must be downloaded and `datasets` (extra `hf`) is missing; names the file to give instead.
        OSError: If they cannot be downloaded; likewise.
        ValueError: If the file is malformed, has no rows, or lacks a column.
    """
    rows = _download(source, tuple(columns)) if data is None else _read_file(Path(data), _stamp(Path(data)))
    where = str(source) if data is None else str(data)
    if not rows:
        raise ValueError(f"{where} has no rows")
    for number, row in enumerate(rows, start=1):
        missing = [column for column in columns if column not in row]
        if missing:
            raise ValueError(
                f"{where}, row {number}: wanted the columns {', '.join(columns)} of {source.repo}; "
                f"missing {', '.join(missing)}, got {', '.join(row) or 'none'}. Rename the columns of the file."
            )
    return rows


def rows_revision(source: HubRows, data: Path | None) -> str:
    """Return the commit of the published rows, or the beginning of a local file's SHA-256.

    Raises:
        FileNotFoundError: If the file does not exist.
    """
    return source.revision[:12] if data is None else f"sha256:{_digest(Path(data), _stamp(Path(data)))[:12]}"


def _stamp(data: Path) -> tuple[int, int]:
    """Return what changes when the file does, so that it is read once and never stale."""
    try:
        state = data.stat()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no such file of problems: {data}") from error
    return state.st_size, state.st_mtime_ns


@lru_cache(maxsize=8)
def _digest(data: Path, stamp: tuple[int, int]) -> str:
    with data.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache(maxsize=8)
def _read_file(data: Path, stamp: tuple[int, int]) -> Rows:
    if data.suffix == ".jsonl":
        return tuple(_read_jsonl(data))
    if data.suffix != ".parquet":
        raise ValueError(f"problems are read from {' or '.join(_SUFFIXES)} files; got {data}")
    import pyarrow as pa  # here: tasks that make their problems need no tables
    import pyarrow.parquet as pq

    try:
        return tuple(pq.read_table(data).to_pylist())
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{data}: not a readable Parquet file ({error})") from error


def _read_jsonl(data: Path) -> list[dict[str, Any]]:
    rows = []
    try:
        lines = data.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{data}: not a text in UTF-8 ({error})") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{data}, line {number}: not a line of JSON ({error})") from error
        if not isinstance(row, dict):
            raise ValueError(f"{data}, line {number}: wanted a JSON object with columns; got {type(row).__name__}")
        rows.append(row)
    return rows


@lru_cache(maxsize=8)
def _download(source: HubRows, columns: tuple[str, ...]) -> Rows:
    way_out = (
        f"Or give a local copy: --data FILE (data= in Python), a .jsonl or .parquet file with the columns "
        f"{', '.join(columns)}, such as the file of split {source.split!r} of https://huggingface.co/datasets/"
        f"{source.repo}"
    )
    try:
        datasets: Any = importlib.import_module("datasets")
    except ImportError as error:
        raise ImportError(
            f"problems of {source.repo} are read by `datasets`, which is missing: pip install 'kinetics-jax[hf]'. "
            f"{way_out}"
        ) from error
    try:
        table = datasets.load_dataset(source.repo, source.config, split=source.split, revision=source.revision)
    except (OSError, ValueError, RuntimeError) as error:  # no network, no such data set, a broken cache
        raise OSError(f"cannot download {source} ({type(error).__name__}: {error}). {way_out}") from error
    return tuple(dict(row) for row in table)
