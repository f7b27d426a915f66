r"""Which part of a text is its final answer? The last \boxed{...} after the thought, and nothing a thought left open.

Only where a finished text has no box at all is an explicit sentence taken for it ("The answer is 12", "#### 12");
stray numbers never are.
"""

import re
from typing import NamedTuple

from ._text import Answer
from ._thought import answer_start

_BRACES = re.compile(r"(\\(?:boxed|fbox)\s*\{)|\\[\\{}]|([{}])")
_SENTENCE = re.compile(r"(?i)(?:\banswer\b[*_]*\s*(?:is\b\s*:?|:|=)|####)[*_ \t]*([^\n]+)")
_NO_MORE = re.compile(r"\.(?:\s|\*|$)|\bI hope\b")


def final_answer(text: str, *, finished: bool = True) -> Answer | None:
    r"""Return the final answer of a text and where it stands, or None where there is none.

    Of several boxes the last counts. It stands from the first of the boxes at the end that all say the same.

    Args:
        text: All that was generated, the thought included.
        finished: Whether the model ended the text itself.

    Example:
        >>> final_answer(r"<think>\boxed{3}?</think> It is \boxed{4}, yes, \boxed{4}.")
        Answer(text='4', end=41)
        >>> final_answer(r"<think>surely \boxed{4}") is None
        True
    """
    start = answer_start(text)
    if start is None:
        return None
    boxes = _boxes(text, start)
    if boxes:
        last = boxes[-1][1]
        first = len(boxes) - 1
        while first and boxes[first - 1][1] == last:
            first -= 1
        return Answer(text=last, end=boxes[first][0])
    return _sentence(text, start) if finished else None


class _Box(NamedTuple):
    begin: int
    content: int
    close: int
    end: int


def _boxes(text: str, start: int) -> list[tuple[int, str]]:
    """Return (end, content) of every closed box that lies in no other, in one pass."""
    opened: list[tuple[int | None, int]] = []
    found: list[_Box] = []
    for match in _BRACES.finditer(text, start):
        if match[1]:
            opened.append((match.start(), match.end()))
        elif match[2] == "{":
            opened.append((None, match.end()))
        elif match[2] == "}" and opened:
            begin, content = opened.pop()
            if begin is not None:
                box = _Box(begin, content, match.start(), match.end())
                while found and found[-1].begin > begin:  # closed inside this one
                    inner = found.pop()
                    if not text[content : inner.begin].strip() and not text[inner.end : match.start()].strip():
                        box = box._replace(content=inner.content, close=inner.close)  # a box in a box
                found.append(box)
    return [(box.end, text[box.content : box.close].strip()) for box in found]


def _sentence(text: str, start: int) -> Answer | None:
    *_, match = (None, *_SENTENCE.finditer(text, start))
    if match is None:
        return None
    said = match[1]
    cut = _NO_MORE.search(said)
    said = said[: cut.start()] if cut else said
    said = said.strip().strip("*_").strip()
    return Answer(text=said, end=None) if said else None
