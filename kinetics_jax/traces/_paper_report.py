"""What an import of the paper's generations found, file by file, and what it had to leave out."""

from dataclasses import asdict, dataclass
from typing import Any

from ._schema import Trace


@dataclass(frozen=True, kw_only=True)
class PaperFile:
    """Say what was made of one file.

    Attributes:
        path: The file.
        task: Name of the task.
        model: Name of the model.
        attention: Text form of the attention spec.
        num_rows: Trials that became traces.
        num_problems: Questions among them.
        min_trials: Trials of the question that has fewest.
        max_trials: Trials of the question that has most.
        num_right: Trials that the release scores as right.
        num_ungradable: Trials whose score is null.
        num_at_limit: Trials as long as the limit, or longer: cut off, as far as can be told.
        num_right_without_answer: Right trials without a boxed answer. The released grading credits any number in a
            thought that was cut off (PAPER.md, errata 8), so these may be right by accident; code has no boxes at all.
        num_repeated: Lines that repeat another of the same file, byte by byte. They are kept.
    """

    path: str
    task: str
    model: str
    attention: str
    num_rows: int
    num_problems: int
    min_trials: int
    max_trials: int
    num_right: int
    num_ungradable: int
    num_at_limit: int
    num_right_without_answer: int
    num_repeated: int


@dataclass(frozen=True, kw_only=True)
class PaperIssue:
    """Say what was left out and why.

    Attributes:
        path: The file.
        line: Its line, from 1; None if the file as a whole is meant.
        what: One sentence.
    """

    path: str
    line: int | None
    what: str

    def __str__(self) -> str:
        return f"{self.path}{'' if self.line is None else f', line {self.line}'}: {self.what}"


@dataclass(frozen=True, kw_only=True)
class PaperReport:
    """List what was read and what was not.

    Attributes:
        files: Files that gave traces.
        issues: Everything that was left out, in the order of files and lines.
    """

    files: tuple[PaperFile, ...]
    issues: tuple[PaperIssue, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain data."""
        return {"files": [asdict(file) for file in self.files], "issues": [asdict(issue) for issue in self.issues]}


@dataclass(frozen=True, kw_only=True)
class PaperImport:
    """Hold the traces that were read and the report on them.

    Attributes:
        traces: One a trial. `write_traces` puts them into Parquet.
        report: What was read and what was left out.
    """

    traces: tuple[Trace, ...]
    report: PaperReport
