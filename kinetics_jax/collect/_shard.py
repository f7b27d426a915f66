"""Cut the problems of a job into shards that know nothing of each other."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

_Item = TypeVar("_Item")


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Take every `count`-th problem, so that shards are alike in difficulty.

    Attributes:
        index: Which of the shards, from 0.
        count: How many there are.

    Raises:
        ValueError: If there is no such shard.

    Example:
        >>> shard = Shard.parse("1/3")
        >>> shard.of("abcdefg"), str(shard)
        (['b', 'e'], '1of3')
    """

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ValueError(f"shards of {self.count} go from 0 to {self.count - 1}; got {self.index}")

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Return what "1/3" means, the second of three.

        Raises:
            ValueError: If the text is no such pair of numbers.
        """
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        if found is None:
            raise ValueError(f"a shard is written i/n, from 0/n to n-1/n; got {text!r}. Use 0/4 for the first of four.")
        return cls(index=int(found[1]), count=int(found[2]))

    def of(self, items: Sequence[_Item]) -> list[_Item]:
        """Return its share; all shards together have each item once."""
        return [items[index] for index in range(self.index, len(items), self.count)]

    def __str__(self) -> str:
        return f"{self.index}of{self.count}"
