"""Values of a config.json, which may hold anything: what counts as a size and as a positive number."""

from typing import Any, TypeGuard


def is_size(value: Any) -> TypeGuard[int]:
    """Say whether `value` is a whole number of at least 1; true and 2.0 are none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def read_positive(value: Any, field: str, problems: list[str]) -> float:
    """Return `value` as a float; if it is no positive number, add a problem and return 1."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf"):
        return float(value)
    problems.append(f"{field} must be a positive number; got {value!r}")
    return 1.0


def read_size(value: Any, field: str, problems: list[str]) -> int | None:
    """Return `value` if it is a size; else add a problem and return None."""
    if is_size(value):
        return value
    problems.append(f"{field} must be a whole number of at least 1; got {value!r}")
    return None
