"""What a task asked in words offers: questions, the chat that asks them, and a grader of the text of an answer.

One text task serves every model: `tokenised` joins it with a model's tokenizer. A new one is one file and a line in
`_catalog.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

Message = Mapping[str, Any]
"""One turn of a chat: its "role" and its "content"."""


@dataclass(frozen=True, kw_only=True)
class TextProblem:
    """Ask one question in words.

    Attributes:
        id: Unique within the task, stable over versions.
        difficulty: A grade, larger is harder; 0 where the task has none.
        question: What is asked, without instructions.
        reference: What a right answer is held against, in the task's own form: an expression, or tests as JSON.
        details: What else the prompt or the grader needs, by name (the starter code of a program, say).
    """

    id: str
    difficulty: int
    question: str
    reference: str
    details: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Point at the final answer in a text.

    Attributes:
        text: The answer itself.
        end: Characters of the text after which it stands: every longer beginning of the text gives the same answer.
            None if only the end of the text makes it final.
    """

    text: str
    end: int | None


@dataclass(frozen=True, kw_only=True)
class TextGrade:
    """Judge one text.

    Attributes:
        answer: Where the final answer stands and what it is; None where there is none.
        score: 1.0 right, 0.0 wrong or unanswered, None where the grader cannot tell.
        reason: A few words on why, where there is more to say than right or wrong ("time limit").
    """

    answer: Answer | None
    score: float | None
    reason: str = ""


@runtime_checkable
class TextTask(Protocol):
    """Offer questions in words and judge the text of answers."""

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
    def size(self) -> int | None:
        """How many problems were published; None where they are made and never end."""
        ...

    @property
    def needs(self) -> str:
        """What must be there to use it without a network, in a few words."""
        ...

    @property
    def max_gen_len(self) -> int:
        """Full length limit on the thought [tokens], unless the user says another."""
        ...

    def problems(self, num_problems: int | None = None, *, split: str = "held_out") -> list[TextProblem]:
        """Return the first `num_problems` problems of a split, always the same ones; None asks for all there are."""
        ...

    def prompt(self, problem: TextProblem) -> Sequence[Message]:
        """Return the chat that asks the question."""
        ...

    def extract(self, problem: TextProblem, text: str, *, finished: bool = True) -> Answer | None:
        """Return the final answer, or None where there is none.

        Args:
            problem: What was asked.
            text: All that was generated, the thought included; it starts with <think> where the prompt's end opened it.
            finished: Whether the model ended the text itself; False where a limit cut it off.
        """
        ...

    def grade(self, problem: TextProblem, text: str, *, finished: bool = True) -> TextGrade:
        """Judge a text, arguments as in `extract`; may be called from several threads."""
        ...


@runtime_checkable
class FileTask(TextTask, Protocol):
    """A text task whose problems can also come from a local file instead of a download."""

    def with_data(self, data: Path) -> TextTask:
        """Return the same task with the problems of a local file; it is read when problems are asked for."""
        ...
