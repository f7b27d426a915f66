"""Problems in, traces out: sample every trial of every problem once, grade it, and write it down for good.

Called by the command line and by notebooks. What is on disk is never sampled again, and a trial's tokens follow
from (seed, problem, trial) alone, so an interrupted run continues as if nothing had happened.
"""

import os
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key, PRNGKeyArray

from kinetics_jax.sampling import Generation, LanguageModel, generate
from kinetics_jax.specs import AttentionSpec, SamplingSpec, Strategy
from kinetics_jax.tasks import Problem, Task
from kinetics_jax.traces import Trace, TraceWriter

_SETTINGS = ("num_trials", "max_gen_len", "stop_ids", "attention", "sampling", "page_len")


@partial(jax.jit, static_argnames=_SETTINGS)  # here, not in the collector: runs of the same shape share it
def _sample(
    model: LanguageModel, prompts: Int[Array, "Q prompt_len"], keys: Key[Array, " Q"], **settings: Any
) -> Generation:
    return jax.vmap(partial(generate, **settings), in_axes=(None, 0, 0))(model, prompts, keys)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Tell how far a collection is.

    Attributes:
        num_done: Trials on disk.
        num_total: Trials asked for.
        num_tokens: Tokens generated since the start.
        seconds: Time since the start [s].
    """

    num_done: int
    num_total: int
    num_tokens: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Collector:
    """Sample problems with one model, attention and sampling.

    Attributes:
        model: The language model.
        model_name: Its name in the traces.
        weights_hash: Identifies its weights in the traces.
        task: Grades the answers.
        attention: Which cache entries a decode step reads.
        sampling: How tokens are drawn.
        seed: Seed of the run.
        batch_problems: Problems sampled at a time; each batch is written before the next begins.
        page_len: Tokens in a page; None follows the attention spec.

    Raises:
        ValueError: If `batch_problems` is below one.
    """

    model: LanguageModel
    model_name: str
    weights_hash: str
    task: Task
    attention: AttentionSpec
    sampling: SamplingSpec = field(default_factory=SamplingSpec)
    seed: int = 0
    batch_problems: int = 16
    page_len: int | None = None

    def __post_init__(self) -> None:
        if self.batch_problems < 1:
            raise ValueError(f"batch_problems must be at least 1; got {self.batch_problems}")

    @property
    def run(self) -> str:
        """Name of the run in the traces: everything that tells this collection from another."""
        return f"{self.task.name}/{self.model_name}/{self.attention}/seed{self.seed}"

    def collect(
        self,
        problems: Sequence[Problem],
        strategy: Strategy,
        out: str | os.PathLike[str],
        *,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> int:
        """Sample what the shard `out` does not hold yet and return the number of trials written.

        Args:
            problems: What to ask; prompts of one length.
            strategy: Trials per problem and length limit.
            out: JSONL shard to append to; created with its folder if missing.
            on_progress: Called after each batch is on disk.

        Raises:
            ValueError: If there is no problem, prompts differ in length or exceed the model's context, or the shard
                holds another run of this name.
            OSError: If the shard cannot be written.
        """
        self._require_fit(problems, strategy)
        started, num_tokens, num_written = time.perf_counter(), 0, 0
        with TraceWriter(out) as writer:
            done = writer.done_keys()
            missing = {
                problem.id: [r for r in range(strategy.num_trials) if (self.run, problem.id, r) not in done]
                for problem in problems
            }
            todo = [problem for problem in problems if missing[problem.id]]
            num_total = len(problems) * strategy.num_trials
            num_done = num_total - sum(map(len, missing.values()))
            for start in range(0, len(todo), self.batch_problems):
                batch = todo[start : start + self.batch_problems]
                batch_started = time.perf_counter()
                generation = self._sample_batch(batch, strategy)
                seconds = time.perf_counter() - batch_started
                time_s = seconds / (len(batch) * strategy.num_trials)
                traces = [
                    self._trace(problem, trial, generation, row, strategy, time_s)
                    for row, problem in enumerate(batch)
                    for trial in missing[problem.id]
                ]
                writer.append(traces)
                num_written += len(traces)
                num_tokens += sum(trace.gen_len for trace in traces)
                if on_progress is not None:
                    on_progress(
                        Progress(
                            num_done=num_done + num_written,
                            num_total=num_total,
                            num_tokens=num_tokens,
                            seconds=time.perf_counter() - started,
                        )
                    )
        return num_written

    def _sample_batch(self, batch: Sequence[Problem], strategy: Strategy) -> Generation:
        """Run one batch, filled up to the fixed size with its first problem so that one shape compiles."""
        filled = [*batch, *[batch[0]] * (self.batch_problems - len(batch))]
        prompts = jnp.asarray([problem.prompt_ids for problem in filled], jnp.int32)
        keys = jnp.stack([self._problem_key(problem) for problem in filled])
        generation = _sample(
            self.model,
            prompts,
            keys,
            num_trials=strategy.num_trials,
            max_gen_len=strategy.max_gen_len,
            stop_ids=(self.task.eos_id,),
            attention=self.attention,
            sampling=self.sampling,
            page_len=self.page_len,
        )
        return jax.tree.map(np.asarray, generation)

    def _problem_key(self, problem: Problem) -> PRNGKeyArray:
        return jax.random.fold_in(jax.random.key(self.seed), zlib.crc32(problem.id.encode()))

    def _trace(
        self, problem: Problem, trial: int, generation: Generation, row: int, strategy: Strategy, time_s: float
    ) -> Trace:
        output_ids = generation.token_ids[row, trial, : int(generation.gen_len[row, trial])].tolist()
        grade = self.task.grade(problem, output_ids)
        return Trace(
            run=self.run,
            model=self.model_name,
            weights_hash=self.weights_hash,
            task=self.task.name,
            problem=problem.id,
            difficulty=problem.difficulty,
            trial=trial,
            seed=self.seed,
            attention=str(self.attention),
            sampling=str(self.sampling),
            max_gen_len=strategy.max_gen_len,
            prompt_ids=problem.prompt_ids,
            output_ids=tuple(output_ids),
            finish_reason="eos" if bool(generation.stopped[row, trial]) else "length",
            answer=grade.answer,
            score=grade.score,
            solved_len=grade.solved_len,
            time_s=time_s,
        )

    def _require_fit(self, problems: Sequence[Problem], strategy: Strategy) -> None:
        prompt_lens = sorted({len(problem.prompt_ids) for problem in problems})
        if not prompt_lens:
            raise ValueError("a collection needs at least one problem; got none")
        if len(prompt_lens) > 1:
            raise ValueError(f"problems of one collection must share one prompt length; got {prompt_lens}")
        max_len = self.model.spec.max_len
        longest = max_len - prompt_lens[0]
        if strategy.max_gen_len > longest:
            way_out = f"Use a limit of {longest} or less." if longest > 0 else "The prompt alone is too long."
            raise ValueError(
                f"prompt and thought must fit the context of {max_len} tokens; "
                f"got {prompt_lens[0] + strategy.max_gen_len}. {way_out}"
            )
