"""The tasks by name; a new task is one file and one line here."""

import os
from pathlib import Path

from ._gym import GYM_FAMILIES, GymTask
from ._humaneval import HumanEval
from ._livecodebench import LiveCodeBench
from ._math import AIME24, AIME25, AMC23, GSM8K, MATH500
from ._pathfind import Pathfind
from ._protocol import Task
from ._text import FileTask, TextTask

_TOKEN_TASKS: tuple[Task, ...] = (Pathfind(),)
_TEXT_TASKS: tuple[TextTask, ...] = (
    AIME24,
    AIME25,
    AMC23,
    MATH500,
    GSM8K,
    *(HumanEval(), LiveCodeBench(), LiveCodeBench(stratified=True)),
    *(GymTask(family=family) for family in GYM_FAMILIES),
)

TASKS: dict[str, Task | TextTask] = {task.name: task for task in (*_TOKEN_TASKS, *_TEXT_TASKS)}
"""Every task; those asked in words (`TextTask`) need `tokenised` and a model's tokenizer to be sampled."""


def get_task(name: str, *, data: str | os.PathLike[str] | None = None) -> Task | TextTask:
    """Return the task of that name.

    Args:
        name: One of `TASKS`.
        data: A local file with the task's problems, for tasks that are otherwise downloaded.

    Raises:
        ValueError: If there is none, the message lists the known ones; or the task reads no file.

    Example:
        >>> get_task("pathfind").max_gen_len
        256
    """
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}. Known: {', '.join(TASKS)}")
    task = TASKS[name]
    if data is None:
        return task
    if not isinstance(task, FileTask):
        raise ValueError(f"task {name!r} makes or ships its problems and reads no file; leave out data={str(data)!r}")
    return task.with_data(Path(data))
