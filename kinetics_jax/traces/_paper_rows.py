r"""One line of the paper's release: a trial of a question with its text and score, or the metadata of the file.

    {"task": "aime24", "pass@1": 71.7, "total_example": 960, "pass@32": 90.0}                     optional first line
    {"query": "...", "choices": ["204"], "prediction": ["... \\boxed{204}"], "score": 100.0}

Lengths come from the line if it has them (`prompt_len` or `prefix_length` or `input_ids`; `gen_len` or
`generation_length` or `output_tokens`, or `token_length`, which holds the prompt, too), else the texts are kept to be
counted.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

_PROMPT_IDS, _OUTPUT_IDS = ("prompt_ids", "input_ids"), ("output_ids", "output_tokens")
_PROMPT_LENS, _GEN_LENS = ("prompt_len", "prefix_length"), ("gen_len", "generation_length")
_DIFFICULTIES = {"easy": 1, "medium": 2, "hard": 3}
_BOX = "\\boxed{"


@dataclass(frozen=True, kw_only=True)
class PaperRow:
    """Hold what one line says.

    Attributes:
        number: Line in its file, from 1.
        order: Digest of the line; trials of a question are numbered by it.
        query: The question.
        text: The prediction; None where its tokens are counted already.
        score: As it stands, on the scale of the file; None if it is null.
        answer: The last boxed answer of the prediction, if there is one.
        difficulty: 0 unless the line has one.
        prompt_ids: Token ids of the prompt, if the line has them.
        output_ids: Token ids generated, likewise.
        prompt_len: Tokens of the prompt; None where nobody has counted them.
        gen_len: Tokens generated; None likewise.
    """

    number: int
    order: bytes
    query: str
    text: str | None
    score: float | None
    answer: str | None
    difficulty: int
    prompt_ids: tuple[int, ...] | None
    output_ids: tuple[int, ...] | None
    prompt_len: int | None
    gen_len: int | None

    @property
    def problem(self) -> str:
        """Name of the question in traces: the same for every model, method and file."""
        return "q-" + hashlib.sha256(self.query.encode("utf-8", "replace")).hexdigest()[:12]


def parse_object(line: bytes) -> dict[str, Any]:
    """Return the JSON object of a line.

    Raises:
        ValueError: If it is none, or holds NaN or an infinity.
    """
    try:
        content = json.loads(line, parse_constant=_refuse_constant)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"not a line of JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"wanted a JSON object with query, prediction and score; got {type(content).__name__}")
    return content


def parse_row(content: Mapping[str, Any], number: int, line: bytes) -> PaperRow:
    """Return what a line says.

    Raises:
        ValueError: If query, prediction or score are missing or of another kind, or counts contradict each other.
    """
    missing = [name for name in ("query", "score") if name not in content]
    if missing:
        raise ValueError(f"missing {' and '.join(missing)}")
    query, score = content["query"], content["score"]
    if not isinstance(query, str) or not query.strip():
        raise ValueError(f"query must be text; got {query!r}")
    if score is not None and (isinstance(score, bool) or not isinstance(score, int | float)):
        raise ValueError(f"score must be a number or null; got {score!r}")
    if score is not None and not 0 <= score <= 100:
        raise ValueError(f"score must lie in 0..1 or in 0..100; got {score!r}")
    prompt_ids, output_ids = _token_ids(content, _PROMPT_IDS), _token_ids(content, _OUTPUT_IDS)
    prompt_len = _count(content, _PROMPT_LENS) if prompt_ids is None else len(prompt_ids)
    gen_len = _gen_len(content, prompt_len) if output_ids is None else len(output_ids)
    text = _prediction(content)
    if text is None and gen_len is None:
        raise ValueError("missing prediction: its tokens cannot be counted")
    return PaperRow(
        number=number,
        order=hashlib.sha256(line).digest(),
        query=query.strip(),
        text=text if gen_len is None else None,
        score=None if score is None else float(score),
        answer=None if text is None else boxed_answer(text),
        difficulty=_difficulty(content.get("difficulty")),
        prompt_ids=prompt_ids,
        output_ids=output_ids,
        prompt_len=prompt_len,
        gen_len=gen_len,
    )


def boxed_answer(text: str) -> str | None:
    r"""Return what the last \boxed{...} of a text holds, without spaces and dollars; None if there is no whole one.

    Example:
        >>> boxed_answer(r"so \boxed{7}. No: $\boxed{ \frac{1}{2} }$"), boxed_answer(r"\boxed{033}"), boxed_answer("33")
        ('\\frac{1}{2}', '33', None)
    """
    start = text.rfind(_BOX)
    if start < 0:
        return None
    depth, start = 1, start + len(_BOX)
    for end in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if not depth:
            answer = "".join(text[start:end].split()).strip("$").rstrip(".")
            is_number = answer.isascii() and answer.isdigit()
            return (answer.lstrip("0") or "0" if is_number else answer) or None
    return None


def _prediction(content: Mapping[str, Any]) -> str | None:
    prediction = content.get("prediction")
    if isinstance(prediction, list):
        if len(prediction) != 1:
            raise ValueError(f"prediction must hold one text, as a line is one trial; got {len(prediction)}")
        prediction = prediction[0]
    if prediction is not None and not isinstance(prediction, str):
        raise ValueError(f"prediction must be text; got {prediction!r}")
    return prediction


def _token_ids(content: Mapping[str, Any], names: tuple[str, ...]) -> tuple[int, ...] | None:
    for name in names:
        ids = content.get(name)
        if ids is not None:
            if not isinstance(ids, list) or any(type(token) is not int or token < 0 for token in ids):
                raise ValueError(f"{name} must be a list of token ids")
            return tuple(ids)
    return None


def _count(content: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    for name in names:
        count = content.get(name)
        if count is not None:
            if type(count) is not int or count < 0:
                raise ValueError(f"{name} must be a number of tokens; got {count!r}")
            return count
    return None


def _gen_len(content: Mapping[str, Any], prompt_len: int | None) -> int | None:
    gen_len, whole = _count(content, _GEN_LENS), _count(content, ("token_length",))
    if gen_len is not None or whole is None or prompt_len is None:
        return gen_len
    if whole < prompt_len:
        raise ValueError(f"token_length must hold the prompt's {prompt_len} tokens, too; got {whole}")
    return whole - prompt_len


def _difficulty(value: Any) -> int:
    if isinstance(value, str):
        return _DIFFICULTIES.get(value.lower(), 0)
    return value if type(value) is int and 0 <= value < 2**31 else 0


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is no valid value; an ungradable trial has score null")


def score_scale(scores: Iterable[float]) -> float:
    """Return 100 if a score of the file exceeds 1, else 1.

    Example:
        >>> score_scale([0.0, 1.0]), score_scale([0.0, 100.0, 1.0])
        (1.0, 100.0)
    """
    return 100.0 if max(scores, default=0.0) > 1.0 else 1.0


def is_right(score: float, scale: float) -> bool:
    """Return whether a score is the top of its scale.

    Raises:
        ValueError: If it is neither the top nor zero.
    """
    if score not in (0.0, scale):
        raise ValueError(f"score must be 0 (wrong) or {scale:g} (right) in this file; got {score:g}")
    return score == scale
