"""From finished trials to rows on disk: graded in a few threads, written together with whatever else is ready.

Called by the collector. Graders may be slow (they run programs), so sampling never waits for them; what was finished
when a collection is interrupted is still graded and written before the interruption goes on.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from types import TracebackType

from kinetics_jax.sampling import Completion
from kinetics_jax.tasks import Grade, Problem, Task
from kinetics_jax.traces import Trace, TraceWriter

from ._report import Price

_UNGRADED = Grade(answer=None, score=None, solved_len=None)

MakeTrace = Callable[[Problem, Completion, Grade], Trace]


class Ledger:
    """Grade and write finished trials; leaving the context writes all that are still being graded.

    Args:
        writer: Where the rows go.
        task: Grades; from several threads.
        make_trace: Makes the row of a graded trial.
        num_graders: Trials graded at a time.
        price: Cost of a trial, or None.

    Attributes:
        num_written: Trials on disk.
        num_tokens: Their tokens.
        eflops: Their cost [eFLOP].
        failed: One sentence for each problem whose grader refused, by id.
    """

    def __init__(
        self, writer: TraceWriter, task: Task, make_trace: MakeTrace, *, num_graders: int, price: Price | None
    ):
        self.num_written = self.num_tokens = 0
        self.eflops = None if price is None else 0.0
        self.failed: dict[str, str] = {}
        self._writer, self._task, self._make_trace, self._price = writer, task, make_trace, price
        self._threads = ThreadPoolExecutor(num_graders, thread_name_prefix="grade")
        self._waiting: dict[Future[Grade], tuple[Problem, Completion]] = {}
        self._can_write = True

    def add(self, finished: Sequence[tuple[Problem, Completion]]) -> None:
        """Take finished trials over and write those that are graded by now.

        Raises:
            OSError: If the disk refuses.
        """
        for problem, completion in finished:
            graded = self._threads.submit(self._task.grade, problem, completion.token_ids)
            self._waiting[graded] = problem, completion
        self._write({graded for graded in self._waiting if graded.done()})

    def finish(self) -> None:
        """Wait for all grades and write them as they come."""
        while self._waiting:
            self._write(wait(self._waiting, return_when=FIRST_COMPLETED).done)

    def _write(self, graded: set[Future[Grade]]) -> None:
        ready = [each for each in self._waiting if each in graded]  # in the order in which they finished
        if not ready:
            return
        traces = [self._trace(each, *self._waiting.pop(each)) for each in ready]
        self._can_write = False  # an append that fails or is interrupted closes the shard
        self._writer.append(traces)
        self._can_write = True
        self.num_written += len(traces)
        self.num_tokens += sum(trace.gen_len for trace in traces)
        if self._price is not None and self.eflops is not None:
            self.eflops += sum(self._price(trace.prompt_len, trace.gen_len) for trace in traces)

    def _trace(self, graded: "Future[Grade]", problem: Problem, completion: Completion) -> Trace:
        try:
            grade = graded.result()
        except (ValueError, RuntimeError) as error:  # this answer, or the grader's machinery: the tokens are kept
            self.failed.setdefault(problem.id, f"trial {completion.request.trial} could not be graded: {error}")
            grade = _UNGRADED
        return self._make_trace(problem, completion, grade)

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._can_write:
                self.finish()
        finally:
            self._threads.shutdown(wait=False, cancel_futures=True)


class Onlooker:
    """Stand in for the ledger in a process that samples beside the first one, which grades and writes.

    Attributes:
        num_written: Trials seen to finish.
        num_tokens: Their tokens.
    """

    def __init__(self) -> None:
        self.num_written = self.num_tokens = 0

    def add(self, finished: Sequence[tuple[Problem, Completion]]) -> None:
        """Count finished trials."""
        self.num_written += len(finished)
        self.num_tokens += sum(len(completion.token_ids) for _, completion in finished)

    def finish(self) -> None:
        """Do nothing: there is nothing to wait for."""
