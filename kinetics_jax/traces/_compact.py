"""Shards to one small Parquet file, written beside its target and renamed when complete."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ._columns import COLUMNS, Source, read_columns, trace_files
from ._read_tables import list_files

_KEY = ("run", "problem", "trial")
_ORDER = ("task", "problem", "model", "attention", "run", "trial")
_TOKENS = ("prompt_ids", "output_ids")


def compact(sources: Source | Sequence[Source], target: str | os.PathLike[str]) -> int:
    """Write all traces of `sources` into one Parquet file (zstd, small integers) and return their number.

    The target holds the fields of `Trace` and the columns `prompt_len` and `gen_len`, so that `read_tables` need not
    open the token ids. Sources are left as they are.

    Args:
        sources: .jsonl or .parquet files or folders of them.
        target: The .parquet file to write; an existing one is replaced only when the new one is complete.

    Raises:
        FileNotFoundError: If a source does not exist.
        OSError: If the target cannot be written.
        ValueError: If a row is not valid, a trial occurs twice, or there is none.
    """
    target = Path(target)
    if target.suffix != ".parquet":
        raise ValueError(f"the target of compact must end in .parquet; got {target}")
    files = trace_files(sources)
    table = pa.concat_tables([read_columns(path) for path in files])
    if not table.num_rows:
        raise ValueError(f"no traces in {list_files(files)}: every file is empty")
    _require_unique(table, files)
    table = table.sort_by([(name, "ascending") for name in _ORDER])
    _write(_narrow(table), target)
    return table.num_rows


def _require_unique(table: pa.Table, files: Sequence[Path]) -> None:
    counts = table.group_by(list(_KEY)).aggregate([([], "count_all")])
    if counts.num_rows < table.num_rows:
        row = counts.sort_by([("count_all", "descending")]).slice(0, 1).to_pylist()[0]
        raise ValueError(
            f"run {row['run']!r}, problem {row['problem']!r}, trial {row['trial']} occurs {row['count_all']} times in "
            f"{list_files(files)}. Leave out the file that repeats it."
        )


def _narrow(table: pa.Table) -> pa.Table:
    """Store token ids in the smallest unsigned type that holds them."""
    for name in _TOKENS:
        highest = max((chunk.values.to_numpy().max(initial=0) for chunk in table[name].chunks), default=0)
        token = pa.uint8() if highest < 2**8 else pa.uint16() if highest < 2**16 else pa.int32()
        table = table.set_column(table.column_names.index(name), name, table[name].cast(pa.list_(token)))
    return table.select(COLUMNS)


def _write(table: pa.Table, target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, beside = tempfile.mkstemp(prefix=f".{target.stem}-", suffix=".partial", dir=target.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                pq.write_table(
                    table,
                    file,
                    compression="zstd",
                    compression_level=19,
                    row_group_size=1 << 20,
                    data_page_size=1 << 24,
                    use_dictionary=True,
                    write_page_checksum=True,
                )
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, target)
        except BaseException:
            os.unlink(beside)
            raise
    except OSError as error:
        raise OSError(error.errno, f"cannot write compacted traces ({error.strerror})", str(target)) from error
