"""LiveCodeBench: problems of this repository in the published columns, hidden tests packed as published."""

import base64
import json
import pickle
import zlib
from pathlib import Path
from typing import Any

import pytest

from kinetics_jax.tasks import Judge, Limits, LiveCodeBench, NoIsolationError, OutputTests, TextTask, get_task
from kinetics_jax.tasks import _code_judge as judging
from kinetics_jax.tasks import _livecodebench as room
from kinetics_jax.tasks._livecodebench_tests import PRELOAD, contest_tests, pickled_text, unpacked_text
from kinetics_jax.tasks._sandbox import Isolation

JUDGE = Judge(limits=Limits(cpu_s=2.0, wall_s=10.0), preload=PRELOAD)


def packed(cases: list[dict[str, str]]) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(cases)))).decode()


def case(given: str, wanted: str, kind: str = "stdin") -> dict[str, str]:
    return {"input": given, "output": wanted, "testtype": kind}


def row(number: int, difficulty: str, **columns: Any) -> dict[str, Any]:
    return {
        "question_id": f"sum_{number}",
        "question_content": "Print the sum of the numbers of each line.",
        "difficulty": difficulty,
        "starter_code": "",
        "metadata": "{}",
        "public_test_cases": json.dumps([case("1 2\n3\n", "3\n3\n")]),
        "private_test_cases": packed([case("5 5\n", "10"), case(f"{number}\n", str(number))]),
        "platform": "house",
    } | columns


