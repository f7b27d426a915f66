"""The checker by hand, on a graph small enough to read."""

import pytest

from kinetics_jax.tasks import Pathfind, Problem, Task, get_task

TASK = Pathfind()


def ids(text: str) -> list[int]:
    return [TASK.vocabulary.index(word) for word in text.split()]


# 0 -> 1 -> 2 -> 4 and 0 -> 3 -> 2: two paths of three hops from n0 to n4.
PROBLEM = Problem(
    id="by-hand",
    difficulty=3,
    prompt_ids=tuple(ids("<bos> n0 n1 ; n2 n4 ; n0 n3 ; n1 n2 ; n3 n2 ; n0 n4 ; ? n0 n4 @3 :")),
)


@pytest.mark.parametrize(
    ("thought", "solved_len", "answer"),
    [
        ("n0 n1 n2 n4 DONE <eos>", 5, "n0 n1 n2 n4"),
        ("n0 n1 n2 n4 DONE", 5, "n0 n1 n2 n4"),
        ("n0 n3 n2 n4 DONE <eos>", 5, "n0 n3 n2 n4"),
        ("n0 n1 n2 n3 FAIL n0 n3 n2 n4 DONE <eos>", 10, "n0 n3 n2 n4"),
        ("n0 n4 DONE n0 n1 n2 n4 DONE <eos>", 8, "n0 n1 n2 n4"),  # of several DONE the last counts
        ("n0 n1 n2 n4 DONE n0 n1 n2", 5, "n0 n1 n2 n4"),  # cut off in a walk nobody asked for
    ],
)
def test_right_answers(thought: str, solved_len: int, answer: str):
    grade = TASK.grade(PROBLEM, ids(thought))
    assert (grade.score, grade.solved_len, grade.answer) == (1.0, solved_len, answer)


@pytest.mark.parametrize(
    "thought",
    [
        "n0 n4 DONE <eos>",  # an edge, but one hop of three
        "n0 n1 n2 n4 n4 DONE <eos>",  # too many hops
        "n0 n1 n3 n4 DONE <eos>",  # no edge n1 n3
        "n0 n2 n1 n4 DONE <eos>",  # an edge against its direction
        "n1 n1 n2 n4 DONE <eos>",  # wrong start
        "n0 n1 n2 n3 DONE <eos>",  # wrong end
        "n0 n1 n2 n4 DONE n0 n4 DONE <eos>",  # the last DONE is wrong
        "n0 n1 n2 n4 FAIL DONE <eos>",  # the walk was given up
        "DONE <eos>",
        "n0 ; n2 n4 DONE <eos>",  # a word that is no node
        "@3 n1 n2 n4 DONE <eos>",
    ],
)
def test_wrong_answers(thought: str):
    grade = TASK.grade(PROBLEM, ids(thought))
    assert (grade.score, grade.solved_len) == (0.0, None)
    assert grade.answer is not None


@pytest.mark.parametrize("thought", ["", "<eos>", "n0 n1 n2 n4", "n0 n1 n2 n4 FAIL <eos>", "n0 n1 n2"])
def test_thought_without_done_is_unanswered_and_wrong(thought: str):
    grade = TASK.grade(PROBLEM, ids(thought))
    assert (grade.score, grade.solved_len, grade.answer) == (0.0, None, None)


def test_tasks_are_found_by_name():
    assert get_task("pathfind") == TASK
    assert isinstance(TASK, Task)
    with pytest.raises(ValueError, match=r"unknown task 'chess'\. Known: pathfind"):
        get_task("chess")
