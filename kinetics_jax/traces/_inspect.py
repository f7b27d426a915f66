"""What is in these files? One summary a (task, model, attention), by whole columns."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ._columns import read_columns
from ._files import Source, trace_files
from ._read_tables import joint_rank, ranks
from ._schema import FINISH_REASONS

_GROUP = ("task", "model", "attention")
_TEXTS = (*_GROUP, "run", "problem", "finish_reason")
_COUNTS = ("trial", "prompt_len", "gen_len", "max_gen_len")


@dataclass(frozen=True, kw_only=True)
class TraceSummary:
    """Describe the trials of one task, model and attention.

    Attributes:
        task: Name of the task.
        model: Name of the model.
        attention: Text form of the attention spec.
        num_rows: Trials in all.
        num_runs: Runs that they are from.
        num_problems: Problems that were tried.
        min_trials: Trials of the problem that has fewest.
        max_trials: Trials of the problem that has most.
        accuracy: Share of right trials, averaged over problems; ungradable ones count as not right.
        num_ungradable: Trials without a score.
        max_gen_len: Largest limit on generated tokens under which they ran [tokens].
        mean_prompt_len: Mean prompt length [tokens].
        mean_gen_len: Mean generated length [tokens].
        median_gen_len: Median generated length [tokens].
        longest_gen_len: Largest generated length [tokens].
        finish_reasons: Trials by why they ended; reasons that none has are left out.
    """

    task: str
    model: str
    attention: str
    num_rows: int
    num_runs: int
    num_problems: int
    min_trials: int
    max_trials: int
    accuracy: float
    num_ungradable: int
    max_gen_len: int
    mean_prompt_len: float
    mean_gen_len: float
    median_gen_len: float
    longest_gen_len: int
    finish_reasons: dict[str, int]


def inspect_traces(source: Source | Sequence[Source]) -> list[TraceSummary]:
    """Summarise the traces of a file, a folder or several of them.

    Args:
        source: A .jsonl or .parquet file, a folder (searched deeply for both), or a sequence of such paths.

    Returns:
        One summary a (task, model, attention), sorted. Repeated trials are counted as often as they are there:
        `verify_traces` finds them.

    Raises:
        FileNotFoundError: If a path does not exist.
        ValueError: If there is no trace, a row is not valid, or a run changes its settings; names file and line.

    Example:
        >>> from importlib.resources import files
        >>> summaries = inspect_traces(str(files("kinetics_jax") / "zoo" / "traces" / "Kinetics-Mini-7M.parquet"))
        >>> summaries[-1].attention, summaries[-1].num_problems, summaries[-1].max_trials
        ('topk:64', 80, 16)
    """
    table = read_columns(trace_files(source), (*_TEXTS, *_COUNTS, "score"))
    rows = {name: table[name].to_numpy() for name in _COUNTS}
    rows["score"] = table["score"].fill_null(np.nan).to_numpy()
    names = {}
    for name in _TEXTS:
        names[name], rows[name] = ranks(table[name])
    group = joint_rank(*(rows[name] for name in _GROUP))
    order = np.argsort(group, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(group[order])) + 1)
    return [_summarise({name: values[part] for name, values in rows.items()}, names) for part in parts]


def _summarise(rows: dict[str, np.ndarray], names: dict[str, np.ndarray]) -> TraceSummary:
    task, model, attention = (str(names[name][rows[name][0]]) for name in _GROUP)
    _, problem, num_trials = np.unique(rows["problem"], return_inverse=True, return_counts=True)
    num_right = np.bincount(problem, weights=rows["score"] == 1)
    reasons = names["finish_reason"][rows["finish_reason"]]
    counts = {reason: int((reasons == reason).sum()) for reason in FINISH_REASONS}
    return TraceSummary(
        task=task,
        model=model,
        attention=attention,
        num_rows=len(problem),
        num_runs=len(np.unique(rows["run"])),
        num_problems=len(num_trials),
        min_trials=int(num_trials.min()),
        max_trials=int(num_trials.max()),
        accuracy=float((num_right / num_trials).mean()),
        num_ungradable=int(np.isnan(rows["score"]).sum()),
        max_gen_len=int(rows["max_gen_len"].max()),
        mean_prompt_len=float(rows["prompt_len"].mean()),
        mean_gen_len=float(rows["gen_len"].mean()),
        median_gen_len=float(np.median(rows["gen_len"])),
        longest_gen_len=int(rows["gen_len"].max()),
        finish_reasons={reason: count for reason, count in counts.items() if count},
    )
