"""What a collection would take, before it starts: counts of `collect`, times and prices of the cost model."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import typer

from kinetics_jax.collect import Collector, Estimate, Shard
from kinetics_jax.cost import prefill_cost, seconds, throughput
from kinetics_jax.specs import HARDWARE, Strategy
from kinetics_jax.tasks import Problem

from ._output import print_json, print_table
from ._sampling import shard_path


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """Tell what one run would take on one chip at the most, every thought taken to run to its limit.

    Attributes:
        run: Name of the run in the traces.
        counts: Trials, tokens and eFLOPs.
        hardware: The chip.
        tokens_per_s: Rate of its roofline with as many trials at a time as there are slots, or as fit.
        seconds: Time of prompts and tokens at that rate [s]; a real chip takes longer.
        dollars: Its rent; None where the chip has no public price.
    """

    run: str
    counts: Estimate
    hardware: str
    tokens_per_s: float
    seconds: float
    dollars: float | None


def dry_run(
    collector: Collector, problems: Sequence[Problem], strategy: Strategy, shard: Path, *, hardware: str
) -> DryRun:
    """Estimate one run; nothing is sampled or written.

    Raises:
        ValueError: As `Collector.estimate`, or if the chip cannot hold one sequence.
    """
    counts = collector.estimate(problems, strategy, shard)
    chip, model = HARDWARE[hardware], collector.model.spec
    mean_len = max(1, round(counts.num_prompt_tokens / max(1, -(-counts.num_trials // strategy.num_trials))))
    gen_len = max(1, counts.max_tokens // max(1, counts.num_trials))
    stream = partial(throughput, model, collector.attention, chip, prompt_len=mean_len, gen_len=gen_len)
    batch_size = min(float(collector.num_slots), float(stream().batch_size))
    rate = float(stream(batch_size=batch_size).tokens_per_s)
    prompts = prefill_cost(model, collector.attention, prompt_len=mean_len, batch_size=1)
    prompt_s = counts.num_prompt_tokens / mean_len * float(seconds(prompts, chip))
    taken_s = counts.max_tokens / rate + prompt_s
    return DryRun(
        run=collector.run,
        counts=counts,
        hardware=hardware,
        tokens_per_s=rate,
        seconds=taken_s,
        dollars=None if chip.dollars_per_hour is None else taken_s / 3600 * chip.dollars_per_hour,
    )


def print_dry_runs(
    collectors: Sequence[Collector],
    problems: Sequence[Problem],
    strategy: Strategy,
    out: Path,
    *,
    shard: Shard | None,
    hardware: str,
    as_json: bool,
) -> None:
    """Print what each run would take."""
    runs = [dry_run(each, problems, strategy, shard_path(each, out, shard), hardware=hardware) for each in collectors]
    if as_json:
        print_json(
            [{**asdict(run), "counts": {**asdict(run.counts), "failed": dict(run.counts.failed)}} for run in runs]
        )
        return
    rows = [
        (
            str(collector.attention),
            f"{run.counts.num_there:,}",
            f"{run.counts.num_trials:,}",
            f"{run.counts.max_tokens:,}",
            f"{run.counts.max_eflops or 0:.2e}",
            f"{run.seconds:.3g}",
            "-" if run.dollars is None else f"{run.dollars:.3g}",
        )
        for collector, run in zip(collectors, runs, strict=True)
    ]
    columns = ("attention", "there", "trials", "tokens", "eFLOP", "seconds", "dollars")
    print_table(f"{collectors[0].model_name} at most, on one {hardware}; nothing was sampled", columns, rows)
    for problem, said in {each: said for run in runs for each, said in run.counts.failed.items()}.items():
        typer.echo(f"{problem}: {said}")
