"""Grade stored traces again, without sampling: a better grader changes scores and nothing else.

Called by `kinetics grade`. Trials, tokens and times stay as they were recorded.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from kinetics_jax.tasks import Grade, Problem, Task, TextProblem, TextTask, TokenisedTask
from kinetics_jax.traces import Trace, rewrite_traces

_MOST_PROBLEMS = 1 << 16
"""Where a task that makes its problems is given up looking for one."""


@dataclass(frozen=True, kw_only=True)
class Regrading:
    """Tell what grading anew did.

    Attributes:
        num_rows: Traces read.
        num_graded: Traces graded; the others are of other tasks, or hold no token ids.
        num_without_ids: Traces of the tasks asked for that hold no token ids, and stay as they are.
        num_changed: Traces of which something changed: score, answer, `solved_len`, revision or licence of the task.
        verdicts: How many went from which score to which: ("wrong", "right").
        reasons: How often the grader gave which reason ("time limit").
    """

    num_rows: int
    num_graded: int
    num_without_ids: int
    num_changed: int
    verdicts: dict[tuple[str, str], int]
    reasons: dict[str, int]


def regrade(
    files: Sequence[Path],
    tasks: Mapping[str, Task],
    *,
    num_threads: int = 1,
    models: Sequence[str] | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Regrading:
    """Grade the traces of files anew, in place: each is written beside and renamed, and only if a verdict changed.

    Args:
        files: .jsonl and .parquet files of traces.
        tasks: Graders by the name of their task; traces of other tasks stay as they are.
        num_threads: Traces graded at a time. Worth more than one where a grader works in processes of its own.
        models: Only traces of these models; None grades all.
        on_progress: Called with the number of traces read so far.

    Returns:
        What was done. Doing it again changes nothing, to the byte.

    Raises:
        OSError: If a file cannot be written, or a writer holds it.
        ValueError: If a row is no valid trace, or a task has no such problem; the file at hand stays as it is.
    """
    grader = _Grader(tasks, models, num_threads, on_progress)
    with ThreadPoolExecutor(num_threads, thread_name_prefix="grade") as grader.threads:
        num_changed = sum(rewrite_traces(path, grader) for path in files)
    return Regrading(
        num_rows=grader.num_rows,
        num_graded=sum(grader.verdicts.values()),
        num_without_ids=grader.num_without_ids,
        num_changed=num_changed,
        verdicts=dict(grader.verdicts),
        reasons=dict(grader.reasons.most_common()),
    )


class _Grader:
    """The change that `rewrite_traces` makes, and the counts of what it did."""

    threads: ThreadPoolExecutor

    def __init__(
        self,
        tasks: Mapping[str, Task],
        models: Sequence[str] | None,
        num_threads: int,
        on_progress: Callable[[int], None] | None,
    ):
        self.num_rows = self.num_without_ids = 0
        self.verdicts: Counter[tuple[str, str]] = Counter()
        self.reasons: Counter[str] = Counter()
        self._tasks, self._models, self._num_threads = tasks, models, num_threads
        self._on_progress = on_progress
        self._texts: dict[str, dict[str, TextProblem]] = {}
        self._versions: dict[str, tuple[str, str]] = {}

    def __call__(self, traces: Sequence[Trace]) -> list[Trace]:
        wanted = [trace for trace in traces if self._is_wanted(trace)]
        for name in dict.fromkeys(trace.task for trace in wanted):
            self._find_texts(name, {trace.problem for trace in wanted if trace.task == name})
            self._versions[name] = (self._tasks[name].revision, self._tasks[name].licence)
        run = map if self._num_threads == 1 else self.threads.map
        graded = dict(zip((trace.key for trace in wanted), run(self._grade, wanted), strict=True))
        self.num_rows += len(traces)
        if self._on_progress is not None:
            self._on_progress(self.num_rows)
        return [self._renewed(trace, graded[trace.key]) if trace.key in graded else trace for trace in traces]

    def _is_wanted(self, trace: Trace) -> bool:
        if trace.task not in self._tasks or (self._models is not None and trace.model not in self._models):
            return False
        self.num_without_ids += trace.output_ids is None
        return trace.output_ids is not None

    def _grade(self, trace: Trace) -> Grade:
        problem = Problem(
            id=trace.problem,
            difficulty=trace.difficulty,
            prompt_ids=trace.prompt_ids or (),
            text=self._texts[trace.task].get(trace.problem),
        )
        return self._tasks[trace.task].grade(problem, trace.output_ids or ())

    def _renewed(self, trace: Trace, grade: Grade) -> Trace:
        self.verdicts[_verdict(trace.score), _verdict(grade.score)] += 1
        if grade.reason:
            self.reasons[grade.reason] += 1
        revision, licence = self._versions[trace.task]
        new = (grade.answer, grade.score, grade.solved_len, revision, licence)
        if new == (trace.answer, trace.score, trace.solved_len, trace.task_revision, trace.task_licence):
            return trace  # a new row would be checked token by token
        return replace(
            trace,
            answer=grade.answer,
            score=grade.score,
            solved_len=grade.solved_len,
            task_revision=revision,
            task_licence=licence,
        )

    def _find_texts(self, name: str, ids: set[str]) -> None:
        """Look up the questions of a task that is asked in words."""
        found = self._texts.setdefault(name, {})
        task = self._tasks[name]
        if not isinstance(task, TokenisedTask) or not ids - found.keys():
            return
        found.update({problem.id: problem for problem in _problems(task.task, ids)})
        unknown = sorted(ids - found.keys())
        if unknown:
            raise ValueError(
                f"task {name} has no problem {', '.join(unknown[:5])}{' ...' if len(unknown) > 5 else ''}; "
                "give the data that the traces were sampled from"
            )


def _problems(task: TextTask, ids: set[str]) -> Iterable[TextProblem]:
    """Return the problems of a task; of one that makes them, so many that those of these names are among them."""
    if task.size is not None:
        return task.problems()
    num_problems = len(ids)
    while True:
        problems = task.problems(num_problems)
        if ids <= {problem.id for problem in problems} or num_problems >= _MOST_PROBLEMS:
            return problems
        num_problems *= 2


def _verdict(score: float | None) -> str:
    return "ungradable" if score is None else "right" if score == 1.0 else "wrong"
