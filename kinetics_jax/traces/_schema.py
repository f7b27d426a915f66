"""One trial as a row: its fields, what makes a row valid, and its JSON form. Everything else in the room uses it.

Rows of older versions are read as if written today, so a `Trace` always has the newest version:
1 had token ids always, and their numbers were no fields of a line; it knew no finish reason "unknown";
2 told neither revision nor licence of the task, and knew no finish reason "time".
"""

import json
import math
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, NoReturn

from kinetics_jax.specs import parse_attention

SCHEMA_VERSION = 3
KNOWN_VERSIONS = (1, 2, 3)
FINISH_REASONS = ("eos", "length", "repetition", "time", "unknown")
LEN_OF = {"prompt_ids": "prompt_len", "output_ids": "gen_len"}
"""Which field counts which token ids. Version 1 leaves the counts out of its lines."""
ADDED_IN_3 = ("task_revision", "task_licence")
"""Fields that older rows lack; null in them."""
_COUNT_IDS = -1
_MAX_INT32 = 2**31 - 1
_MAX_INT64 = 2**63 - 1
TEXT_FIELDS = ("run", "model", "weights_hash", "task", "problem", "attention", "sampling", "finish_reason")
OPTIONAL_TEXT_FIELDS = ("answer", *ADDED_IN_3)
_COUNT_FIELDS = ("difficulty", "trial", "max_gen_len")

