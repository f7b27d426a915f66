"""Problems that need no download: families of the package reasoning-gym, judged by its own verifiers.

Both run in a worker process: verifiers hand what a model wrote to evaluators of expressions. Their partial credit is
not taken over: right is 1.0 exactly, and an answer at which a verifier raises is ungradable.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from typing import Any, final

from ._math_answer import final_answer
from ._text import Answer, Message, TextGrade, TextProblem
from ._thought import answer_start
from ._workers import NoAnswer, WorkerPool

GYM_FAMILIES = (
    "countdown",
    "gsm_symbolic",
    "basic_arithmetic",
    "chain_sum",
    "prime_factorization",
    "shortest_path",
    "largest_island",
    "path_star",
)
"""Families that are tasks: words, arithmetic and graphs. Their names are those of the package."""

_GRADER = "gym-1"
"""Name of the rules that find an answer and hand it to a verifier; it rises when a verdict changes."""
_SEEDS = {"train": 0, "held_out": 1}
_CPU_S, _WALL_S = 10.0, 60.0
_POSE_CPU_S = 120.0
_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_INSTRUCTION = "Think step by step. Then write the final answer, and nothing else, between <answer> and </answer>."

_pool = WorkerPool("reasoning_gym", "gym")


@final
@dataclass(frozen=True, kw_only=True)
class GymTask:
    """Pose problems of one family, as many as are asked for.

    Attributes:
        family: Name of the family in reasoning-gym.
        max_gen_len: Full length limit on the thought [tokens].

    Example:
        >>> task = GymTask(family="countdown")
        >>> problem = TextProblem(id="held_out-0", difficulty=0, question="Make 3 from 1, 2.", reference="1 + 2")
        >>> task.extract(problem, "<think>add</think> <answer>2 + 1</answer>")
        Answer(text='2 + 1', end=41)
    """

    family: str
    max_gen_len: int = 8_192

    @property
    def name(self) -> str:
        """The name used in tables and traces."""
        return f"gym-{self.family}"

    @property
    def revision(self) -> str:
        """The version of reasoning-gym, which makes the problems and judges the answers, and the name of our rules."""
        return f"{_version()}/{_GRADER}"

    @property
    def licence(self) -> str:
        """The licence of reasoning-gym."""
        return "Apache-2.0"

    @property
    def size(self) -> None:
        """Problems are made and never end."""
        return None

    @property
    def needs(self) -> str:
        """What must be there to use it without a network."""
        return "extra gym"

    def problems(self, num_problems: int | None = None, *, split: str = "held_out") -> list[TextProblem]:
        """Return the first `num_problems` of a split, "held_out" or "train"; they differ in their seed.

        Raises:
            ImportError: If reasoning-gym (extra `gym`) is missing.
            ValueError: If the number is missing or below one, the split is unknown, or the family cannot be made.
        """
        if num_problems is None:
            raise ValueError(f"{self.name} never runs out of problems: say how many")
        if num_problems < 1:
            raise ValueError(f"num_problems must be at least 1; got {num_problems}")
        if split not in _SEEDS:
            raise ValueError(f"unknown split {split!r}. Known: {', '.join(_SEEDS)}")
        return [
            TextProblem(id=f"{split}-{index}", difficulty=0, question=entry["question"], reference=entry["answer"])
            for index, entry in enumerate(_pose(self.family, _SEEDS[split], num_problems))
        ]

    def prompt(self, problem: TextProblem) -> list[Message]:
        """Return the chat that asks the question."""
        return [{"role": "user", "content": f"{problem.question}\n\n{_INSTRUCTION}"}]

    def extract(self, problem: TextProblem, text: str, *, finished: bool = True) -> Answer | None:
        r"""Return what stands in the last <answer> after the thought, else in the last \boxed."""
        start = answer_start(text)
        if start is None:
            return None
        tags = [(match[1].strip(), match.end()) for match in _TAG.finditer(text, start)]
        if not tags:
            return final_answer(text, finished=finished)
        last, end = tags[-1]
        for said, at in reversed(tags):
            if said != last:
                break
            end = at
        return Answer(text=last, end=end)

    def grade(self, problem: TextProblem, text: str, *, finished: bool = True) -> TextGrade:
        """Judge the final answer by the family's verifier; a text without one is wrong.

        Raises:
            ImportError: If reasoning-gym (extra `gym`) is missing.
            ValueError: If the problem is none of this task.
        """
        answer = self.extract(problem, text, finished=finished)
        if answer is None:
            return TextGrade(answer=None, score=0.0, reason="no answer")
        split, _, index = problem.id.rpartition("-")
        if split not in _SEEDS or not index.isdigit():
            raise ValueError(f"{problem.id!r} is no problem of {self.name}; take them from problems()")
        request = {
            "kind": "verify_gym",
            "family": self.family,
            "seed": _SEEDS[split],
            "index": int(index),
            "answer": answer.text,
        }
        try:
            verdict = _pool.ask(request, cpu_s=_CPU_S, wall_s=_WALL_S)
        except NoAnswer as error:
            return TextGrade(answer=answer, score=None, reason=str(error))
        return TextGrade(answer=answer, **verdict)


@lru_cache(maxsize=1)
def _version() -> str:
    try:
        return f"reasoning-gym {metadata.version('reasoning-gym')}"
    except metadata.PackageNotFoundError:
        return "reasoning-gym"


def _pose(family: str, seed: int, num_problems: int) -> list[dict[str, Any]]:
    request = {"kind": "pose", "family": family, "seed": seed, "start": 0, "stop": num_problems}
    try:
        return _pool.ask(request, cpu_s=_POSE_CPU_S, wall_s=10 * _POSE_CPU_S)["problems"]
    except NoAnswer as error:
        raise ValueError(f"reasoning-gym could not make {num_problems} problems of {family}: {error}") from error
