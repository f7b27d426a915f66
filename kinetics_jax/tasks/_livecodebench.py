"""LiveCodeBench v5: write a program for a contest problem, judged by public and hidden tests.

The 167 problems that release v5 added (contests of August 2024 to January 2025), which is the set the paper samples
from, and a stratified 50 of them: 24 hard, 16 medium, 10 easy. Their file is half a gigabyte, most of it tests, so a
problem only points at its line, and tests are read when an answer is judged. The data set's own loading script needs
an old `datasets`; the raw file is downloaded instead.

References:
    Jain et al., LiveCodeBench: Holistic and Contamination Free Evaluation of Large Language Models for Code, 2024.
"""

import ast
import hashlib
import importlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, final

from ._code_cache import VerdictCache
from ._code_extract import extract_program
from ._code_grade import grade_program
from ._code_judge import Judge, Tests
from ._livecodebench_tests import PRELOAD, contest_tests
from ._rows import HubRows, rows_revision
from ._sandbox import Limits
from ._text import Answer, Message, TextGrade, TextProblem

_SOURCE = HubRows(
    repo="livecodebench/code_generation_lite", revision="0fe84c3912ea0c4d4a78037083943e8f0c4dd505", split="test5.jsonl"
)
_SHA256 = "7f77571c2a6df0c2a72a3277650309f67e01e0008e18117e624633df53f81214"
_COLUMNS = (
    "question_id", "question_content", "difficulty", "starter_code", "metadata",
    "public_test_cases", "private_test_cases",
)  # fmt: skip
_GRADES = {"easy": 1, "medium": 2, "hard": 3}
_STRATA = {"hard": 24, "medium": 16, "easy": 10}
_GRADER = "code-1"
_PROGRAM = (
    "Write a Python program that solves this problem: it reads standard input and prints to standard output. "
    "End your answer with the whole program in one fenced block of Python."
)
_CLASS = (
    "Solve this problem in Python by completing the class below. "
    "End your answer with the whole class, imports included, in one fenced block of Python."
)


@final
@dataclass(frozen=True, kw_only=True)
class LiveCodeBench:
    """Pose contest problems and judge programs.

    Attributes:
        stratified: Ask the stratified 50 only.
        seed: Which 50: in each stratum the problems with the smallest SHA-256 of "seed:question_id", in the order of
            the file. The paper does not say which it drew; nothing but the counts is theirs.
        data: A local .jsonl file with the same columns; None downloads.
        judge: Limits, cache and isolation of the judging; six seconds and 4 GiB a test as in the released grader.
        max_gen_len: Full length limit on the thought [tokens].

    Example:
        >>> LiveCodeBench().size, LiveCodeBench(stratified=True).size
        (167, 50)
    """

    stratified: bool = False
    seed: int = 0
    data: Path | None = None
    judge: Judge = field(
        default_factory=lambda: Judge(
            limits=Limits(cpu_s=6.0, wall_s=18.0, memory_bytes=4 << 30), preload=PRELOAD, cache=VerdictCache()
        )
    )
    max_gen_len: int = 32_768

    @property
    def name(self) -> str:
        """The name used in tables and traces."""
        return "livecodebench50" if self.stratified else "livecodebench"

    @property
    def revision(self) -> str:
        """The commit of the problems or the digest of a local file, the seed of the 50, the grader's rules."""
        drawn = f"/seed{self.seed}" if self.stratified else ""
        return f"{rows_revision(_SOURCE, self.data)}{drawn}/{_GRADER}"

    @property
    def licence(self) -> str:
        """The licence of the problems, as the data set states it, without a version."""
        return "CC"

    @property
    def size(self) -> int | None:
        """How many problems there are."""
        return sum(_STRATA.values()) if self.stratified else 167

    @property
    def needs(self) -> str:
        """What must be there to use it without a network."""
        return f"--data FILE, a copy of {_SOURCE.split} of {_SOURCE.repo}; Linux that isolates programs"

    def with_data(self, data: Path) -> "LiveCodeBench":
        """Return the same task with the problems of a local file."""
        return replace(self, data=data)

    def problems(self, num_problems: int | None = None, *, split: str = "held_out") -> list[TextProblem]:
        """Return the first `num_problems` problems in the order of the file; None asks for all.

        Raises:
            ImportError: If they must be downloaded and `huggingface_hub` (extra `hf`) is missing.
            OSError: If they cannot be downloaded, or the file cannot be read.
            ValueError: If the split is not "held_out", there are fewer problems, or a line is not what it should be.
        """
        if split != "held_out":
            raise ValueError(f"{self.name} has only the split 'held_out'; got {split!r}")
        path = self._path()
        problems = list(_read_problems(path, _stamp(path)))
        if self.stratified:
            problems = _draw(problems, self.seed, path)
        if num_problems is not None and not 1 <= num_problems <= len(problems):
            raise ValueError(f"{path} has {len(problems)} problems; got num_problems={num_problems}")
        return problems[:num_problems]

    def prompt(self, problem: TextProblem) -> list[Message]:
        """Return the chat that asks for a program, or for the class of the starter code."""
        starter = problem.details["starter_code"].strip()
        text = f"{_CLASS if starter else _PROGRAM}\n\n{problem.question.strip()}"
        return [{"role": "user", "content": f"{text}\n\n```python\n{starter}\n```" if starter else text}]

    def extract(self, problem: TextProblem, text: str, *, finished: bool = True) -> Answer | None:
        """Return the last fenced program after the thought."""
        return extract_program(text)

    def grade(self, problem: TextProblem, text: str, *, finished: bool = True) -> TextGrade:
        """Judge the program by all tests of the problem; ungradable where this machine cannot keep it in.

        Raises:
            OSError: If the tests cannot be read any more.
            ValueError: If they are malformed.
        """
        answer = self.extract(problem, text, finished=finished)
        return grade_program(self.judge, answer, lambda: self._tests(problem, "" if answer is None else answer.text))

    def _tests(self, problem: TextProblem, program: str) -> tuple[str, Tests]:
        place = json.loads(problem.reference)
        path = self._path()
        row = _row_at(path, place["offset"], place["bytes"])
        if not isinstance(row, dict) or row.get("question_id") != problem.id:
            raise ValueError(f"{path} has changed since problem {problem.id!r} was read; ask for problems() again")
        function = problem.details["function"]
        if function and defines_solution(program):
            function = f"Solution.{function}"
        return program, _tests_of(path, _stamp(path), place["offset"], place["bytes"], function)

    def _path(self) -> Path:
        return _download() if self.data is None else Path(self.data)


