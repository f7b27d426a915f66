"""Work ahead on threads, with a bound on the memory that waits.

Called by `_convert`, which takes what comes first (`gather`), and `_export`, which writes a file from front to back
(`prefetch`): hashing, turning and decompressing tensors takes longer than the disk.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import TypeVar, final

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_HELD_BYTES = 1 << 28
"""Tensors that may wait at one time, unless one alone is larger."""
_MAX_THREADS = 8


@final
class Budget:
    """Count the bytes that several threads hold; one item alone may exceed the limit.

    Args:
        max_bytes: The limit.

    Attributes:
        max_bytes: The limit.
        held_bytes: Taken and not given back.

    Example:
        >>> budget = Budget(10)
        >>> budget.take(6)
        >>> budget.has_room(4), budget.has_room(5)
        (True, False)
    """

    def __init__(self, max_bytes: int):
        self.max_bytes = max_bytes
        self.held_bytes = 0
        self._is_closed = False
        self._changed = threading.Condition()
        self._turn = threading.Lock()  # whoever waits for much is not overtaken by those who want little

    def has_room(self, num_bytes: int) -> bool:
        """Say whether so many bytes more may be held."""
        return self.held_bytes == 0 or self.held_bytes + num_bytes <= self.max_bytes

    def take(self, num_bytes: int) -> None:
        """Hold so many bytes more, as soon as there is room.

        Raises:
            CancelledError: If the budget is closed.
        """
        with self._turn, self._changed:
            self._changed.wait_for(lambda: self._is_closed or self.has_room(num_bytes))
            if self._is_closed:
                raise CancelledError
            self.held_bytes += num_bytes

    def give_back(self, num_bytes: int) -> None:
        """Hold so many bytes less."""
        with self._changed:
            self.held_bytes -= num_bytes
            self._changed.notify_all()

    def close(self) -> None:
        """Refuse all who wait for room, now and later: the work is over."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()


def gather(
    items: Iterable[Item], work: Callable[[Item], Iterator[Result]], *, on_end: Callable[[], None]
) -> Generator[Result, None, None]:
    """Yield everything that `work(item)` yields, of several items at a time, those of one item in order.

    Threads run ahead as far as `work` lets them: it takes from a `Budget` before it makes what is large.

    Args:
        items: What to work on; started in this order.
        work: Runs on a thread; its first error ends the iteration, after what was yielded before.
        on_end: Is called when the iteration ends or is closed; must make `work` return soon. Then the threads are
            waited for.

    Example:
        >>> sorted(gather([1, 2, 3], lambda n: iter([n, 10 * n]), on_end=lambda: None))
        [1, 2, 3, 10, 20, 30]
    """
    results: SimpleQueue[Result | _Ended] = SimpleQueue()

    def run(item: Item) -> None:
        try:
            for result in work(item):
                results.put(result)
        except BaseException as error:
            results.put(_Ended(error))
        else:
            results.put(_Ended(None))

    pool = ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1))
    try:
        num_left = len([pool.submit(run, item) for item in items])
        while num_left:
            result = results.get()
            if not isinstance(result, _Ended):
                yield result
            elif result.error is not None:
                raise result.error
            else:
                num_left -= 1
    finally:
        on_end()
        pool.shutdown(cancel_futures=True)


@final
class _Ended:
    """Say that an item is done, or what went wrong."""

    def __init__(self, error: BaseException | None):
        self.error = error


def prefetch(
    items: Iterable[Item],
    work: Callable[[Item], Result],
    *,
    num_bytes: Callable[[Item], int],
    budget: Budget,
) -> Generator[Result, None, None]:
    """Yield `work(item)` of each item in order, while threads work on the next ones.

    Bytes are taken from the budget before an item starts. The consumer gives them back, and keeps no reference, before
    it asks for the next result. When the iteration ends or is closed, the threads are waited for.

    Args:
        items: What to work on.
        work: Runs on a thread; its first error ends the iteration.
        num_bytes: What the result of an item holds.
        budget: Bounds what is held.

    Example:
        >>> budget = Budget(2)
        >>> for square in prefetch([1, 2, 3], lambda n: n * n, num_bytes=lambda n: 1, budget=budget):
        ...     print(square)
        ...     budget.give_back(1)
        1
        4
        9
    """
    under_way: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1))
    try:
        for item in items:
            while not budget.has_room(num_bytes(item)):
                assert under_way, "what was yielded must be given back"
                yield under_way.popleft().result()
            budget.take(num_bytes(item))
            under_way.append(pool.submit(work, item))
        while under_way:
            yield under_way.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
