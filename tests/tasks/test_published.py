"""Published problems: rows from local files or the hub, and what each bad one is told."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kinetics_jax.tasks import GSM8K, MATH500, TASKS, MathTask, TextTask, get_task

ROWS = [
    {"problem": "6 times 7?", "answer": "42", "level": 1, "unique_id": "a/1"},
    {"problem": "Half of 1?", "answer": "\\frac{1}{2}", "level": 5, "unique_id": "a/2"},
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_local_files_become_problems(name: str, tmp_path: Path):
    task = get_task("math500", data=write(tmp_path / name, ROWS))
    assert isinstance(task, MathTask)
    problems = task.problems()
    assert [(problem.id, problem.difficulty, problem.reference) for problem in problems] == [
        ("a/1", 1, "42"),
        ("a/2", 5, "\\frac{1}{2}"),
    ]
    assert task.problems(1) == problems[:1]
    (message,) = task.prompt(problems[0])
    assert message["content"].startswith("6 times 7?\n\n")
    digest, grader = task.revision.split("/")
    assert digest.startswith("sha256:")
    assert grader == MATH500.revision.split("/")[1]


def test_revision_of_a_file_follows_its_content(tmp_path: Path):
    path = write(tmp_path / "rows.jsonl", ROWS)
    task = MATH500.with_data(path)
    before = task.revision
    write(path, ROWS[:1])
    assert task.revision != before
    assert len(task.problems()) == 1


def test_references_of_gsm8k_follow_the_hashes(tmp_path: Path):
    rows = [{"question": "How much?", "answer": "He pays 2 * 600 = <<2*600=1200>>1200.\n#### 1,200"}]
    (problem,) = GSM8K.with_data(write(tmp_path / "rows.jsonl", rows)).problems()
    assert (problem.id, problem.reference) == ("gsm8k-0", "1,200")
    assert GSM8K.grade(problem, "It is \\boxed{\\$1200}.").score == 1.0


def bad(**changes: Any) -> list[dict[str, Any]]:
    return [ROWS[0], {**ROWS[1], **changes}]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (bad(answer="  "), r"row 2: answer is empty; a problem needs a question and a reference"),
        (bad(answer=None), r"row 2: answer is empty"),
        (bad(problem=""), r"row 2: problem is empty"),
        (bad(unique_id="a/1"), r"row 2: unique_id 'a/1' is that of row 1, too"),
        (bad(level="hard"), r"row 2: level must be a number; got 'hard'"),
        (
            [{"question": "?", "solution": "!"}],
            r"row 1: wanted the columns problem, answer .*missing problem, answer",
        ),
        ([], "has no rows"),
    ],
)
def test_bad_rows_are_told(rows: list[dict[str, Any]], message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=rf"rows\.jsonl.*{message}"):
        MATH500.with_data(write(tmp_path / "rows.jsonl", rows)).problems()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.csv", b"a,b", r"read from \.jsonl or \.parquet files"),
        ("rows.jsonl", b'{"problem": "?", "answer": "4"}\n{"problem"\n', "line 2: not a line of JSON"),
        ("rows.jsonl", b"[1]\n", "line 1: wanted a JSON object with columns; got list"),
        ("rows.jsonl", b"\xff\xfe", "not a text in UTF-8"),
        ("rows.parquet", b"PAR1", "not a readable Parquet file"),
    ],
)
def test_bad_files_are_told(name: str, content: bytes, message: str, tmp_path: Path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        MATH500.with_data(tmp_path / name).problems()


def test_what_cannot_be_asked_for(tmp_path: Path):
    task = MATH500.with_data(write(tmp_path / "rows.jsonl", ROWS))
    with pytest.raises(ValueError, match="has 2 problems; got num_problems=3"):
        task.problems(3)
    with pytest.raises(ValueError, match="num_problems must be at least 1; got 0"):
        task.problems(0)
    with pytest.raises(ValueError, match=r"math500 has only the split 'held_out'; got 'train'"):
        task.problems(1, split="train")
    with pytest.raises(FileNotFoundError, match="no such file of problems"):
        MATH500.with_data(tmp_path / "nowhere.jsonl").problems()
    with pytest.raises(ValueError, match=r"task 'pathfind' makes or ships its problems and reads no file"):
        get_task("pathfind", data=tmp_path / "rows.jsonl")


def test_a_missing_library_names_extra_and_file(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"kinetics-jax\[hf\].*--data FILE .*columns problem, answer.*MATH-500"):
        MATH500.problems()


def test_a_failed_download_says_which_file_to_give(monkeypatch: pytest.MonkeyPatch):
    def load_dataset(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    wanted = r"cannot download HuggingFaceH4/MATH-500 .*ConnectionError: Couldn't reach the Hub.*--data FILE"
    with pytest.raises(OSError, match=wanted):
        MATH500.problems()


def test_downloads_are_pinned(monkeypatch: pytest.MonkeyPatch):
    asked: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def load_dataset(*args: Any, **options: Any) -> list[dict[str, str]]:
        asked.append((args, options))
        return [{"question": "2 + 2?", "answer": "#### 4"}]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert GSM8K.problems()[0].reference == "4"
    ((args, options),) = asked
    assert args == ("openai/gsm8k", "main")
    assert options == {"split": "test", "revision": "740312add88f781978c0658806c59bc2815b9866"}


def test_every_task_tells_where_it_is_from():
    for name, task in TASKS.items():
        assert (task.name, bool(task.revision), bool(task.licence)) == (name, True, True)
        assert task.max_gen_len > 0
        if isinstance(task, TextTask):
            assert task.needs
