r"""Published problems of mathematics whose answer is an expression: AIME, AMC, MATH-500, GSM8K.

The paper asks for reasoning and a boxed answer; so does the prompt here, in our words. How a final answer is found is
told in `_math_answer.py`, how it is judged in `_math_grading.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from ._math_answer import final_answer
from ._math_grading import MATH_GRADER, grade_math
from ._rows import HubRows, read_rows, rows_revision
from ._text import Answer, Message, TextGrade, TextProblem

_INSTRUCTION = "Reason step by step. Then write the final answer, and nothing else, inside \\boxed{}."


def _as_it_is(reference: str) -> str:
    return reference


def _after_hashes(reference: str) -> str:
    """Return what follows the last "####" of a worked solution, as GSM8K writes them."""
    return reference.rpartition("####")[2]


@final
@dataclass(frozen=True, kw_only=True)
class MathTask:
    r"""Pose published problems and judge boxed expressions.

    Attributes:
        name: Name of the task.
        source: Where its rows are published.
        licence: Licence that the data set states.
        size: Problems that were published.
        question_column: Column of the question.
        answer_column: Column of the right answer.
        id_column: Column that names a problem; rows without it are named by their number.
        difficulty_column: Column of the grade, where there is one.
        reference_of: Makes the reference of the answer column.
        data: A local .jsonl or .parquet file with the same columns; None downloads.
        max_gen_len: Full length limit on the thought [tokens].

    Example:
        >>> problem = TextProblem(id="x", difficulty=0, question="6 times 7?", reference="42")
        >>> AIME25.grade(problem, "<think>6 times 7 is 41, no, 42.</think> It is \\boxed{042}.").score
        1.0
    """

    name: str
    source: HubRows
    licence: str
    size: int | None
    question_column: str
    answer_column: str
    id_column: str | None = None
    difficulty_column: str | None = None
    reference_of: Callable[[str], str] = _as_it_is
    data: Path | None = None
    max_gen_len: int = 32_768

    @property
    def revision(self) -> str:
        """The commit of the problems, or the digest of a local file, and the name of the grader's rules."""
        return f"{rows_revision(self.source, self.data)}/{MATH_GRADER}"

    @property
    def needs(self) -> str:
        """What must be there to use it without a network."""
        return "--data FILE"

    def with_data(self, data: Path) -> "MathTask":
        """Return the same task with the problems of a local file."""
        return replace(self, data=data)

    def problems(self, num_problems: int | None = None, *, split: str = "held_out") -> list[TextProblem]:
        """Return the first `num_problems` problems in the order of the data set; None asks for all.

        Raises:
            ImportError: If they must be downloaded and `datasets` (extra `hf`) is missing.
            OSError: If they cannot be downloaded, or the file does not exist.
            ValueError: If the split is not "held_out", there are fewer problems, or the rows are not what they should
                be: columns missing, an empty question or reference, one name for two problems.
        """
        if split != "held_out":
            raise ValueError(f"{self.name} has only the split 'held_out'; got {split!r}")
        if num_problems is not None and num_problems < 1:
            raise ValueError(f"num_problems must be at least 1; got {num_problems}")
        rows = read_rows(self.source, self.data, (self.question_column, self.answer_column))
        if num_problems is not None and num_problems > len(rows):
            raise ValueError(f"{self._where} has {len(rows)} problems; got num_problems={num_problems}")
        problems = [self._problem(number, row) for number, row in enumerate(rows)]
        seen: dict[str, int] = {}
        for number, problem in enumerate(problems, start=1):
            if problem.id in seen:
                raise ValueError(
                    f"{self._where}, row {number}: {self.id_column} {problem.id!r} is that of row {seen[problem.id]}, "
                    "too; every problem needs a name of its own"
                )
            seen[problem.id] = number
        return problems[:num_problems]

    def prompt(self, problem: TextProblem) -> list[Message]:
        """Return the chat that asks for reasoning and a boxed answer."""
        return [{"role": "user", "content": f"{problem.question}\n\n{_INSTRUCTION}"}]

    def extract(self, problem: TextProblem, text: str, *, finished: bool = True) -> Answer | None:
        """Return the last boxed expression after the thought; see `final_answer`."""
        return final_answer(text, finished=finished)

    def grade(self, problem: TextProblem, text: str, *, finished: bool = True) -> TextGrade:
        """Judge the final answer; a text without one is wrong, for the question was left unanswered.

        Raises:
            ImportError: If math-verify (extra `grade`) is needed and missing.
        """
        answer = self.extract(problem, text, finished=finished)
        if answer is None:
            return TextGrade(answer=None, score=0.0, reason="no answer")
        verdict = grade_math(problem.reference, answer.text)
        return TextGrade(answer=answer, score=verdict.score, reason=verdict.reason)

    @property
    def _where(self) -> str:
        return str(self.source) if self.data is None else str(self.data)

    def _problem(self, number: int, row: dict[str, Any]) -> TextProblem:
        where = f"{self._where}, row {number + 1}"
        question = str(row[self.question_column] or "").strip()
        answer = "" if row[self.answer_column] is None else str(row[self.answer_column])
        reference = self.reference_of(answer).strip()
        for column, text in ((self.question_column, question), (self.answer_column, reference)):
            if not text:
                raise ValueError(f"{where}: {column} is empty; a problem needs a question and a reference answer")
        name = row.get(self.id_column) if self.id_column else None
        difficulty = row.get(self.difficulty_column, 0) if self.difficulty_column else 0
        try:
            difficulty = int(difficulty or 0)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: {self.difficulty_column} must be a number; got {difficulty!r}") from error
        name = f"{self.name}-{number}" if name in (None, "") else str(name)
        return TextProblem(id=name, difficulty=difficulty, question=question, reference=reference)


# Commits as read from published evaluation code that pins them; the licences are what the data sets state.
AIME24 = MathTask(
    name="aime24",
    source=HubRows(repo="HuggingFaceH4/aime_2024", revision="2fe88a2f1091d5048c0f36abc874fb997b3dd99a", split="train"),
    licence="unknown",
    size=30,
    question_column="problem",
    answer_column="answer",
    id_column="id",
)
AIME25 = MathTask(
    name="aime25",
    source=HubRows(repo="math-ai/aime25", revision="563bb8404243c5f09de6ec262f2db674fe5bce9b", split="test"),
    licence="unknown",
    size=30,
    question_column="problem",
    answer_column="answer",
    id_column="id",
)
AMC23 = MathTask(
    name="amc23",
    source=HubRows(repo="math-ai/amc23", revision="80815d37005feb82cd7f8fbc6901d5d3eff43057", split="test"),
    licence="unknown",
    size=40,
    question_column="question",
    answer_column="answer",
    id_column="id",
)
MATH500 = MathTask(
    name="math500",
    source=HubRows(repo="HuggingFaceH4/MATH-500", revision="6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be", split="test"),
    licence="unknown",
    size=500,
    question_column="problem",
    answer_column="answer",
    id_column="unique_id",
    difficulty_column="level",
    max_gen_len=16_384,
)
GSM8K = MathTask(
    name="gsm8k",
    source=HubRows(
        repo="openai/gsm8k", revision="740312add88f781978c0658806c59bc2815b9866", split="test", config="main"
    ),
    licence="MIT",
    size=1319,
    question_column="question",
    answer_column="answer",
    reference_of=_after_hashes,
    max_gen_len=8_192,
)
