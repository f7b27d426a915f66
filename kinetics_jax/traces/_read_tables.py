"""From rows to padded tables, one a (task, model, attention), by whole columns: a million rows take seconds."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from ._columns import read_columns
from ._files import Source, list_files, trace_files
from ._table import TraceTable

_GROUP = ("task", "model", "attention")
_CONSTANT = ("weights_hash", "sampling", "max_gen_len")
_NUMBERS = ("difficulty", "trial", "max_gen_len", "prompt_len", "gen_len")
_TEXTS = (*_GROUP, "weights_hash", "sampling", "task_revision", "run", "problem")
_COLUMNS = ("solved_len", *_NUMBERS, *_TEXTS)


def read_tables(source: Source | Sequence[Source], *, answers: bool = False) -> list[TraceTable]:
    """Read traces into one table a (task, model, attention).

    Trials of several runs of one configuration are pooled, ordered by (run, trial). Token ids are not read from
    Parquet, so 65,000 rows take a fraction of a second.

    Args:
        source: A .jsonl or .parquet file, a folder (searched deeply for both), or a sequence of such paths.
        answers: Whether to read the final answers, too, for majority voting.

    Returns:
        The tables, sorted by task, model and attention; within a table problems are sorted by name.

    Raises:
        FileNotFoundError: If a path does not exist.
        ValueError: If there is no trace, a row is not valid, a run changes its settings, a trial occurs twice, a
            problem changes its difficulty or prompt length, or one configuration was recorded with several weights,
            samplings, limits or revisions of the task.
    """
    files = trace_files(source)
    table = read_columns(files, (*_COLUMNS, "answer") if answers else _COLUMNS)
    rows: dict[str, np.ndarray] = {name: table[name].to_numpy() for name in _NUMBERS}
    rows["solved_len"] = table["solved_len"].cast(pa.float64()).fill_null(np.inf).to_numpy()
    names: dict[str, np.ndarray] = {}
    for name in _TEXTS:
        names[name], rows[name] = ranks(table[name])
    if answers:
        rows["answer"] = ranks(table["answer"])[1]
    group = joint_rank(*(rows[name] for name in _GROUP))
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
    _require_one_revision(rows["task_revision"], names["task_revision"], where)
    problem_ids, q = np.unique(rows["problem"], return_inverse=True)
    trial_ids, r = np.unique(joint_rank(rows["run"], rows["trial"]), return_inverse=True)
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
    answer = None
    if "answer" in rows:
        answer = np.full(shape, -1, np.int64)
        answer[q, r] = _number_within(q, rows["answer"])
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
        answer=answer,
    )


def _require_one_revision(rank: np.ndarray, revisions: np.ndarray, where: str) -> None:
    """Refuse scores of several graders or versions of the problems; rows that tell none (-1) go with any."""
    known = np.unique(rank[rank >= 0])
    if len(known) > 1:
        raise ValueError(
            f"task_revision must be one for {where}; got {[str(name) for name in revisions[known]]}. "
            "Grade them anew with one version (kinetics grade), or read these runs apart from each other."
        )


def _number_within(group: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """Number the distinct ranks of each group from 0, in their order; a negative rank stays -1."""
    number = np.full(len(rank), -1, np.int64)
    has_rank = rank >= 0
    if has_rank.any():
        num_ranks = int(rank.max()) + 1
        pairs, pair = np.unique(group[has_rank] * num_ranks + rank[has_rank], return_inverse=True)
        first_of_group = np.searchsorted(pairs, group[has_rank] * num_ranks)
        number[has_rank] = pair - first_of_group
    return number


def ranks(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Return the sorted distinct texts and the rank of each row's text among them, -1 for a null."""
    encoded = column.dictionary_encode().combine_chunks()
    texts = np.array(encoded.dictionary.to_pylist(), dtype=object)
    order = np.argsort(texts)
    rank = np.empty(len(texts), np.int64)
    rank[order] = np.arange(len(texts))
    indices = encoded.indices.fill_null(-1).to_numpy()
    return texts[order], np.where(indices < 0, -1, rank[indices]) if len(texts) else indices.astype(np.int64)


def joint_rank(*columns: np.ndarray) -> np.ndarray:
    """Return one integer a row that sorts as the tuple of columns does."""
    rank = np.zeros(len(columns[0]), np.int64)
    for column in columns:
        rank = rank * (int(column.max()) + 1) + column
    return rank
