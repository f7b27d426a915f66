"""Change what was said of trials, never the trials: the rows of a file written anew, beside, and renamed when complete.

`collect` grades stored traces again through it.
"""

import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from ._columns import columns_from_traces
from ._compact import write_parquet
from ._files import SCHEMA, iter_traces
from ._runs import Settings
from ._schema import Trace, trace_to_json
from ._writer import flush_folder, open_locked

_BATCH_LEN = 256
Change = Callable[[Sequence[Trace]], Sequence[Trace]]


def rewrite_traces(path: str | os.PathLike[str], change: Change) -> int:
    """Replace the traces of one file by changed ones, in their order, and return how many differ.

    The file stays as it is, to the byte, if none differs, and until the new one is complete. A shard is locked
    meanwhile, so that no writer appends to what is about to be replaced. Rows of older versions are written in the
    newest.

    Args:
        path: A .jsonl or .parquet file.
        change: Given traces in a row, some hundred at a time, returns what they become; keys must stay.

    Raises:
        OSError: If the file cannot be written, or a writer holds it.
        ValueError: If a row is no valid trace, or `change` drops, adds or renames trials.
    """
    path = Path(path)
    if path.suffix == ".parquet":
        return _rewrite_parquet(path, change)
    if path.suffix != ".jsonl":
        raise ValueError(f"traces are .jsonl or .parquet files; got {path}")
    lock = open_locked(path)
    try:
        return _rewrite_shard(path, change)
    finally:
        os.close(lock)


def _rewrite_shard(path: Path, change: Change) -> int:
    beside = path.with_name(f".{path.stem}-{secrets.token_hex(4)}.partial")
    num_changed = 0
    try:
        with beside.open("x", encoding="utf-8") as file:
            for before, after in _changed(path, change):
                num_changed += sum(one != other for one, other in zip(before, after, strict=True))
                file.writelines(trace_to_json(trace) + "\n" for trace in after)
            file.flush()
            os.fsync(file.fileno())
        if num_changed:
            os.chmod(beside, path.stat().st_mode)
            os.replace(beside, path)
            flush_folder(path.parent)
    finally:
        beside.unlink(missing_ok=True)
    return num_changed


def _rewrite_parquet(path: Path, change: Change) -> int:
    tables, num_changed = [], 0
    for before, after in _changed(path, change):
        num_changed += sum(one != other for one, other in zip(before, after, strict=True))
        tables.append(columns_from_traces(after))
    if num_changed:
        write_parquet(pa.concat_tables(tables) if tables else SCHEMA.empty_table(), path)
    return num_changed


def _changed(path: Path, change: Change) -> Iterator[tuple[list[Trace], list[Trace]]]:
    """Yield a batch of traces and what it becomes."""
    runs: dict[str, Settings] = {}
    batch: list[Trace] = []
    for trace in iter_traces(path, runs):
        batch.append(trace)
        if len(batch) == _BATCH_LEN:
            yield batch, _apply(batch, change)
            batch = []
    if batch:
        yield batch, _apply(batch, change)


def _apply(batch: list[Trace], change: Change) -> list[Trace]:
    changed = list(change(batch))
    if [trace.key for trace in changed] != [trace.key for trace in batch]:
        raise ValueError("a change must return the same trials in the same order")
    return changed