KEY = ("run", "problem", "trial")
"""What makes a trial unique."""
TraceKey = tuple[str, str, int]


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Record one trial: what was asked, how it was sampled, what was said and whether it was right.

    Attributes:
        schema_version: Version of this layout; older rows are lifted to it when read.
        run: Name of the sampling job. A run has one model, task, attention and sampling.
        model: Name of the model, as in `specs.MODELS`.
        weights_hash: Hash of the weight files that were loaded.
        task: Name of the task.
        problem: Identifier of the problem within the task.
        difficulty: Grade of the problem (the depth of `pathfind`); 0 where the task has none.
        trial: Number of the trial within (run, problem), from 0.
        seed: Seed of the run; a trial's key is folded from (seed, problem, trial). None if nobody knows it.
        attention: Text form of the attention spec, `str(spec)`.
        sampling: Text form of the sampling spec.
        max_gen_len: Limit on generated tokens under which the trial ran [tokens].
        prompt_ids: Token ids of the prompt; None if only their number is known.
        output_ids: Token ids generated, the end-of-sequence token included; None likewise.
        prompt_len: Tokens of the prompt; counted from `prompt_ids` unless given.
        gen_len: Tokens generated; counted from `output_ids` unless given.
        finish_reason: Why sampling stopped: "eos", "length", "repetition", "time" (a limit on wall time), or "unknown".
        answer: The final answer as text, or None if there is none.
        score: 1.0 right, 0.0 wrong, None ungradable.
        solved_len: Generated tokens after which the final, right answer stands; None unless right.
        time_s: Wall time of the trial [s]; a batch's time is split over its trials. None if it was not measured.
        task_revision: Version of the task's problems and grader that the score is from; None if nobody knows it.
        task_licence: Licence of the problems; None likewise.

    Raises:
        TypeError: If a field has another type; NumPy integers are not Python's.
        ValueError: If a value is out of its range or two fields contradict each other.
    """

    schema_version: int = SCHEMA_VERSION
    run: str
    model: str
    weights_hash: str
    task: str
    problem: str
    difficulty: int
    trial: int
    seed: int | None
    attention: str
    sampling: str
    max_gen_len: int
    prompt_ids: tuple[int, ...] | None
    output_ids: tuple[int, ...] | None
    prompt_len: int = _COUNT_IDS
    gen_len: int = _COUNT_IDS
    finish_reason: str
    answer: str | None
    score: float | None
    solved_len: int | None
    time_s: float | None
    task_revision: str | None = None
    task_licence: str | None = None

    def __post_init__(self) -> None:
        if self.schema_version != SCHEMA_VERSION:
            raise ValueError(f"schema_version of a new trace must be {SCHEMA_VERSION}; got {self.schema_version!r}")
        for name, len_name in LEN_OF.items():
            ids = getattr(self, name)
            if getattr(self, len_name) == _COUNT_IDS and ids is not None:
                object.__setattr__(self, len_name, len(ids))  # frozen: a default that follows another field
        _check_types(vars(self))
        for name in _COUNT_FIELDS:
            _require_int(name, getattr(self, name), low=0, high=_MAX_INT32)
        if self.seed is not None:
            _require_int("seed", self.seed, low=-_MAX_INT64, high=_MAX_INT64)
        for name, len_name in LEN_OF.items():
            _require_token_ids(name, getattr(self, name), len_name, getattr(self, len_name))
        require_canonical_attention(self.attention)
        if self.time_s is not None and not 0 <= self.time_s < math.inf:
            raise ValueError(f"time_s must be a finite number of seconds, zero or more; got {self.time_s!r}")
        self._check_outcome()

    def _check_outcome(self) -> None:
        if self.finish_reason not in FINISH_REASONS:
            raise ValueError(f"finish_reason must be one of {', '.join(FINISH_REASONS)}; got {self.finish_reason!r}")
        if self.gen_len > self.max_gen_len:
            raise ValueError(f"gen_len must be at most max_gen_len={self.max_gen_len} tokens; got {self.gen_len}")
        if self.score is not None and self.score not in (0.0, 1.0):
            raise ValueError(f"score must be 1.0 (right), 0.0 (wrong) or None (ungradable); got {self.score!r}")
        if self.score != 1.0:
            if self.solved_len is not None:
                raise ValueError(f"solved_len must be None unless score is 1.0; got {self.solved_len!r}")
        elif self.solved_len is None:
            raise ValueError("solved_len must be given when score is 1.0; got None. Use gen_len.")
        else:
            _require_int("solved_len", self.solved_len, low=0, high=self.gen_len)

    @property
    def key(self) -> TraceKey:
        """What makes the trial unique: (run, problem, trial)."""
        return self.run, self.problem, self.trial


FIELDS = tuple(field.name for field in fields(Trace))
FIELDS_OF_2 = tuple(name for name in FIELDS if name not in ADDED_IN_3)
FIELDS_OF = {1: tuple(name for name in FIELDS_OF_2 if name not in LEN_OF.values()), 2: FIELDS_OF_2, 3: FIELDS}
"""Fields of a JSON line by its version."""


def trace_to_json(trace: Trace) -> str:
    """Return the trace as one line of JSON, without the newline; line breaks inside texts are escaped."""
    return json.dumps({name: getattr(trace, name) for name in FIELDS}, separators=(",", ":"), allow_nan=False)


def trace_from_json(line: str | bytes) -> Trace:
    """Return the trace that one line of JSON holds: the inverse of `trace_to_json`.

    Raises:
        TypeError: If a field has the wrong type.
        ValueError: If the line is no JSON object, or its fields are not those of a valid `Trace`.
    """
    try:
        row = json.loads(line, parse_constant=_refuse_constant)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"not a line of JSON ({error})") from error
    if not isinstance(row, dict):
        raise ValueError(f"wanted a JSON object with the fields of a trace; got {type(row).__name__}")
    return trace_from_row(row)


def trace_from_row(row: dict[str, Any]) -> Trace:
    """Return the trace whose fields are the entries of `row`; token ids may be lists.

    Raises:
        TypeError: If a field has the wrong type.
        ValueError: If fields are missing or unknown, or the values make no valid `Trace`.
    """
    version = row.get("schema_version", SCHEMA_VERSION)
    if type(version) is not int or version not in KNOWN_VERSIONS:
        raise ValueError(
            f"schema_version must be one of {', '.join(map(str, KNOWN_VERSIONS))}; got {version!r}. "
            "Read these traces with the release of kinetics_jax that wrote them, or a newer one."
        )
    missing = [name for name in FIELDS_OF[version] if name not in row]
    unknown = [name for name in row if name not in FIELDS_OF[version]]
    if missing or unknown:
        raise ValueError(f"not the fields of a trace: missing {missing or 'none'}, unknown {unknown or 'none'}")
    values: dict[str, Any] = {**dict.fromkeys(ADDED_IN_3), **row, "schema_version": SCHEMA_VERSION}
    for name, len_name in LEN_OF.items():
        if isinstance(values[name], list):
            values[name] = tuple(values[name])
        if version == 1:
            values[len_name] = len(values[name]) if isinstance(values[name], tuple) else _COUNT_IDS
    for name in ("score", "time_s"):
        if type(values[name]) is int:  # JSON writers drop the .0
            values[name] = float(values[name])
    _check_types(values)  # before the constructor, whose annotations tests enforce with errors of their own
    if version != 1:
        for len_name in LEN_OF.values():
            _require_int(len_name, values[len_name], low=0, high=_MAX_INT32)
    return Trace(**values)


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no valid value in a trace; an ungradable trial has score null")


def _check_types(values: dict[str, Any]) -> None:
    """Raise TypeError for the first field of a wrong type, ValueError for a text that cannot be stored."""
    for name in (*TEXT_FIELDS, *(name for name in OPTIONAL_TEXT_FIELDS if values[name] is not None)):
        if not isinstance(values[name], str):
            raise TypeError(f"{name} must be text; got {values[name]!r}")
        if not values[name] and name != "answer":
            raise ValueError(f"{name} must not be empty")
        if not values[name].isascii() and any("\ud800" <= char <= "\udfff" for char in values[name]):
            raise ValueError(f"{name} must be valid Unicode; got the lone surrogate in {values[name]!r}")
    optional = [name for name in ("seed", "solved_len") if values[name] is not None]
    for name in (*_COUNT_FIELDS, *LEN_OF.values(), *optional):
        if type(values[name]) is not int:
            raise TypeError(f"{name} must be a Python int; got {values[name]!r}. Use int(...) or array.tolist().")
    for name in LEN_OF:
        ids = values[name]
        if ids is not None and not (isinstance(ids, tuple) and set(map(type, ids)) <= {int}):
            raise TypeError(f"{name} must be a tuple of Python ints. Use tuple(array.tolist()).")
    for name in ("score", "time_s"):
        value = values[name]
        if value is not None and (not isinstance(value, (int, float)) or isinstance(value, bool)):
            raise TypeError(f"{name} must be a number; got {value!r}")


def _require_int(name: str, value: int, *, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} must lie in {low}..{high}; got {value}")


def _require_token_ids(name: str, ids: tuple[int, ...] | None, len_name: str, length: int) -> None:
    if ids is None and length == _COUNT_IDS:
        raise ValueError(f"{len_name} must be given where {name} is None")
    if ids is not None and length != len(ids):
        raise ValueError(f"{len_name} is {length}, but there are {len(ids)} token ids")
    _require_int(len_name, length, low=0, high=_MAX_INT32)
    if ids and (min(ids) < 0 or max(ids) > _MAX_INT32):
        raise ValueError(f"{name} must lie in 0..{_MAX_INT32}; got {min(ids)}..{max(ids)}")


@lru_cache(maxsize=1024)
def require_canonical_attention(text: str) -> None:
    """Raise ValueError unless the text is the one form that its attention spec prints."""
    canonical = str(parse_attention(text))
    if canonical != text:
        raise ValueError(f"attention must be the text form of a spec; got {text!r}, use {canonical!r}")
