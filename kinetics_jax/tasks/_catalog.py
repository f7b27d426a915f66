"""The tasks by name; a new task is one file and one line here."""

from ._pathfind import Pathfind
from ._protocol import Task

TASKS: dict[str, Task] = {task.name: task for task in (Pathfind(),)}


def get_task(name: str) -> Task:
    """Return the task of that name.

    Raises:
        ValueError: If there is none; the message lists the known ones.

    Example:
        >>> get_task("pathfind").max_gen_len
        256
    """
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}. Known: {', '.join(TASKS)}")
    return TASKS[name]
