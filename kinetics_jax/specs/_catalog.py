"""Read-only name tables whose errors list what is known. Used by every table of specs."""

from typing import Generic, TypeVar

SpecT = TypeVar("SpecT")


class Catalog(dict[str, SpecT], Generic[SpecT]):
    """Map names to specs; a missing name raises an error that lists the known ones.

    Args:
        kind: What the names stand for, as it appears in the error ("model", "hardware").
        specs: The named specs.

    Raises:
        ValueError: On look-up of a name that is not in the table.
        TypeError: On any attempt to change the table.

    Example:
        >>> Catalog("model", {"a": 1})["b"]
        Traceback (most recent call last):
        ...
        ValueError: unknown model 'b'. Known: a
    """

    def __init__(self, kind: str, specs: dict[str, SpecT]):
        super().__init__(specs)
        self._kind = kind

    def __missing__(self, name: str) -> SpecT:
        raise ValueError(f"unknown {self._kind} {name!r}. Known: {', '.join(self)}")

    def __setitem__(self, name: str, spec: SpecT) -> None:
        raise TypeError(f"the {self._kind} table is read-only; build your own spec and pass it instead of a name")
