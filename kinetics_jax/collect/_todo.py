"""Which trials a collection still has to sample: those asked for that can be asked and are not on disk yet.

Called by the collector. In many processes the disk is the first one's, and so is the answer.
"""

from collections.abc import Collection, Sequence

import numpy as np

from kinetics_jax.sampling import from_first_process
from kinetics_jax.tasks import Problem

Trials = list[tuple[Problem, list[int]]]
"""Problems, with the trials that each lacks."""


def fitting_problems(
    problems: Sequence[Problem], max_gen_len: int, max_len: int
) -> tuple[list[Problem], dict[str, str]]:
    """Return the problems that can be asked within `max_len` tokens, and a sentence for each of the others by id.

    Raises:
        ValueError: If there is no problem, two have one id, or none can be asked.
    """
    if not problems:
        raise ValueError("a collection needs at least one problem; got none")
    if len({problem.id for problem in problems}) < len(problems):
        raise ValueError("problems of one collection must have ids of their own; got one id twice")
    failed = {problem.id: said for problem in problems if (said := _misfit(problem, max_gen_len, max_len))}
    if len(failed) == len(problems):
        raise ValueError(next(iter(failed.values())))
    return [problem for problem in problems if problem.id not in failed], failed


def missing_trials(
    run: str, problems: Sequence[Problem], num_trials: int, done: Collection[tuple[str, str, int]]
) -> Trials:
    """Return the problems that lack trials of a run, with the trials that each lacks."""
    wanted = range(num_trials)
    missing = [(each, [trial for trial in wanted if (run, each.id, trial) not in done]) for each in problems]
    return [(problem, trials) for problem, trials in missing if trials]


def trials_of_first_process(problems: Sequence[Problem], num_trials: int, todo: Trials) -> Trials:
    """Return what the first process has to do, in all of them; each passes the same problems."""
    lacking = {problem.id: trials for problem, trials in todo}
    is_todo = np.zeros((len(problems), num_trials), bool)
    for row, problem in enumerate(problems):
        is_todo[row, lacking.get(problem.id, [])] = True
    rows = from_first_process(is_todo)
    return [(each, np.flatnonzero(row).tolist()) for each, row in zip(problems, rows, strict=True) if row.any()]


def num_trials_of(todo: Trials) -> int:
    """Return how many trials these are."""
    return sum(len(trials) for _, trials in todo)


def _misfit(problem: Problem, max_gen_len: int, max_len: int) -> str | None:
    """Say why a problem cannot be asked, or None."""
    prompt_len = len(problem.prompt_ids)
    if not prompt_len:
        return f"problem {problem.id} has an empty prompt"
    if prompt_len + max_gen_len <= max_len:
        return None
    longest = max_len - prompt_len
    way_out = f"Use a limit of {longest} or less." if longest > 0 else "The prompt alone is too long."
    return f"prompt and thought must fit the context of {max_len} tokens; got {prompt_len + max_gen_len}. {way_out}"
