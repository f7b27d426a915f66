r"""Numbers as people and models write them in LaTeX, read exactly: "1{,}000", "\frac{3}{4}", "$18", "90^\circ".

What is no single number in this sense is left to math-verify. Exact means exact: 0.333333 is not 1/3.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

_MAX_DIGITS = 4000
"""Longer literals are no answers, and Python refuses to read them."""

_DROPPED = re.compile(
    r"\\(?:left|right|displaystyle|textstyle|bigl?|bigr|Bigl?|Bigr|limits)(?![A-Za-z])|\\[!,;: ]|\\q?quad(?![A-Za-z])|~"
)
_ENCLOSED = re.compile(r"\$\$(.*)\$\$|\$(.*)\$|\\\((.*)\\\)|\\\[(.*)\\\]|\*\*(.*)\*\*", re.DOTALL)
_NAME = re.compile(r"[A-Za-z](?:_\{?\w+\}?)?\s*=\s*(?=[^=])")
_POWER = r"(?:\s*\^\s*(?:\{\s*-?\d+\s*\}|-?\d))?"
_MANY = "million|billion|thousand|hundred|dozen"
_IN_TEXT = rf"\\?\s*\\(?:text|mathrm|textrm|mbox|operatorname)\s*\{{(?!\s*(?:{_MANY}))[^{{}}]*\}}{_POWER}"
_IN_WORDS = rf"\s+(?!(?:and|or|pi|percent|{_MANY})\b)[A-Za-z]{{2,}}(?:\s+[A-Za-z]{{2,}}){{0,3}}"
_UNIT = re.compile(rf"(?:{_IN_TEXT}|\s*\^\s*\{{?\s*\\circ\s*\}}?|\s*\\degree|\s*°|{_IN_WORDS})+\s*$")
_TEXT_UNIT = re.compile(rf"{_IN_TEXT}\s*$")
_PERCENT = re.compile(r"\s*(?:\\?%|\\text\s*\{\s*(?:\\?%|percent)\s*\}|percent)\s*$")
_SEPARATOR = r"(?:,|\{,\}|\\,|,?\\!|,\\!\s|\s)"
_THOUSANDS = re.compile(rf"\d{{1,3}}(?:{_SEPARATOR}\d{{3}})+(?=\.\d|$)")
_REPEATING = re.compile(r"(\d*)\.(\d*)\\(?:overline|bar)\s*(?:\{(\d+)\}|(\d))")
_DECIMAL = re.compile(r"\d+(?:\.\d*)?|\.\d+")
_RATIO = re.compile(r"(\d+)\s*/\s*(\d+)")
_FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{\s*([+-]?\d+)\s*\}|(\d))\s*(?:\{\s*([+-]?\d+)\s*\}|(\d))")


@dataclass(frozen=True, kw_only=True)
class ExactNumber:
    """Hold a number and whether a percent sign stood behind it.

    Attributes:
        value: The number as written, the sign left out: 50 for "50%".
        is_percent: Whether it was written as a percentage.
    """

    value: Fraction
    is_percent: bool

    def equals(self, other: "ExactNumber") -> bool:
        """Say whether the two are the same; a percent sign that one of them lacks may mean 50 or 0.5."""
        if self.is_percent == other.is_percent:
            return self.value == other.value
        percent, plain = (self, other) if self.is_percent else (other, self)
        return plain.value in (percent.value, percent.value / 100)


def tidy(text: str) -> str:
    """Return the expression without what does not change it: math delimiters, spacing commands, a final full stop."""
    text = text.strip()
    while True:
        before = text
        enclosed = _ENCLOSED.fullmatch(text)
        if enclosed is not None:
            inner = next(group for group in enclosed.groups() if group is not None)
            text = text if re.search(r"(?<!\\)\$", inner) else inner.strip()
        text = text.removesuffix(".").strip()
        if text == before:
            break
    return text.replace("\u2212", "-").replace("\\$", "$").strip()


def without_unit(text: str) -> str:
    r"""Return a tidied expression without a unit in \text{...} behind it, unless nothing else is there."""
    return _TEXT_UNIT.sub("", text).strip() or text


def read_number(text: str) -> ExactNumber | None:
    """Return the number that a tidied expression is, or None if it is something else.

    Example:
        >>> read_number("x = 1{,}050")
        ExactNumber(value=Fraction(1050, 1), is_percent=False)
        >>> read_number("x + 1") is None
        True
    """
    if len(text) > _MAX_DIGITS or not any(char.isdigit() for char in text):
        return None
    text = _NAME.sub("", text, count=1) if _NAME.match(text) else text
    text = _UNIT.sub("", text) if not _PERCENT.search(text) else text
    without = _PERCENT.sub("", text)
    is_percent = without != text
    sign, magnitude = _split_sign(without.strip())
    magnitude = magnitude.removeprefix("$").strip()
    if _THOUSANDS.match(magnitude):
        magnitude = re.sub(_SEPARATOR, "", magnitude)
    apart = re.sub(r"\\q?quad(?![A-Za-z])", " ", magnitude)  # stands between two numbers, never in one
    value = _read_magnitude(_DROPPED.sub("", apart).strip())
    return None if value is None else ExactNumber(value=sign * value, is_percent=is_percent)


def _split_sign(text: str) -> tuple[int, str]:
    sign = 1
    if text[:1] in ("-", "+"):
        sign = -1 if text[0] == "-" else 1
        text = text[1:].strip()
    return sign, text


def _read_magnitude(text: str) -> Fraction | None:
    if _DECIMAL.fullmatch(text):
        return Fraction(text)
    repeating = _REPEATING.fullmatch(text)
    if repeating:
        whole, once, period = repeating[1], repeating[2], repeating[3] or repeating[4]
        shift = 10 ** len(once)
        return Fraction(f"{whole or 0}.{once or 0}") + Fraction(int(period), shift * (10 ** len(period) - 1))
    ratio, fraction = _RATIO.fullmatch(text), _FRACTION.fullmatch(text)
    groups = ratio.groups() if ratio else fraction.groups() if fraction else ()
    parts = [int(group) for group in groups if group is not None]
    return Fraction(parts[0], parts[1]) if parts and parts[1] else None
