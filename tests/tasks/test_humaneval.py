"""HumanEval: every published solution passes, every one that returns something else fails."""

import ast
import gzip
import json
from pathlib import Path

import pytest

from kinetics_jax.tasks import HumanEval, Judge, Limits, TextProblem, TextTask, get_task
from kinetics_jax.tasks._humaneval import program_tests
from kinetics_jax.tasks._sandbox import Isolation

TASK = HumanEval(judge=Judge(limits=Limits(cpu_s=10.0, wall_s=60.0)))
NAME = "has_close_elements"  # the function of the first problem
OTHER = """
def _other(value):
    if isinstance(value, bool): return not value
    if isinstance(value, (int, float)): return value + 1
    if isinstance(value, str): return value + "x"
    if isinstance(value, (list, tuple)): return type(value)([*value, 0])
    if isinstance(value, dict): return value | {"x": 0}
    return 0
"""


@pytest.fixture(scope="module")
def problems() -> list[TextProblem]:
    return TASK.problems()


def solution(problem: TextProblem) -> str:
    return problem.question + problem.details["canonical_solution"]


def mutated(problem: TextProblem) -> str:
    """Return the solution with every returned value changed to another of its type."""
    tree = ast.parse(solution(problem))
    name = json.loads(problem.reference)["entry_point"]
    function = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    for node in ast.walk(function):
        if isinstance(node, ast.Return):
            node.value = ast.Call(ast.Name("_other", ast.Load()), [node.value or ast.Constant(None)], [])
    return OTHER + ast.unparse(ast.fix_missing_locations(tree))


def test_all_published_solutions_pass(isolation: Isolation, problems: list[TextProblem]):
    assert len(problems) == TASK.size == 164
    verdicts = TASK.judge.judge_many([program_tests(problem, solution(problem)) for problem in problems])
    assert [problem.id for problem, verdict in zip(problems, verdicts, strict=True) if verdict.kind != "pass"] == []


def test_all_mutated_solutions_fail(isolation: Isolation, problems: list[TextProblem]):
    verdicts = TASK.judge.judge_many([program_tests(problem, mutated(problem)) for problem in problems])
    wrong = [problem.id for problem, verdict in zip(problems, verdicts, strict=True) if verdict.kind == "wrong"]
    assert len(wrong) == 164


def test_answers_as_models_write_them(isolation: Isolation, problems: list[TextProblem]):
    problem = problems[0]
    body = problem.details["canonical_solution"]
    texts = {
        f"<think>Compare all pairs.</think>Here it is:\n\n```python\n{solution(problem)}```\nDone.": 1.0,
        f"```python\n{body}```": 1.0,  # a continuation of the prompt
        f"```python\n{mutated(problem)}\n```": 0.0,
        f"```python\n{solution(problem)}```\nFor example:\n```python\nprint({NAME}([1.0], 0.5))\n```": 1.0,
        f"```python\n{mutated(problem)}\n```\nNo:\n```python\n{solution(problem)}```": 1.0,  # the last that counts
        f"```python\n{solution(problem)}```\nOr:\n```python\ndef {NAME}(*a): return 1": 0.0,
        f"<think>```python\n{solution(problem)}```": 0.0,  # only thought
        "The function is easy to write.": 0.0,
        "```python\nhas_close_elements = lambda *a: True\n```": 0.0,
        "```python\ndef has_close_elements(:\n```": 0.0,
        "```python\ndef has_close_elements(*a):\n    while True: pass\n```": 0.0,
    }
    quick = HumanEval(judge=Judge(limits=Limits(cpu_s=0.5, wall_s=30.0)))
    grades = {text: quick.grade(problem, text) for text in texts}
    assert {text: grade.score for text, grade in grades.items()} == texts
    assert [grade.reason.split(":")[0] for grade in grades.values()] == [
        "", "", "wrong", "", "", "wrong", "no program", "no program", "wrong", "runtime error", "time limit",
    ]  # fmt: skip
    answer = next(iter(grades.values())).answer
    assert answer is not None
    assert answer.text == solution(problem)
    assert next(iter(texts))[: answer.end].endswith("```")


def test_the_prompt_asks_for_the_whole_function_and_shows_no_test(problems: list[TextProblem]):
    (message,) = TASK.prompt(problems[1])
    assert message["role"] == "user"
    assert problems[1].question.strip() in message["content"]
    assert "check(" not in message["content"]
    assert problems[1].details["canonical_solution"].strip() not in message["content"]


def test_the_task_is_known_and_its_file_can_be_given(tmp_path: Path, problems: list[TextProblem]):
    task = get_task("humaneval")
    assert isinstance(task, TextTask)
    assert (task.size, task.licence, task.revision) == (164, "MIT", "b796127e635a/code-2")
    rows = [json.dumps(row(problem)) for problem in problems[:3]]
    for data, content in (
        ("a.jsonl", "\n".join(rows).encode()),
        ("a.jsonl.gz", gzip.compress("\n".join(rows).encode())),
    ):
        (tmp_path / data).write_bytes(content)
        local = TASK.with_data(tmp_path / data)
        assert local.problems() == problems[:3]
        assert local.problems(2) == problems[:2]
        assert local.revision.startswith("sha256:")


def row(problem: TextProblem) -> dict[str, str]:
    reference = json.loads(problem.reference)
    return {
        "task_id": problem.id,
        "prompt": problem.question,
        "canonical_solution": problem.details["canonical_solution"],
        **reference,
    }


def test_bad_files_are_refused(tmp_path: Path, problems: list[TextProblem]):
    good = json.dumps(row(problems[0]))
    data = tmp_path / "data.jsonl"
    task = TASK.with_data(data)
    with pytest.raises(FileNotFoundError):
        task.problems()
    for content, message in (
        ("{", "line 1: not a line of JSON"),
        ("[]", "missing task_id, prompt"),
        (good.replace('"test"', '"tests"'), "wanted texts in the columns .*; missing test"),
        (f"{good}\n{good}", "2 problems have 1 task_ids"),
        ("", "has 0 problems"),
    ):
        data.write_text(content)
        with pytest.raises(ValueError, match=message):
            task.problems()
    data.write_bytes(gzip.compress(good.encode())[:40])
    with pytest.raises(ValueError, match="not a whole gzip file"):
        task.problems()
    with pytest.raises(ValueError, match="only the split 'held_out'"):
        TASK.problems(split="train")
    for number in (0, 165):
        with pytest.raises(ValueError, match=f"has 164 problems; got num_problems={number}"):
            TASK.problems(number)


def test_a_missing_package_names_the_extra_and_the_file(monkeypatch: pytest.MonkeyPatch):
    import importlib.metadata

    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(ImportError, match=r"kinetics-jax\[humaneval\].*--data HumanEval.jsonl.gz"):
        TASK.problems()
