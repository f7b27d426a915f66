"""What every task offers at the level of tokens: problems with token-id prompts, and a grader of generated token ids.

`collect` sees only this. Tasks that are asked in words stand beside it (`TextTask`); `tokenised` makes one of these
from one of those and a model's tokenizer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from ._text import TextProblem


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Ask one question.

    Attributes:
        id: Unique within the task, stable over versions.
        difficulty: A grade, larger is harder; 0 where the task has none.
        prompt_ids: The prompt's token ids; problems of one task may differ in length.
        text: The question in words, where the task is asked in words.
    """

    id: str
    difficulty: int
    prompt_ids: tuple[int, ...]
    text: TextProblem | None = None


@dataclass(frozen=True, kw_only=True)
class Grade:
    """Judge one generated thought.

    Attributes:
        answer: The final answer as text, or None where the thought gives none.
        score: 1.0 right, 0.0 wrong or unanswered, None where the grader cannot tell.
        solved_len: Generated tokens after which the right final answer stands; None unless right.
        reason: A few words on why, where there is more to say than right or wrong ("time limit").
    """

    answer: str | None
    score: float | None
    solved_len: int | None
    reason: str = ""


@runtime_checkable
class Task(Protocol):
    """Offer problems and judge answers."""

    @property
    def name(self) -> str:
        """The name used in tables and traces."""
        ...

    @property
    def revision(self) -> str:
        """Which version of the problems and of their grader this is."""
        ...

    @property
    def licence(self) -> str:
        """The licence of the problems: an SPDX identifier, or "unknown"."""
        ...

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The tokens that end an answer."""
        ...

    @property
    def max_gen_len(self) -> int:
        """Full length limit on the thought [tokens]."""
        ...

    def problems(self, num_problems: int | None = None, *, split: str = "held_out") -> list[Problem]:
        """Return the first `num_problems` problems of a split, always the same ones; None asks for all there are."""
        ...

    def grade(self, problem: Problem, output_ids: Sequence[int]) -> Grade:
        """Judge the generated tokens; may be called from several threads."""
        ...
