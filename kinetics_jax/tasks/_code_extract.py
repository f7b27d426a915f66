"""Which program does an answer hand in? The last fenced one after the thought, unless the task knows better."""

import re

from ._text import Answer
from ._thought import answer_start

_FENCE = re.compile(r"^[ \t]{0,3}(`{3,}|~{3,})[ \t]*([^\n`]*)$", re.MULTILINE)
_PYTHON = ("python", "python3", "py", "py3")


def extract_program(text: str) -> Answer | None:
    r"""Return the last fenced program after the thought, None where there is none.

    Of the fences marked as Python the last one; where none is marked so, the last one without a mark (an unmarked
    fence after a program is as a rule what it prints). A fence opens with three or more backticks or tildes at the
    start of a line and closes with at least as many of the same; one left open runs to the next that is marked as
    Python, or to the end of the text.

    Args:
        text: All that was generated, thought included.

    Returns:
        The program and the number of characters of the text after which it stands: the end of its closing fence.

    Example:
        >>> extract_program("First:\n```python\nprint(1)\n```\nIt prints\n```\n1\n```\nDone.")
        Answer(text='print(1)\n', end=29)
        >>> extract_program("<think>```python\nprint(1)\n```") is None
        True
    """
    programs = fenced_programs(text)
    return programs[-1] if programs else None


def fenced_programs(text: str) -> list[Answer]:
    """Return the fenced programs after the thought: those marked as Python, or the unmarked ones where none is.

    Args:
        text: All that was generated, thought included.
    """
    start = answer_start(text)
    if start is None:
        return []
    found: dict[str, list[Answer]] = {}
    opened: re.Match[str] | None = None
    text, thought = text[start:], text[:start]  # the answer's first line may follow the thought without a break
    for fence in _FENCE.finditer(text):
        marks, word = fence.group(1), fence.group(2)
        if opened is None or _language(word) == "python":
            if opened is not None:
                _keep(found, text, opened, fence.start(), fence.start())
            opened = fence
        elif not word.strip() and marks[0] == opened.group(1)[0] and len(marks) >= len(opened.group(1)):
            _keep(found, text, opened, fence.start(), fence.end())
            opened = None
    if opened is not None:
        _keep(found, text, opened, len(text), len(text))
    programs = found.get("python", found.get("", []))
    return [Answer(text=each.text, end=len(thought) + (each.end or 0)) for each in programs]


def _language(word: str) -> str:
    first = (word.split() or [""])[0].lower()
    return "python" if first in _PYTHON else first


def _keep(found: dict[str, list[Answer]], text: str, opened: re.Match[str], stop: int, end: int) -> None:
    body = text[opened.end() + 1 : stop]
    if body.strip():
        found.setdefault(_language(opened.group(2)), []).append(Answer(text=body, end=end))
