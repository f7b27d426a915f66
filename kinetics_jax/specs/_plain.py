"""A spec as plain JSON values and back, types checked: for the files that say which model their weights are.

Called by `ModelSpec.to_dict` and `from_dict`. Limits are the spec's own business.
"""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from types import UnionType
from typing import Any, get_args, get_type_hints

from ._rope import ROPE_KINDS, RopeScaling

_KIND = "kind"


def plain_fields(spec: Any) -> dict[str, Any]:
    """Return the fields of a frozen dataclass; a rotary scaling among them becomes an object that names its kind."""
    plain = {field.name: getattr(spec, field.name) for field in fields(spec)}
    for name, value in plain.items():
        if isinstance(value, RopeScaling):
            kind = next(kind for kind, known in ROPE_KINDS.items() if type(value) is known)
            plain[name] = {_KIND: kind, **plain_fields(value)}
    return plain


def read_fields(kind: type, stored: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """Return the arguments that build a `kind` from the fields that `plain_fields` gave; add what is wrong."""
    hints = get_type_hints(kind)
    wanted = [field.name for field in fields(kind) if field.default is MISSING]
    if missing := [name for name in wanted if name not in stored]:
        problems.append(f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing")
    if unknown := [name for name in stored if name not in hints]:
        problems.append(f"unknown fields {', '.join(map(repr, unknown))}")
    read = {}
    for name, value in stored.items():
        if name not in hints:
            continue
        if isinstance(value, Mapping):  # the only object among the fields
            value = _read_scaling(name, value, problems)
        if not _fits(value, hints[name]):
            problems.append(f"{name} must be {_describe(hints[name])}; got {value!r}")
        read[name] = float(value) if hints[name] is float and isinstance(value, int) else value
    return read


def _read_scaling(name: str, stored: Mapping[str, Any], problems: list[str]) -> RopeScaling | None:
    kind = ROPE_KINDS.get(str(stored.get(_KIND)))
    if kind is None:
        known = " or ".join(repr(known) for known in ROPE_KINDS)
        problems.append(f"{name}.{_KIND} must be {known}; got {stored.get(_KIND)!r}")
        return None
    found: list[str] = []
    given = read_fields(kind, {field: value for field, value in stored.items() if field != _KIND}, found)
    problems.extend(f"{name}: {problem}" for problem in found)
    if found:
        return None
    try:
        return kind(**given)
    except ValueError as error:
        problems.append(f"{name}: {error}")
        return None


def _fits(value: Any, hint: Any) -> bool:
    if isinstance(hint, UnionType):
        return any(_fits(value, option) for option in get_args(hint))
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return isinstance(value, hint)


def _describe(hint: Any) -> str:
    options = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "null"}
    return " or ".join(dict.fromkeys(words.get(option, "an object") for option in options))
