"""One error for everything that is wrong with a checkpoint, so that a person repairs it in one go."""

MAX_SHOWN = 20


def raise_problems(subject: str, problems: list[str]) -> None:
    """Raise one ValueError that lists `problems`, if there are any.

    Example:
        >>> raise_problems("cannot load /models/a", ["config.json is missing"])
        Traceback (most recent call last):
        ...
        ValueError: cannot load /models/a: config.json is missing
    """
    if not problems:
        return
    if len(problems) == 1:
        raise ValueError(f"{subject}: {problems[0]}")
    shown = problems[:MAX_SHOWN]
    if len(problems) > MAX_SHOWN:
        shown.append(f"... and {len(problems) - MAX_SHOWN} more")
    raise ValueError("\n  - ".join([f"{subject}: {len(problems)} problems", *shown]))
