"""Traces to one small Parquet file, written beside its target and renamed when complete."""

import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ._columns import columns_from_traces, read_columns
from ._files import Source, list_files, trace_files
from ._runs import require_steady_runs
from ._schema import FIELDS, KEY, LEN_OF, Trace
from ._writer import flush_folder

_ORDER = ("task", "problem", "model", "attention", "run", "trial")


def compact(sources: Source | Sequence[Source], target: str | os.PathLike[str]) -> int:
    """Write all traces of `sources` into one Parquet file (zstd, small integers) and return their number.

    The target holds the fields of `Trace`, a column each, so that `read_tables` need not open the token ids. Rows of
    older versions are written in the newest. Sources are left as they are.

    Args:
        sources: .jsonl or .parquet files or folders of them.
        target: The .parquet file to write; an existing one is replaced only when the new one is complete.

    Raises:
        FileNotFoundError: If a source does not exist.
        OSError: If the target cannot be written.
        ValueError: If a row is not valid, a trial occurs twice, a run changes its settings, or there is no row.
    """
    files = trace_files(sources)
    return _pack(lambda: read_columns(files), target, f" in {list_files(files)}. Leave out the file that repeats it.")


def write_traces(traces: Sequence[Trace], target: str | os.PathLike[str]) -> int:
    """Write traces into one Parquet file, as `compact` does, and return their number.

    Args:
        traces: What to write, in any order.
        target: The .parquet file to write; an existing one is replaced only when the new one is complete.

    Raises:
        OSError: If the target cannot be written.
        ValueError: If a trial occurs twice, a run changes its settings, or there is no trace.
    """
    if not traces:
        raise ValueError(f"no traces to write to {target}")
    require_steady_runs(traces)
    return _pack(lambda: columns_from_traces(traces), target, ". Give its run another name.")


def _pack(read: Callable[[], pa.Table], target: str | os.PathLike[str], way_out: str) -> int:
    target = Path(target)
    if target.suffix != ".parquet":
        raise ValueError(f"the target must end in .parquet; got {target}")
    table = read()
    _require_unique(table, way_out)
    table = table.sort_by([(name, "ascending") for name in _ORDER])
    write_parquet(table, target)
    return table.num_rows


def _require_unique(table: pa.Table, way_out: str) -> None:
    counts = table.group_by(list(KEY)).aggregate([([], "count_all")])
    if counts.num_rows < table.num_rows:
        row = counts.sort_by([("count_all", "descending")]).slice(0, 1).to_pylist()[0]
        raise ValueError(
            f"run {row['run']!r}, problem {row['problem']!r}, trial {row['trial']} occurs {row['count_all']} times"
            f"{way_out}"
        )


def _narrow(table: pa.Table) -> pa.Table:
    """Store token ids in the smallest unsigned type that holds them."""
    for name in LEN_OF:
        highest = max((chunk.values.to_numpy().max(initial=0) for chunk in table[name].chunks), default=0)
        token = pa.uint8() if highest < 2**8 else pa.uint16() if highest < 2**16 else pa.int32()
        table = table.set_column(table.column_names.index(name), name, table[name].cast(pa.list_(token)))
    return table.select(FIELDS)


def write_parquet(table: pa.Table, target: Path) -> None:
    """Write the columns of traces beside the target, flush them, and rename.

    Raises:
        OSError: If the target cannot be written.
    """
    table = _narrow(table)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Not by tempfile: it makes files that nobody else may read.
        beside = target.with_name(f".{target.stem}-{secrets.token_hex(4)}.partial")
        try:
            with beside.open("xb") as file:
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
            flush_folder(target.parent)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(error.errno, f"cannot write compacted traces ({error.strerror})", str(target)) from error
