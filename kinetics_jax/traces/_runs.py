"""A run has one model, task, attention, sampling, limit and seed; whoever reads or writes rows holds it to that.

The revision of a task is one of these settings where it is known: rows from before it was recorded go with any.
"""

from collections.abc import Iterable

import pyarrow as pa

from ._schema import Trace

RUN_FIELDS = ("model", "weights_hash", "task", "attention", "sampling", "max_gen_len", "seed", "task_revision")
Settings = tuple[object, ...]


def settings_of(trace: Trace) -> Settings:
    """Return what all trials of the trace's run must share."""
    return tuple(getattr(trace, name) for name in RUN_FIELDS)


def require_same_settings(run: str, was: Settings, now: Settings) -> None:
    """Raise ValueError, naming what changed, if the settings of a run differ."""
    if was == now:
        return
    changes = ", ".join(
        f"{name} {old!r} became {new!r}"
        for name, old, new in zip(RUN_FIELDS, was, now, strict=True)
        if old != new and not (name == "task_revision" and None in (old, new))
    )
    if changes:
        raise ValueError(f"run {run!r} changed: {changes}. Give the new run another name.")


def require_steady_runs(traces: Iterable[Trace]) -> None:
    """Raise ValueError for the first trace whose run has other settings than before."""
    runs: dict[str, Settings] = {}
    for trace in traces:
        now = settings_of(trace)
        require_same_settings(trace.run, runs.setdefault(trace.run, now), now)


def changed_run(table: pa.Table) -> str | None:
    """Return what is wrong with the first run that has several settings, if one has.

    Args:
        table: Has the columns "run" and `RUN_FIELDS`.
    """
    seen: dict[str, Settings] = {}
    for row in table.group_by(["run", *RUN_FIELDS], use_threads=False).aggregate([]).to_pylist():
        now = tuple(row[name] for name in RUN_FIELDS)
        try:
            require_same_settings(row["run"], seen.setdefault(row["run"], now), now)
        except ValueError as error:
            return str(error)
    return None
