"""`kinetics tasks`: which tasks there are, what they may be used for, and what they need without a network."""

from dataclasses import asdict, dataclass

from kinetics_jax.tasks import TASKS, TextTask

from ._app import app
from ._output import print_json, print_table
from ._pricing import AsJson


@dataclass(frozen=True, kw_only=True)
class TaskRow:
    """Describe one task.

    Attributes:
        name: What `--task` takes.
        num_problems: Problems that were published; None where they never end.
        max_gen_len: Full length limit on the thought [tokens].
        asked_in: "words", which any model with a tokenizer reads, or "tokens" of the embedded models.
        licence: Licence of the problems.
        revision: Version of the problems and of their grader.
        offline: What must be there to use it without a network.
    """

    name: str
    num_problems: int | None
    max_gen_len: int
    asked_in: str
    licence: str
    revision: str
    offline: str


@app.command()
def tasks(as_json: AsJson = False) -> None:
    """List the tasks: size, licence, and what is needed offline."""
    rows = [
        TaskRow(
            name=name,
            num_problems=task.size if isinstance(task, TextTask) else None,
            max_gen_len=task.max_gen_len,
            asked_in="words" if isinstance(task, TextTask) else "tokens",
            licence=task.licence,
            revision=task.revision,
            offline=task.needs if isinstance(task, TextTask) else "nothing",
        )
        for name, task in TASKS.items()
    ]
    if as_json:
        print_json([asdict(row) for row in rows])
        return
    columns = ("task", "licence", "offline", "problems", "limit")
    lines = [
        [
            row.name,
            row.licence,
            row.offline,
            "endless" if row.num_problems is None else str(row.num_problems),
            str(row.max_gen_len),
        ]
        for row in rows
    ]
    print_table(f"{len(rows)} tasks; limits in tokens", columns, lines, num_labels=3)
