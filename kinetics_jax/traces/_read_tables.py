"""From rows to padded tables, one a (task, model, attention), by whole columns: a million rows take seconds."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from ._columns import Source, read_columns, trace_files
from ._table import TraceTable

_GROUP = ("task", "model", "attention")
_CONSTANT = ("weights_hash", "sampling", "max_gen_len")
_NUMBERS = ("difficulty", "trial", "max_gen_len", "prompt_len", "gen_len")
_TEXTS = (*_GROUP, "weights_hash", "sampling", "run", "problem")
_COLUMNS = ("solved_len", *_NUMBERS, *_TEXTS)


def read_tables(source: Source | Sequence[Source]) -> list[TraceTable]:
    """Read traces into one table a (task, model, attention).

    Trials of several runs of one configuration are pooled, ordered by (run, trial). Token ids are not read from
    Parquet, so 65,000 rows take a fraction of a second.

    Args:
        source: A .jsonl or .parquet file, a folder (searched deeply for both), or a sequence of such paths.

    Returns:
        The tables, sorted by task, model and attention; within a table problems are sorted by name.

    Raises:
        FileNotFoundError: If a path does not exist.
        ValueError: If there is no trace, a row is not valid, a trial occurs twice, a problem changes its difficulty
            or prompt length, or one configuration was recorded with several weights, samplings or limits.
    """
    files = trace_files(source)
    table = pa.concat_tables([read_columns(path, _COLUMNS) for path in files])
    if not table.num_rows:
        raise ValueError(f"no traces in {', '.join(map(str, files))}: every file is empty")
    return tables_from_columns(table, files)


def tables_from_columns(table: pa.Table, files: Sequence[Path]) -> list[TraceTable]:
    """Build the tables of checked columns; `files` are named in errors."""
    rows: dict[str, np.ndarray] = {name: table[name].to_numpy() for name in _NUMBERS}
    rows["solved_len"] = table["solved_len"].cast(pa.float64()).fill_null(np.inf).to_numpy()
    names: dict[str, np.ndarray] = {}
    for name in _TEXTS:
        names[name], rows[name] = _ranks(table[name])
    group = _joint_rank(*(rows[name] for name in _GROUP))
    order = np.argsort(group, kind="stable")
    bounds = np.flatnonzero(np.diff(group[order], prepend=-1))
    parts = np.split(order, bounds[1:])
    return [_build({name: values[part] for name, values in rows.items()}, names, files) for part in parts]


def _build(rows: dict[str, np.ndarray], names: dict[str, np.ndarray], files: Sequence[Path]) -> TraceTable:
    """Scatter the rows of one configuration into arrays [Q, R]."""
    labels = {name: str(names[name][rows[name][0]]) for name in _GROUP}
    where = f"{labels['model']}, {labels['attention']}, {labels['task']} in {list_files(files)}"
    for name in _CONSTANT:
        if (rows[name] != rows[name][0]).any():
            values = np.unique(rows[name])
            shown = [str(names[name][value]) if name in names else int(value) for value in values]
            raise ValueError(f"{name} must be one for {where}; got {shown}. Read these runs apart from each other.")
    problem_ids, q = np.unique(rows["problem"], return_inverse=True)
    trial_ids, r = np.unique(_joint_rank(rows["run"], rows["trial"]), return_inverse=True)
    shape = len(problem_ids), len(trial_ids)
    counts = np.bincount(q * shape[1] + r, minlength=shape[0] * shape[1])
    if counts.max() > 1:
        row = np.flatnonzero(counts[q * shape[1] + r] > 1)[0]
        run, problem = (str(names[name][rows[name][row]]) for name in ("run", "problem"))
        raise ValueError(
            f"run {run!r}, problem {problem!r}, trial {rows['trial'][row]} occurs more than once for {where}. "
            "Read either the shards or the file compacted from them."
        )
    per_problem = {}
    for name in ("difficulty", "prompt_len"):
        per_problem[name] = np.zeros(shape[0], np.int64)
        per_problem[name][q] = rows[name]
        wrong = np.flatnonzero(per_problem[name][q] != rows[name])
        if wrong.size:
            problem = str(names["problem"][rows["problem"][wrong[0]]])
            raise ValueError(f"{name} of problem {problem!r} changes between trials of {where}")
    gen_len, solved_len, mask = np.zeros(shape, np.int64), np.full(shape, np.inf), np.zeros(shape, bool)
    gen_len[q, r], solved_len[q, r], mask[q, r] = rows["gen_len"], rows["solved_len"], True
    return TraceTable(
        model=labels["model"],
        attention=labels["attention"],
        task=labels["task"],
        max_gen_len=int(rows["max_gen_len"][0]),
        problems=tuple(map(str, names["problem"][problem_ids])),
        difficulty=per_problem["difficulty"],
        prompt_len=per_problem["prompt_len"],
        gen_len=gen_len,
        solved_len=solved_len,
        mask=mask,
        weights_hash=str(names["weights_hash"][rows["weights_hash"][0]]),
        sampling=str(names["sampling"][rows["sampling"][0]]),
    )


def _ranks(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Return the sorted distinct texts and the rank of each row's text among them."""
    encoded = column.dictionary_encode().combine_chunks()
    texts = np.array(encoded.dictionary.to_pylist(), dtype=object)
    order = np.argsort(texts)
    rank = np.empty(len(texts), np.int64)
    rank[order] = np.arange(len(texts))
    return texts[order], rank[encoded.indices.to_numpy()]


def _joint_rank(*columns: np.ndarray) -> np.ndarray:
    """Return one integer a row that sorts as the tuple of columns does."""
    rank = np.zeros(len(columns[0]), np.int64)
    for column in columns:
        rank = rank * (int(column.max()) + 1) + column
    return rank


def list_files(files: Sequence[Path]) -> str:
    """Return the first three names for an error message, and how many more there are."""
    shown = ", ".join(map(str, files[:3]))
    return f"{shown} and {len(files) - 3} more" if len(files) > 3 else shown