def class_row(number: int) -> dict[str, Any]:
    public = [case('[1, 2]\n"x"', '["x", 3]', "functional")]
    private = [case('[]\n"\\u00e4"', '["\u00e4", 0]', "functional")]
    return row(
        number,
        "medium",
        starter_code="class Solution:\n    def total(self, numbers: List[int], name: str) -> list:\n        ",
        metadata=json.dumps({"func_name": "total"}),
        public_test_cases=json.dumps(public),
        private_test_cases=json.dumps(private),  # some rows are not packed
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lcb") / "test5.jsonl"
    rows = [row(number, ("easy", "medium", "hard", "hard")[number % 4]) for number in range(120)]
    rows.insert(3, class_row(900))
    path.write_text("\n".join(json.dumps(each) for each in rows) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def task(data: Path) -> LiveCodeBench:
    return LiveCodeBench(data=data, judge=JUDGE)


RIGHT = "```python\nimport sys\nfor line in sys.stdin: print(sum(map(int, line.split())))\n```"
RIGHT_CLASS = (
    "```python\nclass Solution:\n    def total(self, numbers: List[int], name: str) -> list:\n"
    "        return (name, reduce(add, numbers, 0))\n```"
)


def test_answers_are_judged_by_public_and_hidden_tests(isolation: Isolation, task: LiveCodeBench):
    problems = task.problems()
    problem, with_class = problems[7], problems[3]
    assert task.grade(problem, RIGHT).score == 1.0
    assert task.grade(with_class, RIGHT_CLASS).score == 1.0
    for text, reason in (
        ("```python\nprint(3)\nprint(3)\n```", "wrong, test 2: got '3\\n3\\n'; expected '10'"),
        ("```python\nprint('3 \\n3')\nexit()\n```", "wrong, test 2"),
        ("```python\nprint(int(input()))\n```", "runtime error, test 1: ValueError"),
        ("No program.", "no program"),
    ):
        grade = task.grade(problem, text)
        assert (grade.score, grade.reason[: len(reason)]) == (0.0, reason)
    function = RIGHT_CLASS.replace("class Solution:\n    def total(self, ", "def total(").replace(
        "        return", "    return"
    )
    assert task.grade(with_class, function).score == 1.0  # without the class, as the released grader takes it
    assert task.grade(with_class, RIGHT_CLASS.replace("0)", "1)")).reason.startswith("wrong, test 1")


def test_the_prompts(task: LiveCodeBench):
    problems = task.problems(4)
    whole, with_class = (task.prompt(problems[index])[0]["content"] for index in (0, 3))
    assert "standard input" in whole
    assert "```python\nclass Solution:" in with_class
    for text in (whole, with_class):
        assert "sum of the numbers" in text
        assert "10" not in text


def test_the_fifty_are_stratified_and_follow_from_the_seed(data: Path):
    task = LiveCodeBench(stratified=True, data=data)
    problems = task.problems()
    assert [sum(problem.difficulty == grade for problem in problems) for grade in (3, 2, 1)] == [24, 16, 10]
    names = [problem.id for problem in problems]
    assert names == [problem.id for problem in LiveCodeBench(data=data).problems() if problem.id in names]
    assert names == [problem.id for problem in task.problems()]
    other = {problem.id for problem in LiveCodeBench(stratified=True, data=data, seed=1).problems()}
    assert 0 < len(other & set(names)) < 50
    assert task.revision.endswith("/seed0/code-1")
    # By hand, with sha256sum: of "0:sum_4" and so on the ten smallest among the easy ones.
    assert {name for name in names if int(name[4:]) % 4 == 0 and name != "sum_900"} == {
        f"sum_{n}" for n in EASY_OF_SEED_0
    }


EASY_OF_SEED_0 = (16, 24, 28, 52, 72, 76, 88, 92, 100, 104)


def test_a_file_with_too_few_problems_has_no_fifty(tmp_path: Path):
    path = tmp_path / "few.jsonl"
    path.write_text("\n".join(json.dumps(row(number, "hard")) for number in range(30)))
    with pytest.raises(ValueError, match=r"the stratified 50 need 16 medium problems; .* has 0"):
        LiveCodeBench(stratified=True, data=path).problems()


def test_the_tasks_are_known_and_pinned():
    for name, size in (("livecodebench", 167), ("livecodebench50", 50)):
        task = get_task(name)
        assert isinstance(task, TextTask)
        assert (task.name, task.size) == (name, size)
        assert task.revision.startswith("0fe84c3912ea/")


class Attack:
    def __reduce__(self) -> tuple[Any, ...]:
        return (open, ("/tmp/kinetics-pickle-was-loaded", "w"))


@pytest.mark.parametrize(
    "pickled",
    [
        pickle.dumps(Attack()),
        pickle.dumps(["a"]),
        pickle.dumps(("a", "b")),
        pickle.dumps(b"bytes"),
        pickle.dumps(None),
        pickle.dumps("text")[:-3],
        b"cos\nsystem\n(S'true'\ntR.",
        b"",
        b"\x80\x04.",
    ],
)
def test_hidden_tests_are_never_unpickled(pickled: bytes):
    private = base64.b64encode(zlib.compress(pickled)).decode()
    with pytest.raises(ValueError, match="private_test_cases"):
        unpacked_text(private)
    assert not Path("/tmp/kinetics-pickle-was-loaded").exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("text", ["", "[]", "\u00e4\n\ud83d\ude00", "x" * 70_000])
def test_a_pickled_text_is_read_as_pickle_would(text: str, protocol: int):
    assert pickled_text(pickle.dumps(text, protocol)) == text


def test_packed_tests_that_are_cut_or_endless(monkeypatch: pytest.MonkeyPatch):
    whole = packed([case("1", "1")])
    assert json.loads(unpacked_text(whole)) == [case("1", "1")]
    for broken in (base64.b64encode(base64.b64decode(whole)[:-9]).decode(), "not base64!", "AAAA", ""):
        with pytest.raises(ValueError, match="private_test_cases"):
            unpacked_text(broken)
    from kinetics_jax.tasks import _livecodebench_tests

    monkeypatch.setattr(_livecodebench_tests, "_MAX_BYTES", 10)
    with pytest.raises(ValueError, match="more than 10 bytes"):
        unpacked_text(whole)


@pytest.mark.parametrize(
    ("public", "function", "message"),
    [
        ("[]", "", "wanted tests of the kind 'stdin'; got no test"),
        (json.dumps([case("1", "1", "functional")]), "", "wanted tests of the kind 'stdin'; got .'functional'"),
        (json.dumps([case("1", "1")]), "f", "wanted tests of the kind 'functional'"),
        (json.dumps([case("not json", "1", "functional")]), "f", "not JSON: 'not json'"),
        ("{}", "", "wanted a list of tests; got dict"),
        ('[{"input": 1}]', "", "a test needs texts for input, output, testtype"),
        ("", "", "not JSON"),
    ],
)
def test_malformed_tests(public: str, function: str, message: str):
    with pytest.raises(ValueError, match=message):
        contest_tests(public, "[]", function=function)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not a line of JSON"),
        ("7", "line 2: wanted texts in the columns question_id"),
        (json.dumps(row(1, "easy") | {"difficulty": "fiendish"}), "difficulty must be one of easy, medium, hard"),
        (json.dumps(row(1, "easy") | {"metadata": "[]"}), "metadata must be a JSON object"),
        (json.dumps({"question_id": "x"}), "missing question_content, difficulty"),
        (json.dumps(row(0, "easy")), "question_id 'sum_0' is there twice"),
    ],
)
def test_malformed_rows(tmp_path: Path, line: str, message: str):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row(0, "easy")) + "\n" + line)
    with pytest.raises(ValueError, match=message):
        LiveCodeBench(data=path).problems()


