"""Collect several runs behind one progress display; shared by the commands that sample."""

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from checkpoints_conversion import HfTokenizer
from kinetics_jax import collect
from kinetics_jax.cost import eflops, prefill_cost, request_cost
from kinetics_jax.sampling import BudgetForcing
from kinetics_jax.specs import AttentionSpec, HardwareSpec, ModelSpec, Strategy
from kinetics_jax.tasks import Problem

from ._app import console

_END_THINK = "</think>"
_CLOSING = f"\n{_END_THINK}\n\n"


def shard_path(collector: collect.Collector, out: Path, shard: collect.Shard | None = None) -> Path:
    """Return the file of a run: one a (model, attention), and a part of it where problems are shared out."""
    parts = [collector.model_name, str(collector.attention), *([] if shard is None else [str(shard)])]
    return out / f"{'-'.join(parts).replace(':', '-').replace('/', '-')}.jsonl"


def price_of(model: ModelSpec, attention: AttentionSpec, hardware: HardwareSpec, num_trials: int) -> collect.Price:
    """Return what one trial costs [eFLOP]: its decode steps and its share of the prompt, both of `num_trials`."""

    @lru_cache(maxsize=1 << 16)
    def price(prompt_len: int, gen_len: int) -> float:
        bill = request_cost(model, attention, prompt_len=prompt_len, gen_len=gen_len, num_trials=num_trials)
        prompt = prefill_cost(model, attention, prompt_len=prompt_len)
        return float(eflops(bill + prompt, hardware)) / num_trials

    return price


def budget_forcing(tokenizer: HfTokenizer, think_len: int, max_gen_len: int) -> BudgetForcing:
    """Return the rule that closes a thought after `think_len` tokens and leaves the rest of the limit to the answer.

    Raises:
        ValueError: If the model has no token that ends a thought, or the limit leaves no room for an answer.
    """
    end_think_id = tokenizer.backend.token_to_id(_END_THINK)
    if end_think_id is None:
        raise ValueError(f"--think-len needs a model with the token {_END_THINK}; this one has none")
    closing_ids = tuple(tokenizer.backend.encode(_CLOSING, add_special_tokens=False).ids)
    answer_len = max_gen_len - think_len - len(closing_ids)
    if answer_len < 1:
        raise ValueError(
            f"--think-len {think_len} and the {len(closing_ids)} tokens that close the thought leave no answer within "
            f"--max-gen-len {max_gen_len}. Use {max_gen_len - len(closing_ids) - 1} or less."
        )
    return BudgetForcing(think_len=think_len, closing_ids=closing_ids, end_think_id=end_think_id, answer_len=answer_len)


def collect_with_bars(
    collectors: Sequence[collect.Collector],
    problems: Sequence[Problem],
    strategy: Strategy,
    out: Path,
    *,
    shard: collect.Shard | None = None,
) -> list[collect.CollectReport]:
    """Collect every run into a shard of its own under `out` and return what was done."""
    reports = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[state]}"))
    with Progress(*columns, console=console) as bars, _stopped_gently():
        total = len(problems) * strategy.num_trials
        rows = [
            bars.add_task(f"{each.model_name} {each.attention}", total=total, state="waiting", start=False)
            for each in collectors
        ]
        for collector, row in zip(collectors, rows, strict=True):
            bars.start_task(row)
            bars.update(row, state="compiling")
            try:
                report = collector.collect(
                    problems, strategy, shard_path(collector, out, shard), on_progress=partial(_show, bars, row)
                )
            except KeyboardInterrupt as error:
                bars.stop()
                console.print(f"Interrupted: {error}.", markup=False, highlight=False, soft_wrap=True)
                raise
            if not report.num_written:
                bars.update(row, completed=report.num_there, state="already there")
            reports.append(report)
    for problem, said in {each: said for report in reports for each, said in report.failed.items()}.items():
        console.print(f"Warning: {problem}: {said}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    return reports


@contextmanager
def _stopped_gently() -> Iterator[None]:
    """Take SIGTERM, by which clusters end a job, for Ctrl-C: what is finished is written first."""
    if threading.current_thread() is not threading.main_thread():  # where no signal can be caught
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _show(bars: Progress, row: TaskID, progress: collect.Progress) -> None:
    parts = [f"{progress.num_tokens:,} tokens", f"{progress.tokens_per_s:,.0f}/s"]
    if progress.eflops is not None:
        parts.append(f"{progress.eflops:.2e} eFLOP")
    if progress.seconds_left:
        parts.append(f"{_clock(progress.seconds_left)} left")
    bars.update(row, completed=progress.num_done, state=", ".join(parts))


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
