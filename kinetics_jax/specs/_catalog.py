"""Read-only name tables whose errors list what is known. Used by every table of specs."""

from collections.abc import Iterator, Mapping
from typing import TypeVar

SpecT = TypeVar("SpecT")


class Catalog(Mapping[str, SpecT]):
    """Map names to specs; a missing name raises an error that lists the known ones.

    It cannot be changed: build your own spec and pass it where a spec is wanted.

    Args:
        kind: What the names stand for, as it appears in the error ("model", "hardware").
        specs: The named specs.

    Raises:
        ValueError: On look-up of a name that is not in the table.

    Example:
        >>> Catalog("model", {"a": 1})["b"]
        Traceback (most recent call last):
        ...
        ValueError: unknown model 'b'. Known: a
    """

    def __init__(self, kind: str, specs: Mapping[str, SpecT]):
        self._kind = kind
        self._specs = dict(specs)

    def __getitem__(self, name: str) -> SpecT:
        if name not in self._specs:
            raise ValueError(f"unknown {self._kind} {name!r}. Known: {', '.join(self)}")
        return self._specs[name]

    def __contains__(self, name: object) -> bool:
        return name in self._specs

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)
