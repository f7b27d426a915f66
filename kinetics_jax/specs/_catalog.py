"""Read-only mappings: a hashable one for fields of specs, and name tables whose errors list what is known."""

from collections.abc import Iterator, Mapping
from typing import TypeVar

SpecT = TypeVar("SpecT")


class FrozenMapping(Mapping[str, SpecT]):
    """Map names to values; it cannot be changed, so it hashes, and a spec that holds one can be a static argument.

    Args:
        items: What it maps.

    Example:
        >>> FrozenMapping({"a": 1}) == {"a": 1}, hash(FrozenMapping({"a": 1})) == hash(FrozenMapping({"a": 1}))
        (True, True)
    """

    def __init__(self, items: Mapping[str, SpecT]):
        self._items = dict(items)

    def __getitem__(self, name: str) -> SpecT:
        return self._items[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(frozenset(self._items.items()))

    def __repr__(self) -> str:
        return repr(self._items)


class Catalog(FrozenMapping[SpecT]):
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
        super().__init__(specs)
        self._kind = kind

    def __getitem__(self, name: str) -> SpecT:
        if name not in self._items:
            raise ValueError(f"unknown {self._kind} {name!r}. Known: {', '.join(self)}")
        return self._items[name]

    def __contains__(self, name: object) -> bool:
        return name in self._items
