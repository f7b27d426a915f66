"""Families of reasoning-gym, played by a stand-in of the same interface: whose problems, and what its scores mean.

The stand-in runs in the worker process, where the package would.
"""

from collections.abc import Iterator

import pytest

from kinetics_jax.tasks import GymTask, get_task
from kinetics_jax.tasks._gym import _pool

STAND_IN = """
class Family:
    def __init__(self, name, seed):
        self.name, self.seed = name, seed

    def __getitem__(self, index):
        return {"question": f"{self.name} {self.seed} {index}", "answer": f"{index} + 1"}

    def score_answer(self, answer, entry):
        if answer == "raise":
            raise ValueError(answer)
        while answer == "hang":
            pass
        return 1.0 if answer == entry["answer"] else 0.99


def create_dataset(name, seed, size):
    return Family(name, seed)
"""


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GymTask]:
    folder = tmp_path_factory.mktemp("stand_in")
    (folder / "reasoning_gym.py").write_text(STAND_IN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        patch.setattr("kinetics_jax.tasks._gym._CPU_S", 0.2)
        _pool.close()
        yield GymTask(family="chain_sum")
        _pool.close()


def test_problems_are_those_of_seed_and_index(task: GymTask):
    problems = task.problems(3)
    assert [(problem.id, problem.question) for problem in problems] == [
        ("held_out-0", "chain_sum 1 0"),
        ("held_out-1", "chain_sum 1 1"),
        ("held_out-2", "chain_sum 1 2"),
    ]
    assert task.problems(1, split="train")[0].question == "chain_sum 0 0"
    assert task.prompt(problems[0])[0]["content"].startswith("chain_sum 1 0\n\n")


@pytest.mark.parametrize(
    ("text", "score", "reason"),
    [
        ("<think>a</think><answer> 1 + 1 </answer>", 1.0, ""),
        ("<answer>9</answer> no: <answer>1 + 1</answer>", 1.0, ""),
        ("<answer>1 + 1</answer> no: <answer>9</answer>", 0.0, ""),  # 0.99 is no 1.0
        ("It is \\boxed{1 + 1}.", 1.0, ""),
        ("<think><answer>1 + 1</answer>", 0.0, "no answer"),
        ("<think><answer>1 + 1</answer></think>I forgot.", 0.0, "no answer"),
        ("<answer>raise</answer>", None, "the verifier raised ValueError"),
        ("<answer>hang</answer>", None, "time limit"),
        ("<answer>1 + 1</answer>", 1.0, ""),  # by the worker that replaced the killed one
    ],
)
def test_right_is_one_exactly_and_an_exception_no_verdict(task: GymTask, text: str, score: float | None, reason: str):
    grade = task.grade(task.problems(2)[1], text)
    assert (grade.score, grade.reason) == (score, reason)


@pytest.mark.parametrize("answer", ["__import__('os')", "9**9**9", "1 + 0x1", ""])
def test_countdown_hands_nothing_but_arithmetic_to_its_verifier(task: GymTask, answer: str):
    countdown = GymTask(family="countdown")
    (problem,) = countdown.problems(1)
    assert countdown.grade(problem, "<answer>0 + 1</answer>").score == 1.0
    grade = countdown.grade(problem, f"<answer>{answer}</answer>")
    assert (grade.score, grade.reason) == (0.0, "no arithmetic expression")


def test_where_an_answer_stands(task: GymTask):
    (problem,) = task.problems(1)
    text = "<answer>9</answer><answer>4</answer> yes <answer>4</answer>"
    answer = task.extract(problem, text)
    assert answer is not None
    assert (answer.text, answer.end) == ("4", 36)


def test_bad_requests_are_told(task: GymTask):
    with pytest.raises(ValueError, match="gym-chain_sum never runs out of problems: say how many"):
        task.problems()
    with pytest.raises(ValueError, match="num_problems must be at least 1; got 0"):
        task.problems(0)
    with pytest.raises(ValueError, match=r"unknown split 'test'\. Known: train, held_out"):
        task.problems(1, split="test")
    assert get_task("gym-chain_sum") == task
