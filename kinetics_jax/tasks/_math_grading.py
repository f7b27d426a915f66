"""Does an answer equal the reference? Three outcomes: right, wrong, and ungradable where nobody can tell.

In this order: the same text; two exact numbers; lists, tuples, sets and intervals item by item; and for all else
math-verify in a process of its own. The first three decide nearly all answers in microseconds, exactly. Verdicts
depend on the two texts alone and are kept.
"""

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from ._numbers import read_number, tidy, without_unit
from ._workers import NoAnswer, WorkerPool

MATH_GRADER = "math-2"
"""Name of these rules; it rises when a verdict changes."""
CPU_S, WALL_S = 5.0, 60.0
_MAX_LEN, _MAX_DEPTH = 2000, 60

_SPACE = re.compile(r"\\(?:left|right|displaystyle|[!,;: ])(?![A-Za-z])|\s+|\\q?quad(?![A-Za-z])")
_DIGITS_APART = re.compile(rf"(?<=\d)(?:{_SPACE.pattern})+(?=\d)")
_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mbox|mathbf)\s*\{([^{}]*)\}")
_WORDS = re.compile(r"[^\W\d_]+(?:[ '-]+[^\W\d_]+)*")
_CHOICE = re.compile(r"\(([A-Za-z])\)")
_TOO_LARGE = re.compile(
    r"(?:\^|\*\*)\s*\{?\s*[+-]?\d{5,}|\d\s*(?:\^|\*\*)\s*\{?\s*\d+\s*(?:\^|\*\*)|\d{5,}\s*!|!\s*\)*\s*!"
)
_PAIRS = {"(": (")", "]"), "[": (")", "]"), "{": ("}",)}
_TOKENS = re.compile(
    r"\\begin\s*\{|\\end\s*\{|\\left|\\right|\\(?:l|r)brace|\\[{}]|\\(?:text|mathrm)\s*\{\s*(?:and|or)\s*\}|\band\b|\bor\b|[()\[\]{},;]"
)

