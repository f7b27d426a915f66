"""All trials of one (model, attention, task) as padded arrays, the form that `scaling` computes on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int


@dataclass(frozen=True, kw_only=True, eq=False)
class TraceTable:
    """Hold what each trial of each problem took and whether it was solved.

    Attributes:
        model: Name of the model.
        attention: Text form of the attention spec.
        task: Name of the task.
        max_gen_len: Limit on generated tokens under which the trials ran [tokens].
        problems: Identifiers of the problems, sorted.
        difficulty: Grade of each problem.
        prompt_len: Prompt length of each problem [tokens].
        gen_len: Generated length of each trial [tokens]; 0 where there is no trial.
        solved_len: Tokens after which the final, right answer stands; `np.inf` where the trial is wrong, ungradable
            or missing. A trial is right within n tokens if solved_len <= n.
        mask: Whether the trial exists. An ungradable trial exists, and counts as not solved.
        weights_hash: Hash of the weights that spoke; empty where no recording stands behind the table.
        sampling: Text form of the sampling spec; empty likewise.
        answer: Which of the problem's final answers the trial gave, numbered from 0 within the problem in the order of
            their texts: trials that agree share a number. -1 if it gave none or is missing. None if answers were not
            read.

    Raises:
        ValueError: If the shapes disagree or a `solved_len` is NaN or negative.
    """

    model: str
    attention: str
    task: str
    max_gen_len: int
    problems: tuple[str, ...]
    difficulty: Int[np.ndarray, " Q"]
    prompt_len: Int[np.ndarray, " Q"]
    gen_len: Int[np.ndarray, "Q R"]
    solved_len: Float[np.ndarray, "Q R"]
    mask: Bool[np.ndarray, "Q R"]
    weights_hash: str = ""
    sampling: str = ""
    answer: Int[np.ndarray, "Q R"] | None = None

    def __post_init__(self) -> None:
        shape = len(self.problems), self.mask.shape[-1] if self.mask.ndim else 0
        wanted = {
            "difficulty": shape[:1],
            "prompt_len": shape[:1],
            "gen_len": shape,
            "solved_len": shape,
            "mask": shape,
            **({} if self.answer is None else {"answer": shape}),
        }
        for name, expected in wanted.items():
            if getattr(self, name).shape != expected:
                raise ValueError(f"{name} must have shape {expected}; got {getattr(self, name).shape}")
        if not (self.solved_len >= 0).all():
            raise ValueError("solved_len must be a length or inf (not solved); got NaN or a negative value")

    @property
    def num_problems(self) -> int:
        """Problems, Q."""
        return self.mask.shape[0]

    @property
    def num_trials(self) -> int:
        """Columns of trials, R; `mask` says which exist."""
        return self.mask.shape[1]

    def restrict(self, *, problems: Sequence[str] | None = None, num_trials: int | None = None) -> "TraceTable":
        """Return the table of some problems, in the order given, and of the first trials.

        Args:
            problems: Identifiers to keep; None keeps all.
            num_trials: Columns to keep; None keeps all.

        Raises:
            ValueError: If a problem is unknown or named twice, or the table has fewer trials.
        """
        rows = np.arange(self.num_problems)
        if problems is not None:
            index = {problem: row for row, problem in enumerate(self.problems)}
            unknown = [problem for problem in problems if problem not in index]
            if unknown:
                raise ValueError(
                    f"{len(unknown)} problems are not in the table of {self.model}, {self.attention}: {unknown[:5]}. "
                    f"Known: {', '.join(self.problems[:5])}{' ...' if len(self.problems) > 5 else ''}"
                )
            if len(set(problems)) < len(problems):
                raise ValueError("problems must not repeat; a problem named twice would count twice")
            rows = np.array([index[problem] for problem in problems], dtype=np.int64)
        num_trials = self.num_trials if num_trials is None else num_trials
        if not 0 < num_trials <= self.num_trials:
            raise ValueError(f"num_trials must lie in 1..{self.num_trials}; got {num_trials}")
        return replace(
            self,
            problems=tuple(self.problems[row] for row in rows),
            difficulty=self.difficulty[rows],
            prompt_len=self.prompt_len[rows],
            gen_len=self.gen_len[rows, :num_trials],
            solved_len=self.solved_len[rows, :num_trials],
            mask=self.mask[rows, :num_trials],
            answer=None if self.answer is None else self.answer[rows, :num_trials],
        )
