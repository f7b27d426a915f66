"""Read ahead on threads, in order, with a bound on the memory that waits.

Called by `_convert` and `_export`: hashing, turning and decompressing tensors takes longer than the disk.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar, final

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_HELD_BYTES = 1 << 28
"""Tensors that may wait at one time, unless one alone is larger."""
_MAX_THREADS = 8


@final
class Budget:
    """Count the bytes that are held; one item alone may exceed the limit.

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

    def has_room(self, num_bytes: int) -> bool:
        """Say whether so many bytes more may be held."""
        return self.held_bytes == 0 or self.held_bytes + num_bytes <= self.max_bytes

    def take(self, num_bytes: int) -> None:
        """Hold so many bytes more."""
        self.held_bytes += num_bytes

    def give_back(self, num_bytes: int) -> None:
        """Hold so many bytes less."""
        self.held_bytes -= num_bytes


def prefetch(
    items: Iterable[Item],
    work: Callable[[Item], Result],
    *,
    num_bytes: Callable[[Item], int],
    budget: Budget,
    wait: Callable[[], None],
) -> Iterator[Result]:
    """Yield `work(item)` of each item in order, while threads work on the next ones.

    Bytes are taken from the budget before an item starts. Giving them back is the business of the consumer, who should
    keep no reference beyond that.

    Args:
        items: What to work on.
        work: Runs on a thread; its first error ends the iteration.
        num_bytes: What the result of an item holds.
        budget: Bounds what is held.
        wait: Is called if there is no room and nothing left to yield; must give some back.

    Example:
        >>> budget = Budget(2)
        >>> for square in prefetch([1, 2, 3], lambda n: n * n, num_bytes=lambda n: 1, budget=budget, wait=lambda: None):
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
                if under_way:
                    yield under_way.popleft().result()
                else:
                    wait()
            budget.take(num_bytes(item))
            under_way.append(pool.submit(work, item))
        while under_way:
            yield under_way.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
