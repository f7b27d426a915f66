"""Collect several runs behind one progress display; shared by the commands that sample."""

from collections.abc import Sequence
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from kinetics_jax import collect
from kinetics_jax.specs import AttentionSpec, BestOfN, SamplingSpec
from kinetics_jax.tasks import Problem, Task
from kinetics_jax.zoo import ZooModel

from ._app import console


def collector_for(
    loaded: ZooModel,
    task: Task,
    attention: AttentionSpec,
    *,
    seed: int,
    batch_problems: int,
    sampling: SamplingSpec | None = None,
    page_len: int | None = None,
) -> collect.Collector:
    """Return the collector of one loaded model under one attention spec."""
    return collect.Collector(
        model=loaded.model,
        model_name=loaded.model.spec.name,
        weights_hash=loaded.weights_hash,
        task=task,
        attention=attention,
        sampling=sampling or SamplingSpec(),
        seed=seed,
        batch_problems=batch_problems,
        page_len=getattr(attention, "page_len", page_len),
    )


def collect_with_bars(
    collectors: Sequence[collect.Collector], problems: Sequence[Problem], strategy: BestOfN, out: Path
) -> dict[str, float]:
    """Collect every run into a shard of its own under `out` and return tokens per second by run, compilation included.

    Runs that are complete already are passed over quickly and have no rate.
    """
    total = len(problems) * strategy.num_trials
    rates: dict[str, float] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[rate]}"), console=console) as bars:
        rows = [
            bars.add_task(f"{each.model_name} {each.attention}", total=total, rate="waiting", start=False)
            for each in collectors
        ]
        for collector, row in zip(collectors, rows, strict=True):
            bars.start_task(row)
            bars.update(row, rate="compiling")

            def show(progress: collect.Progress, row=row, run=collector.run) -> None:
                rates[run] = progress.num_tokens / progress.seconds
                bars.update(row, completed=progress.num_done, rate=f"{rates[run]:,.0f} tokens/s")

            shard = out / f"{collector.model_name}-{str(collector.attention).replace(':', '-')}.jsonl"
            try:
                num_written = collector.collect(problems, strategy, shard, on_progress=show)
            except KeyboardInterrupt:
                bars.stop()
                console.print(f"Interrupted. The trials shown as done are safe in {out}; the same command goes on.")
                raise
            if not num_written:
                bars.update(row, rate="already there")
            bars.update(row, completed=total)
    return rates