_pool = WorkerPool("math_verify", "grade")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Say how an answer compares.

    Attributes:
        score: 1.0 right, 0.0 wrong, None ungradable.
        reason: A few words on why, where there is more to say.
    """

    score: float | None
    reason: str = ""


_RIGHT, _WRONG = Verdict(score=1.0), Verdict(score=0.0)


@lru_cache(maxsize=1 << 16)
def grade_math(reference: str, answer: str) -> Verdict:
    r"""Compare an answer with a reference, both expressions in LaTeX or plain text.

    Numbers are compared exactly; units are left out, and so are a dollar sign and thousands separators; a percent sign
    that one side lacks is forgiven. Tuples and intervals keep their order and brackets, sets and bare lists do not.

    Args:
        reference: What is right.
        answer: What was answered, without its box.

    Returns:
        The verdict, the same for the same texts. Ungradable: math-verify cannot parse what is no number, runs out of
        time, or would have to compute a number beyond all bounds.

    Raises:
        ImportError: If math-verify (extra `grade`) is needed and missing.

    Example:
        >>> grade_math("70", "070").score, grade_math(r"\frac{1}{2}", "0.5").score, grade_math("(1, 2)", "(2, 1)").score
        (1.0, 1.0, 0.0)
    """
    reference, answer = tidy(reference), tidy(answer)
    if not answer:
        return Verdict(score=0.0, reason="empty answer")
    if _plain(reference) == _plain(answer):
        return _RIGHT
    if len(answer) > _MAX_LEN or _depth(answer) > _MAX_DEPTH:
        return Verdict(score=None, reason="too long or too deep to grade")
    number, other = read_number(reference), read_number(answer)
    if number is not None and other is not None:
        return _RIGHT if number.equals(other) else _WRONG
    words, said = _words(reference), _words(answer)
    if words is not None and said is not None:
        if words == said:
            return _RIGHT
        if _TEXT.search(reference) or len(max(words.split(), key=len)) > 3:
            return _WRONG
    if (number is not None and said is not None) or (words is not None and other is not None):
        return _WRONG
    return _grade_lists(reference, answer) or _grade_by_library(reference, answer, is_number=number is not None)


def _plain(text: str) -> str:
    """Return the text without what is only typography; "1 2" is not "12"."""
    text = _DIGITS_APART.sub("~", text)
    return _SPACE.sub("", re.sub(r"\\[dtc]frac(?![A-Za-z])", r"\\frac", text))


def _words(text: str) -> str | None:
    """Return what a purely verbal expression says, in small letters unless it is one letter; None for mathematics."""
    text = _TEXT.sub(r"\1", text).strip()
    choice = _CHOICE.fullmatch(text)
    text = choice[1] if choice else text
    if not _WORDS.fullmatch(text):
        return None
    return text if len(text) == 1 else " ".join(text.casefold().split())


@dataclass(frozen=True, kw_only=True)
class _Items:
    kind: Literal["tuple", "interval", "set", "bare"]
    brackets: str
    items: tuple[str, ...]


def _grade_lists(reference: str, answer: str) -> Verdict | None:
    """Compare item by item where both are lists of some kind; None where they are not."""
    wanted, got = _items(reference), _items(answer)
    if wanted is None or got is None:
        return None
    if wanted.kind in ("tuple", "interval"):
        fits = got.brackets == wanted.brackets or (wanted.kind == "tuple" and got.kind == "bare")
        return _in_order(wanted.items, got.items) if fits else _WRONG
    if got.kind == "interval" or (got.kind == "tuple" and wanted.kind == "set"):
        return _WRONG
    return (_in_order if got.kind == "tuple" else _in_any_order)(wanted.items, got.items)


def _items(text: str) -> _Items | None:
    """Read "(a, b)", "[a, b)", "{a, b}" or "a, b"; None for what is no list at its top level."""
    text = re.sub(r"\\(?:left|right)(?![A-Za-z])", "", text).strip()
    text = re.sub(r"\\l?brace(?![A-Za-z])|\\\{", "{", re.sub(r"\\rbrace(?![A-Za-z])|\\\}", "}", text))
    if len(text) > 1 and text[0] in _PAIRS and text[-1] in _PAIRS[text[0]] and _encloses(text):
        inner = _split(text[1:-1])
        brackets = text[0] + text[-1]
        kind = "set" if brackets == "{}" else "tuple" if brackets == "()" else "interval"
        return None if kind != "set" and len(inner) < 2 else _Items(kind=kind, brackets=brackets, items=inner)
    inner = _split(text)
    return _Items(kind="bare", brackets="", items=inner) if len(inner) > 1 else None


def _depth(text: str) -> int:
    depth = deepest = 0
    for char in text:
        depth += (char in "([{") - (char in ")]}")
        deepest = max(deepest, depth)
    return deepest


def _encloses(text: str) -> bool:
    """Say whether the first bracket is closed by the last, not before."""
    depth = 0
    for at, char in enumerate(text):
        depth += (char in "([{") - (char in ")]}")
        if depth == 0:
            return at == len(text) - 1
    return False


def _split(text: str) -> tuple[str, ...]:
    r"""Split at the commas, semicolons and "and"s that lie in no bracket and no \begin...\end."""
    parts, depth, start, begun = [], 0, 0, 0
    for match in _TOKENS.finditer(text):
        token = match[0]
        begun += token.startswith("\\begin") - token.startswith("\\end")
        if token[-1] in "([{":
            depth += 1
        elif token in (")", "]", "}"):
            depth -= 1
        elif depth == 0 and begun == 0 and (token in ",;" or token.rstrip("}").strip().endswith(("and", "or"))):
            parts.append(text[start : match.start()].strip())
            start = match.end()
    parts.append(text[start:].strip())
    return tuple(part for part in parts if part)


def _in_order(wanted: Sequence[str], got: Sequence[str]) -> Verdict:
    if len(wanted) != len(got):
        return _WRONG
    verdicts = [grade_math(one, other) for one, other in zip(wanted, got, strict=True)]
    scores = [verdict.score for verdict in verdicts]
    if 0.0 in scores:
        return _WRONG
    return next((verdict for verdict in verdicts if verdict.score is None), _RIGHT)


def _in_any_order(wanted: Sequence[str], got: Sequence[str]) -> Verdict:
    """Pair equal items off; equality is no matter of which pair comes first."""
    if len(wanted) != len(got):
        return _WRONG
    left, doubt = list(got), None
    for one in wanted:
        verdicts = [grade_math(one, other) for other in left]
        if _RIGHT in verdicts:
            left.pop(verdicts.index(_RIGHT))
            continue
        doubt = doubt or next((verdict for verdict in verdicts if verdict.score is None), None)
        if doubt is None:
            return _WRONG
    return doubt or _RIGHT


def _grade_by_library(reference: str, answer: str, *, is_number: bool) -> Verdict:
    if _TOO_LARGE.search(answer):
        return Verdict(score=None, reason="too large to compute")
    wanted, said = without_unit(reference), without_unit(answer)
    with _turn(wanted, said):
        verdict = _remembered(wanted, said)
    if verdict.reason == "the answer cannot be parsed" and is_number:
        return Verdict(score=0.0, reason="no number")
    return verdict


@lru_cache(maxsize=1 << 16)
def _turn(reference: str, answer: str) -> threading.Lock:
    """Return what lets one thread compare and the others wait: trials of a problem often say the same, side by side."""
    return threading.Lock()


@lru_cache(maxsize=1 << 16)
def _remembered(reference: str, answer: str) -> Verdict:
    return ask_math_verify(reference, answer)


def ask_math_verify(reference: str, answer: str, *, cpu_s: float = CPU_S, wall_s: float = WALL_S) -> Verdict:
    """Compare by math-verify in a worker process, which is killed when its time is up.

    Args:
        reference: What is right.
        answer: What was answered.
        cpu_s: Processor time that the comparison may take [s].
        wall_s: Wall time that it may take [s].

    Raises:
        ImportError: If math-verify (extra `grade`) is missing.
    """
    request = {"kind": "compare", "reference": reference, "answer": answer}
    try:
        return Verdict(**_pool.ask(request, cpu_s=cpu_s, wall_s=wall_s))
    except NoAnswer as error:
        return Verdict(score=None, reason=str(error))
