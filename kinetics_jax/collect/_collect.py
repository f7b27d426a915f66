"""Problems in, traces out: sample every trial of every problem once, grade it, and write it down for good.

Called by the command line and by notebooks. What is on disk is never sampled again, and a trial's tokens follow
from (seed, problem, trial) alone, so an interrupted run continues as if nothing had happened.
"""

import os
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import jax

from kinetics_jax.sampling import (
    BudgetForcing,
    Completion,
    Engine,
    LanguageModel,
    Repetition,
    Request,
    Stopping,
    spans_processes,
)
from kinetics_jax.specs import DEFAULT_PAGE_LEN, AttentionSpec, SamplingSpec, Strategy
from kinetics_jax.tasks import Grade, Problem, Task
from kinetics_jax.traces import Trace, TraceWriter, read_traces

from ._ledger import Ledger, Onlooker
from ._report import CollectReport, Estimate, Price, Progress
from ._todo import Trials, fitting_problems, missing_trials, num_trials_of, trials_of_first_process

_LONGEST_CHUNK = 512
"""Most prompt tokens computed at once, so that decoding does not wait for long [tokens]."""

ShowProgress = Callable[[Progress], None]


@dataclass(frozen=True, kw_only=True)
class Collector:
    """Sample problems with one model, attention and sampling.

    Attributes:
        model: The language model; on a mesh, the engine runs there. Where the mesh spans processes (`jax.distributed`),
            each collects with the same settings, and the first one grades and writes.
        model_name: Its name in the traces.
        weights_hash: Identifies its weights in the traces.
        task: Grades the answers, and says what ends one.
        attention: Which cache entries a decode step reads.
        sampling: How tokens are drawn.
        seed: Seed of the run.
        repetition: What counts as a loop, which ends a trial; None lets loops run on.
        time_s: Limit on the time spent on a trial [s]; None is no limit.
        closing: Budget forcing; None lets thoughts run on.
        num_slots: Trials in a batch.
        num_pages: Pages of the engine's pool; None is what the slots need, or what fits the device.
        page_len: Tokens in a page; None follows the attention spec.
        max_len: Longest prompt and thought together [tokens]; None is what the problems need.
        num_steps: Decode steps a call of the engine.
        chunk_len: Prompt tokens computed at once; None is the longest prompt, 512 at most.
        num_graders: Answers graded at a time.
        price: Cost of a trial, for reports of progress; None reports none.

    Raises:
        ValueError: If `num_graders` is below one.
    """

    model: LanguageModel
    model_name: str
    weights_hash: str
    task: Task
    attention: AttentionSpec
    sampling: SamplingSpec = field(default_factory=SamplingSpec)
    seed: int = 0
    repetition: Repetition | None = None
    time_s: float | None = None
    closing: BudgetForcing | None = None
    num_slots: int = 32
    num_pages: int | None = None
    page_len: int | None = None
    max_len: int | None = None
    num_steps: int = 16
    chunk_len: int | None = None
    num_graders: int = 4
    price: Price | None = None
    _engines: dict[tuple[int, int], Engine] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.num_graders < 1:
            raise ValueError(f"num_graders must be at least 1; got {self.num_graders}")

    @property
    def run(self) -> str:
        """Name of the run in the traces: everything that tells this collection from another."""
        parts = [self.task.name, self.model_name, str(self.attention), f"seed{self.seed}"]
        if self.closing is not None:
            parts.append(f"think{self.closing.think_len}+{self.closing.answer_len}")
        if self.repetition is not None:
            rule = self.repetition
            parts.append(f"repetition{rule.window_len}x{rule.block_len}x{rule.num_repeats}")
        if self.time_s is not None:
            parts.append(f"time{self.time_s:g}")
        return "/".join(parts)

    def collect(
        self,
        problems: Sequence[Problem],
        strategy: Strategy,
        out: str | os.PathLike[str],
        *,
        on_progress: ShowProgress | None = None,
    ) -> CollectReport:
        """Sample what the shard `out` does not hold yet; return when every trial is graded and on disk.

        Finished trials are written together after each call of the engine. Any interruption, Ctrl-C included, first
        grades and writes what is finished (a second Ctrl-C does not wait); the same call then goes on.

        Args:
            problems: What to ask; prompts may differ in length.
            strategy: Trials per problem and length limit.
            out: JSONL shard to append to; created with its folder if missing.
            on_progress: Called after each call of the engine, with what is on disk by then.

        Returns:
            What was done, with a sentence for each problem that could not be asked or graded.

        Raises:
            ValueError: If there is no problem, two have one id, none of them can be asked, or the shard holds another
                run of this name.
            OSError: If the shard cannot be written.
            KeyboardInterrupt: After Ctrl-C, with a sentence on how to go on.
        """
        is_shared = spans_processes(self.model.mesh)
        if is_shared and jax.process_index() > 0:
            return self._collect_beside(problems, strategy, Path(out))
        started = time.perf_counter()
        fitting, failed = fitting_problems(problems, strategy.max_gen_len, self._longest)
        num_total = len(problems) * strategy.num_trials
        with TraceWriter(out) as writer:
            todo = missing_trials(self.run, fitting, strategy.num_trials, writer.done_keys())
            if is_shared:
                trials_of_first_process(fitting, strategy.num_trials, todo)
            num_there = len(fitting) * strategy.num_trials - num_trials_of(todo)
            make_trace = partial(self._trace, max_gen_len=strategy.max_gen_len)
            ledger = Ledger(writer, self.task, make_trace, num_graders=self.num_graders, price=self.price)

            def show(num_tokens: int) -> None:
                if on_progress is not None:
                    progress = Progress(
                        num_done=num_there + ledger.num_written,
                        num_total=num_total,
                        num_written=ledger.num_written,
                        num_tokens=num_tokens,
                        seconds=time.perf_counter() - started,
                        eflops=ledger.eflops,
                    )
                    on_progress(progress)

            try:
                with ledger:
                    self._sample(todo, strategy, ledger, failed, show)
            except KeyboardInterrupt:
                done = num_there + ledger.num_written
                raise KeyboardInterrupt(f"{done} of {num_total} trials are in {out}; the same call goes on") from None
        if len(failed) == len(problems):
            raise ValueError(next(iter(failed.values())))
        return CollectReport(
            run=self.run,
            shard=Path(out),
            num_total=num_total,
            num_there=num_there,
            num_written=ledger.num_written,
            num_tokens=ledger.num_tokens,
            seconds=time.perf_counter() - started,
            eflops=ledger.eflops,
            failed=failed | ledger.failed,
        )

    def estimate(self, problems: Sequence[Problem], strategy: Strategy, out: str | os.PathLike[str]) -> Estimate:
        """Count what `collect` of the same arguments would do, every thought taken to run to its limit.

        Raises:
            ValueError: As `collect`.
        """
        fitting, failed = fitting_problems(problems, strategy.max_gen_len, self._longest)
        done = frozenset(trace.key for trace in read_traces(out)) if Path(out).exists() else frozenset()
        todo = missing_trials(self.run, fitting, strategy.num_trials, done)
        gen_len = strategy.max_gen_len if self.closing is None else min(strategy.max_gen_len, self.closing.max_gen_len)
        num_total, num_trials = len(problems) * strategy.num_trials, num_trials_of(todo)
        costs = None
        if self.price is not None:
            costs = [len(trials) * self.price(len(problem.prompt_ids), gen_len) for problem, trials in todo]
        return Estimate(
            num_total=num_total,
            num_there=len(fitting) * strategy.num_trials - num_trials,
            num_trials=num_trials,
            num_prompt_tokens=sum(len(problem.prompt_ids) for problem, _ in todo),
            max_tokens=num_trials * gen_len,
            max_eflops=None if costs is None else float(sum(costs)),
            failed=failed,
        )

    @property
    def _longest(self) -> int:
        return self.max_len or self.model.spec.max_len

    def _collect_beside(self, problems: Sequence[Problem], strategy: Strategy, out: Path) -> CollectReport:
        """Sample with the first process, which alone reads and writes the shard."""
        started = time.perf_counter()
        fitting, failed = fitting_problems(problems, strategy.max_gen_len, self._longest)
        todo, onlooker = trials_of_first_process(fitting, strategy.num_trials, []), Onlooker()
        num_there = len(fitting) * strategy.num_trials - num_trials_of(todo)
        self._sample(todo, strategy, onlooker, failed, lambda num_tokens: None)
        return CollectReport(
            run=self.run,
            shard=out,
            num_total=len(problems) * strategy.num_trials,
            num_there=num_there,
            num_written=onlooker.num_written,
            num_tokens=onlooker.num_tokens,
            seconds=time.perf_counter() - started,
            eflops=None,
            failed=failed,
        )

    def _sample(
        self,
        todo: Trials,
        strategy: Strategy,
        ledger: Ledger | Onlooker,
        failed: dict[str, str],
        show: Callable[[int], None],
    ) -> None:
        """Feed the engine, a batch or two ahead of what it decodes, and hand on who finishes."""
        if not todo:
            return
        settings = self._sizes(todo, strategy)
        engine = self._engines.pop(settings, None) or self._make_engine(*settings)
        before, num_inside, has_more = engine.stats.num_tokens, 0, True
        requests = self._requests(todo, strategy, failed)
        while has_more or num_inside:
            while has_more and num_inside < 3 * self.num_slots:
                request = next(requests, None)
                if request is None:
                    has_more = False
                else:
                    num_inside += _submit(engine, request, failed)
            if num_inside:
                finished = engine.step()
                num_inside -= len(finished)
                ledger.add([(_problem(completion.request), completion) for completion in finished])
                show(engine.stats.num_tokens - before)
        ledger.finish()
        show(engine.stats.num_tokens - before)
        self._engines[settings] = engine  # compiled, idle, whole: an interrupted one would not be

    def _requests(self, todo: Trials, strategy: Strategy, failed: dict[str, str]) -> Iterator[Request]:
        run_key = jax.random.key(self.seed)
        for problem, trials in todo:
            key = jax.random.fold_in(run_key, zlib.crc32(problem.id.encode()))
            for trial in trials:
                if problem.id not in failed:
                    yield Request(
                        prompt_ids=problem.prompt_ids,
                        key=key,
                        trial=trial,
                        max_gen_len=strategy.max_gen_len,
                        attention=self.attention,
                        tag=problem,
                    )

    def _sizes(self, todo: Trials, strategy: Strategy) -> tuple[int, int]:
        """Return `max_len` and `chunk_len` of the engine."""
        longest = max(len(problem.prompt_ids) for problem, _ in todo)
        page_len = self.page_len or getattr(self.attention, "page_len", DEFAULT_PAGE_LEN)
        num_pages = -(-(longest + strategy.max_gen_len) // page_len)
        max_len = self.max_len or min(num_pages * page_len, self.model.spec.max_len)
        return max_len, self.chunk_len or min(longest, _LONGEST_CHUNK)

    def _make_engine(self, max_len: int, chunk_len: int) -> Engine:
        return Engine(
            self.model,
            attentions=(self.attention,),
            sampling=self.sampling,
            stopping=Stopping(
                stop_ids=self.task.stop_ids, repetition=self.repetition, time_s=self.time_s, closing=self.closing
            ),
            num_slots=self.num_slots,
            max_len=max_len,
            num_pages=self.num_pages,
            page_len=self.page_len,
            num_steps=self.num_steps,
            chunk_len=chunk_len,
        )

    def _trace(self, problem: Problem, completion: Completion, grade: Grade, *, max_gen_len: int) -> Trace:
        return Trace(
            run=self.run,
            model=self.model_name,
            weights_hash=self.weights_hash,
            task=self.task.name,
            problem=problem.id,
            difficulty=problem.difficulty,
            trial=completion.request.trial,
            seed=self.seed,
            attention=str(self.attention),
            sampling=str(self.sampling),
            max_gen_len=max_gen_len,
            prompt_ids=problem.prompt_ids,
            output_ids=completion.token_ids,
            finish_reason=completion.finish_reason,
            answer=grade.answer,
            score=grade.score,
            solved_len=grade.solved_len,
            time_s=completion.time_s,
            task_revision=self.task.revision,
            task_licence=self.task.licence,
        )


def collect_traces(
    model: LanguageModel,
    problems: Sequence[Problem],
    attention: AttentionSpec,
    strategy: Strategy,
    out: str | os.PathLike[str],
    *,
    task: Task,
    weights_hash: str,
    model_name: str | None = None,
    sampling: SamplingSpec | None = None,
    seed: int = 0,
    on_progress: ShowProgress | None = None,
) -> CollectReport:
    """Sample what a shard does not hold yet, grade it and write it: `Collector` with its defaults, in one call.

    Args:
        model: The language model.
        problems: What to ask; prompts may differ in length.
        attention: Which cache entries a decode step reads.
        strategy: Trials per problem and length limit.
        out: JSONL shard to append to; created with its folder if missing.
        task: Grades the answers, and says what ends one.
        weights_hash: Identifies the weights in the traces, so that no trial of others is taken for one of theirs.
        model_name: Its name in the traces; None is that of its geometry.
        sampling: How tokens are drawn; None samples at temperature 1.
        seed: Seed of the run.
        on_progress: Called after each call of the engine, with what is on disk by then.

    Returns:
        What was done, with a sentence for each problem that could not be asked or graded.

    Raises:
        ValueError: As `Collector.collect`.
        OSError: If the shard cannot be written.

    Example:
        >>> import tempfile
        >>> from kinetics_jax.specs import BestOfN, Dense
        >>> from kinetics_jax.tasks import Pathfind
        >>> from kinetics_jax.zoo import load_zoo_model
        >>> loaded, task = load_zoo_model("Kinetics-Mini-0.1M"), Pathfind()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     def collect():
        ...         return collect_traces(
        ...             loaded.model, task.problems(1), Dense(), BestOfN(num_trials=2, max_gen_len=4),
        ...             f"{folder}/dense.jsonl", task=task, weights_hash=loaded.weights_hash,
        ...         )
        ...     collect().num_written, collect().num_written  # the second time, all is there
        (2, 0)
    """
    collector = Collector(
        model=model,
        model_name=model_name or model.spec.name,
        weights_hash=weights_hash,
        task=task,
        attention=attention,
        sampling=SamplingSpec() if sampling is None else sampling,
        seed=seed,
    )
    return collector.collect(problems, strategy, out, on_progress=on_progress)


def _submit(engine: Engine, request: Request, failed: dict[str, str]) -> int:
    """Queue a trial and return 1; where it can never run, say why and return 0."""
    try:
        engine.submit(request)
    except ValueError as error:
        failed[_problem(request).id] = str(error)
        return 0
    return 1


def _problem(request: Request) -> Problem:
    assert isinstance(request.tag, Problem)
    return request.tag
