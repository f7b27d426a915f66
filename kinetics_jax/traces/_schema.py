"""One trial as a row: its fields, what makes a row valid, and its JSON form. Everything else in the room uses it."""

import json
import math
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, NoReturn

from kinetics_jax.specs import parse_attention

SCHEMA_VERSION = 1
FINISH_REASONS = ("eos", "length", "repetition")
_MAX_INT32 = 2**31 - 1
_MAX_INT64 = 2**63 - 1
_TEXT_FIELDS = ("run", "model", "weights_hash", "task", "problem", "attention", "sampling", "finish_reason")
_COUNT_FIELDS = ("difficulty", "trial", "max_gen_len")

TraceKey = tuple[str, str, int]
"""What makes a trial unique: (run, problem, trial)."""


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Record one trial: what was asked, how it was sampled, what was said and whether it was right.

    Attributes:
        schema_version: Version of this layout; a file of another version is refused.
        run: Name of the sampling job. A run has one model, task, attention and sampling.
        model: Name of the model, as in `specs.MODELS`.
        weights_hash: Hash of the weight files that were loaded.
        task: Name of the task.
        problem: Identifier of the problem within the task.
        difficulty: Grade of the problem (the depth of `pathfind`); 0 where the task has none.
        trial: Number of the trial within (run, problem), from 0.
        seed: Seed of the run; a trial's key is folded from (seed, problem, trial).
        attention: Text form of the attention spec, `str(spec)`.
        sampling: Text form of the sampling spec.
        max_gen_len: Limit on generated tokens under which the trial ran [tokens].
        prompt_ids: Token ids of the prompt.
        output_ids: Token ids generated, the end-of-sequence token included.
        finish_reason: Why sampling stopped: "eos", "length" or "repetition".
        answer: The final answer as text, or None if there is none.
        score: 1.0 right, 0.0 wrong, None ungradable.
        solved_len: Generated tokens after which the final, right answer stands; None unless right.
        time_s: Wall time of the trial [s]; a batch's time is split over its trials.

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
    seed: int
    attention: str
    sampling: str
    max_gen_len: int
    prompt_ids: tuple[int, ...]
    output_ids: tuple[int, ...]
    finish_reason: str
    answer: str | None
    score: float | None
    solved_len: int | None
    time_s: float

    def __post_init__(self) -> None:
        if self.schema_version != SCHEMA_VERSION:
            raise ValueError(
                f"schema_version must be {SCHEMA_VERSION}; got {self.schema_version!r}. "
                "Read these traces with the release of kinetics_jax that wrote them, or a newer one."
            )
        _check_types(vars(self))
        for name in _COUNT_FIELDS:
            _require_int(name, getattr(self, name), low=0, high=_MAX_INT32)
        _require_int("seed", self.seed, low=-_MAX_INT64, high=_MAX_INT64)
        _require_token_ids("prompt_ids", self.prompt_ids)
        _require_token_ids("output_ids", self.output_ids)
        _require_canonical_attention(self.attention)
        if not 0 <= self.time_s < math.inf:
            raise ValueError(f"time_s must be a finite number of seconds, zero or more; got {self.time_s!r}")
        self._check_outcome()

    def _check_outcome(self) -> None:
        if self.finish_reason not in FINISH_REASONS:
            raise ValueError(f"finish_reason must be one of {', '.join(FINISH_REASONS)}; got {self.finish_reason!r}")
        if self.gen_len > self.max_gen_len:
            raise ValueError(f"output_ids must hold at most max_gen_len={self.max_gen_len} tokens; got {self.gen_len}")
        if self.score is not None and self.score not in (0.0, 1.0):
            raise ValueError(f"score must be 1.0 (right), 0.0 (wrong) or None (ungradable); got {self.score!r}")
        if self.score != 1.0:
            if self.solved_len is not None:
                raise ValueError(f"solved_len must be None unless score is 1.0; got {self.solved_len!r}")
        elif self.solved_len is None:
            raise ValueError("solved_len must be given when score is 1.0; got None. Use the length of output_ids.")
        else:
            _require_int("solved_len", self.solved_len, low=0, high=self.gen_len)

    @property
    def key(self) -> TraceKey:
        """What makes the trial unique: (run, problem, trial)."""
        return self.run, self.problem, self.trial

    @property
    def prompt_len(self) -> int:
        """Tokens of the prompt."""
        return len(self.prompt_ids)

    @property
    def gen_len(self) -> int:
        """Tokens generated."""
        return len(self.output_ids)


FIELDS = tuple(field.name for field in fields(Trace))


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
    if row.get("schema_version", SCHEMA_VERSION) == SCHEMA_VERSION:  # else Trace itself says what is wrong
        missing = [name for name in FIELDS if name not in row]
        unknown = [name for name in row if name not in FIELDS]
        if missing or unknown:
            raise ValueError(f"not the fields of a trace: missing {missing or 'none'}, unknown {unknown or 'none'}")
    values: dict[str, Any] = {name: row.get(name) for name in FIELDS}
    for name in ("prompt_ids", "output_ids"):
        if isinstance(values[name], list):
            values[name] = tuple(values[name])
    for name in ("score", "time_s"):
        if type(values[name]) is int:  # JSON writers drop the .0
            values[name] = float(values[name])
    if values["schema_version"] == SCHEMA_VERSION:
        _check_types(values)  # before the constructor, whose annotations tests enforce with errors of their own
    return Trace(**values)


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no valid value in a trace; an ungradable trial has score null")


def _check_types(values: dict[str, Any]) -> None:
    """Raise TypeError for the first field of a wrong type, ValueError for a text that cannot be stored."""
    for name in (*_TEXT_FIELDS, *(("answer",) if values["answer"] is not None else ())):
        if not isinstance(values[name], str):
            raise TypeError(f"{name} must be text; got {values[name]!r}")
        if not values[name] and name != "answer":
            raise ValueError(f"{name} must not be empty")
        if not values[name].isascii() and any("\ud800" <= char <= "\udfff" for char in values[name]):
            raise ValueError(f"{name} must be valid Unicode; got the lone surrogate in {values[name]!r}")
    optional = [] if values["solved_len"] is None else ["solved_len"]
    for name in (*_COUNT_FIELDS, "seed", *optional):
        if type(values[name]) is not int:
            raise TypeError(f"{name} must be a Python int; got {values[name]!r}. Use int(...) or array.tolist().")
    for name in ("prompt_ids", "output_ids"):
        if not isinstance(values[name], tuple) or any(type(token) is not int for token in values[name]):
            raise TypeError(f"{name} must be a tuple of Python ints. Use tuple(array.tolist()).")
    for name in ("score", "time_s"):
        if not isinstance(values[name], (int, float)) or isinstance(values[name], bool):
            if name == "score" and values[name] is None:
                continue
            raise TypeError(f"{name} must be a number; got {values[name]!r}")


def _require_int(name: str, value: int, *, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} must lie in {low}..{high}; got {value}")


def _require_token_ids(name: str, ids: tuple[int, ...]) -> None:
    if ids and (min(ids) < 0 or max(ids) > _MAX_INT32):
        raise ValueError(f"{name} must lie in 0..{_MAX_INT32}; got {min(ids)}..{max(ids)}")


@lru_cache(maxsize=1024)
def _require_canonical_attention(text: str) -> None:
    canonical = str(parse_attention(text))
    if canonical != text:
        raise ValueError(f"attention must be the text form of a spec; got {text!r}, use {canonical!r}")