def test_bad_questions_to_the_task(task: LiveCodeBench, tmp_path: Path):
    with pytest.raises(ValueError, match="only the split 'held_out'"):
        task.problems(split="train")
    with pytest.raises(ValueError, match="has 121 problems; got num_problems=122"):
        task.problems(122)
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="no rows"):
        task.with_data(tmp_path / "empty.jsonl").problems()
    with pytest.raises(FileNotFoundError):
        task.with_data(tmp_path / "none.jsonl").problems()


def test_a_file_that_changes_under_a_problem_is_noticed(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row(0, "easy")) + "\n" + json.dumps(row(1, "easy")))
    task = LiveCodeBench(data=path, judge=JUDGE)
    problem = task.problems()[1]
    path.write_text(json.dumps(row(1, "easy")))
    with pytest.raises(ValueError, match="has changed since problem 'sum_1' was read"):
        task.grade(problem, RIGHT)


def test_without_network_or_package_the_file_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    class Hub:
        def hf_hub_download(self, repo: str, name: str, **pinned: str) -> str:
            assert (repo, name) == ("livecodebench/code_generation_lite", "test5.jsonl")
            assert pinned == {"repo_type": "dataset", "revision": "0fe84c3912ea0c4d4a78037083943e8f0c4dd505"}
            if self.path is None:
                raise ConnectionError("offline")
            return self.path

        path: str | None = None

    monkeypatch.setattr(room.importlib, "import_module", lambda name: Hub())
    with pytest.raises(OSError, match=r"cannot download .*offline.*--data FILE"):
        LiveCodeBench().problems()
    Hub.path = str(tmp_path / "other.jsonl")
    (tmp_path / "other.jsonl").write_text("{}")
    with pytest.raises(OSError, match=r"has the SHA-256 .*Delete it"):
        LiveCodeBench().problems()

    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(room.importlib, "import_module", missing)
    with pytest.raises(ImportError, match=r"kinetics-jax\[hf\].*--data FILE"):
        LiveCodeBench().problems()


def test_where_nothing_isolates_answers_are_ungradable(monkeypatch: pytest.MonkeyPatch, task: LiveCodeBench):
    def refuse(**flags: bool) -> None:
        raise NoIsolationError("programs are judged only where they can be kept in")

    monkeypatch.setattr(judging, "require_isolation", refuse)
    grade = task.grade(task.problems(1)[0], RIGHT)
    assert grade.score is None
    assert grade.answer is not None
    assert grade.reason.startswith("programs are judged only")
    assert task.grade(task.problems(1)[0], "no program").score == 0.0
    with pytest.raises(NoIsolationError):
        JUDGE.judge("print(1)", OutputTests(pairs=(("", "1"),)))
