"""From an answer to a grade: the last step of every code task."""

from collections.abc import Callable

from ._code_judge import Judge, Tests
from ._sandbox import NoIsolationError
from ._text import Answer, TextGrade


def grade_program(judge: Judge, answer: Answer | None, program_tests: Callable[[], tuple[str, Tests]]) -> TextGrade:
    """Return the grade of an answer's program.

    Where nothing keeps programs in, the answer is ungradable and nothing runs: what was sampled on such a machine can
    be graded on another.

    Args:
        judge: Limits, cache and isolation.
        answer: The program as extracted; None is wrong, for the question was left unanswered.
        program_tests: Makes the source to run and its tests; called only where there is an answer.
    """
    if answer is None:
        return TextGrade(answer=None, score=0.0, reason="no program")
    try:
        verdict = judge.judge(*program_tests())
    except NoIsolationError as error:
        return TextGrade(answer=answer, score=None, reason=str(error))
    if verdict.kind == "pass":
        return TextGrade(answer=answer, score=1.0)
    reason = verdict.kind if verdict.test is None else f"{verdict.kind}, test {verdict.test + 1}"
    reason = f"{reason}: {verdict.reason}" if verdict.reason else reason
    return TextGrade(answer=answer, score=None if verdict.kind == "ungradable" else 0.0, reason=reason)
