"""Rotary embeddings in config.json: `rope_theta`, `rope_scaling` of transformers 4, `rope_parameters` of 5."""

from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from typing import Any

from ._hf_values import read_positive, read_size
from ._rope import ROPE_KINDS, Llama3Rope, RopeScaling, YarnRope

ROPE_FIELDS = ("rope_theta", "rope_scaling", "rope_parameters")

_RENAMED = {"original_max_len": "original_max_position_embeddings"}  # ours: theirs; the others share their names
_TYPE_NAMES = ("rope_type", "type")
_ROUNDED = {"truncate": True}  # YaRN: the ramp starts and ends at whole pairs


def read_rope(
    config: Mapping[str, Any], problems: list[str], *, default_theta: float | None
) -> tuple[float, RopeScaling | None]:
    """Return base and scaling of the rotary frequencies; add what is wrong to `problems`."""
    stated: dict[str, Any] = {field: config[field] for field in ROPE_FIELDS[1:] if config.get(field) is not None}
    for field in [field for field, block in stated.items() if not isinstance(block, dict)]:
        problems.append(f"{field} must be an object or null; got {stated.pop(field)!r}")
    theta = _read_theta({"rope_theta": config, **stated}, problems, default_theta)
    scalings = [_read_scaling(field, block, config, problems) for field, block in stated.items()]
    if len(scalings) == 2 and scalings[0] != scalings[1]:
        problems.append("rope_scaling and rope_parameters must agree where both are given")
    if theta <= 1 and any(isinstance(scaling, YarnRope) for scaling in scalings):
        problems.append(f"rope_theta must be above 1 for yarn, which divides by its logarithm; got {theta}")
    return theta, scalings[0] if scalings else None


def write_rope(theta: float, scaling: RopeScaling | None) -> dict[str, Any]:
    """Return the fields of config.json, spelled so that transformers 4 and 5 both read them."""
    if scaling is None:
        return {"rope_theta": theta, "rope_scaling": None}
    kind = next(kind for kind, known in ROPE_KINDS.items() if isinstance(scaling, known))
    given = {_theirs(field): getattr(scaling, field.name) for field in fields(scaling)}
    stated = {field: value for field, value in given.items() if value is not None}
    return {"rope_theta": theta, "rope_scaling": {"rope_type": kind, **stated}}


def _read_theta(sources: Mapping[str, Any], problems: list[str], default: float | None) -> float:
    thetas = {field: source["rope_theta"] for field, source in sources.items() if "rope_theta" in source}
    (first, theta), *others = thetas.items() or [("rope_theta", default)]
    problems.extend(f"{first} is {theta!r}, but {field} says {other!r}" for field, other in others if other != theta)
    return read_positive(theta, "rope_theta", problems)


def _read_scaling(
    field: str, block: Mapping[str, Any], config: Mapping[str, Any], problems: list[str]
) -> RopeScaling | None:
    kinds = [block[name] for name in _TYPE_NAMES if name in block] or ["default"]
    if any(kind not in ("default", *ROPE_KINDS) or kind != kinds[0] for kind in kinds):
        known = ", ".join(repr(kind) for kind in ("default", *ROPE_KINDS))
        problems.append(f"{field}.rope_type must be one of {known}; got {' and '.join(map(repr, kinds))}")
        return None
    kind = ROPE_KINDS.get(kinds[0])
    known = {_theirs(known): known for known in fields(kind)} if kind else {}
    checked = _ROUNDED if kind is YarnRope else {}
    problems.extend(
        f"{field}.{name} must be {wanted!r}; got {block[name]!r}"
        for name, wanted in checked.items()
        if block.get(name, wanted) is not wanted
    )
    if extra := sorted(set(block) - {*known, *checked, *_TYPE_NAMES, "rope_theta"}):
        problems.append(f"{field} has unknown fields {', '.join(extra)}")
    if kind is None:
        return None
    return _build(kind, {ours: block.get(theirs) for theirs, ours in known.items()}, field, config, problems)


def _build(
    kind: type[Llama3Rope] | type[YarnRope],
    stated: Mapping["Field[Any]", Any],
    field: str,
    config: Mapping[str, Any],
    problems: list[str],
) -> RopeScaling | None:
    found: list[str] = []
    numbers: dict[str, Any] = {}
    for ours, value in stated.items():
        if value is None and kind is YarnRope and ours.name == "original_max_len":
            value = config.get("max_position_embeddings")
        if value is None and ours.default is not MISSING:
            continue
        read = read_size if ours.name == "original_max_len" else read_positive
        numbers[ours.name] = read(value, f"{field}.{_theirs(ours)}", found)
    problems.extend(found)
    if found:
        return None
    try:
        return kind(**numbers)
    except ValueError as error:
        problems.append(f"{field}: {error}")
        return None


def _theirs(field: "Field[Any]") -> str:
    return _RENAMED.get(field.name, field.name)