def defines_solution(program: str) -> bool:
    """Say whether a program has a class Solution, as LeetCode asks; one that does not parse has none."""
    try:
        body = ast.parse(program).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return any(isinstance(node, ast.ClassDef) and node.name == "Solution" for node in body)


def _draw(problems: list[TextProblem], seed: int, path: Path) -> list[TextProblem]:
    chosen: set[str] = set()
    for grade, count in _STRATA.items():
        stratum = [problem.id for problem in problems if problem.difficulty == _GRADES[grade]]
        if len(stratum) < count:
            raise ValueError(f"the stratified 50 need {count} {grade} problems; {path} has {len(stratum)}")
        chosen.update(sorted(stratum, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).hexdigest())[:count])
    return [problem for problem in problems if problem.id in chosen]


def _stamp(path: Path) -> tuple[int, int]:
    state = path.stat()
    return state.st_size, state.st_mtime_ns


@lru_cache(maxsize=4)
def _read_problems(path: Path, stamp: tuple[int, int]) -> tuple[TextProblem, ...]:
    problems: dict[str, TextProblem] = {}
    for number, offset, line in _lines(path):
        problem = _problem(f"{path}, line {number}", offset, line)
        if problem.id in problems:
            raise ValueError(f"{path}, line {number}: question_id {problem.id!r} is there twice")
        problems[problem.id] = problem
    if not problems:
        raise ValueError(f"{path} has no rows")
    return tuple(problems.values())


def _lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, offset, line
            offset += len(line)


def _problem(where: str, offset: int, line: bytes) -> TextProblem:
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not a line of JSON ({error})") from error
    missing = [column for column in _COLUMNS if not isinstance(row, dict) or not isinstance(row.get(column), str)]
    if missing:
        raise ValueError(
            f"{where}: wanted texts in the columns {', '.join(_COLUMNS)} of {_SOURCE.repo}; "
            f"missing {', '.join(missing)}"
        )
    if row["difficulty"] not in _GRADES:
        raise ValueError(f"{where}: difficulty must be one of {', '.join(_GRADES)}; got {row['difficulty']!r}")
    try:
        function = json.loads(row["metadata"] or "{}").get("func_name") or ""
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{where}: metadata must be a JSON object; got {row['metadata'][:80]!r}") from error
    return TextProblem(
        id=row["question_id"],
        difficulty=_GRADES[row["difficulty"]],
        question=row["question_content"],
        reference=json.dumps({"offset": offset, "bytes": len(line)}),
        details={"starter_code": row["starter_code"], "function": function},
    )


def _row_at(path: Path, offset: int, size: int) -> Any:
    with path.open("rb") as file:
        file.seek(offset)
        try:
            return json.loads(file.read(size))
        except ValueError:
            return None


@lru_cache(maxsize=4)  # the trials of one problem are judged together; tests can be large
def _tests_of(path: Path, stamp: tuple[int, int], offset: int, size: int, function: str) -> Tests:
    row = _row_at(path, offset, size)
    try:
        return contest_tests(row["public_test_cases"], row["private_test_cases"], function=function)
    except ValueError as error:
        raise ValueError(f"{path}, problem {row['question_id']!r}: {error}") from error


@lru_cache(maxsize=1)
def _download() -> Path:
    address = f"https://huggingface.co/datasets/{_SOURCE.repo}/resolve/{_SOURCE.revision}/{_SOURCE.split}"
    way_out = f"Or give a local copy: --data FILE (data= in Python), the file {address}"
    try:
        hub: Any = importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise ImportError(
            f"problems of {_SOURCE.repo} are downloaded by `huggingface_hub`, which is missing: "
            f"pip install 'kinetics-jax[hf]'. {way_out}"
        ) from error
    try:
        path = hub.hf_hub_download(_SOURCE.repo, _SOURCE.split, repo_type="dataset", revision=_SOURCE.revision)
    except (OSError, ValueError, RuntimeError) as error:
        raise OSError(f"cannot download {_SOURCE} ({type(error).__name__}: {error}). {way_out}") from error
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != _SHA256:
        raise OSError(f"{path} has the SHA-256 {digest}; {_SOURCE} has {_SHA256}. Delete it and try again.")
    return Path(path)
