"""What every task offers: problems with token-id prompts, and a grader of generated token ids."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Ask one question.

    Attributes:
        id: Unique within the task, stable over versions.
        difficulty: A grade, larger is harder.
        prompt_ids: The prompt's token ids.
    """

    id: str
    difficulty: int
    prompt_ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Grade:
    """Judge one generated thought.

    Attributes:
        answer: The final answer as text, or None where the thought gives none.
        score: 1.0 right, 0.0 wrong or unanswered, None where the grader cannot tell.
        solved_len: Generated tokens after which the right final answer stands; None unless right.
    """

    answer: str | None
    score: float | None
    solved_len: int | None


@runtime_checkable
class Task(Protocol):
    """Offer problems and judge answers."""

    @property
    def name(self) -> str:
        """The name used in tables and traces."""
        ...

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """The text of each token id."""
        ...

    @property
    def pad_id(self) -> int:
        """The token that fills a batch; also stands for unknown words."""
        ...

    @property
    def bos_id(self) -> int:
        """The token that begins a prompt."""
        ...

    @property
    def eos_id(self) -> int:
        """The token that ends an answer."""
        ...

    @property
    def max_gen_len(self) -> int:
        """Full length limit on the thought [tokens]."""
        ...

    def problems(self, num_problems: int, *, split: str = "held_out") -> list[Problem]:
        """Return the first `num_problems` problems of a split, always the same ones."""
        ...

    def grade(self, problem: Problem, output_ids: Sequence[int]) -> Grade:
        """Judge the generated tokens."""
        ...
