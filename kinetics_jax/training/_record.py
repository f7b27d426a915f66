"""training.json: what a model folder tells about its making. Written by `kinetics train`, read by the card."""

import json
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any

from ._loop import TrainingReport
from ._recipe import Recipe

RECORD_FILE = "training.json"
_LIBRARIES = ("jax", "flax", "optax")


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """Hold a run's report, recipe and library versions.

    Attributes:
        report: What the run did.
        recipe: Every setting of the run.
        versions: Library versions by name.
    """

    report: TrainingReport
    recipe: Recipe
    versions: dict[str, str]


def write_training_record(report: TrainingReport, recipe: Recipe, folder: str | PathLike[str]) -> None:
    """Write training.json with the versions of the libraries that are installed now.

    Args:
        report: What `train` returned.
        recipe: What it was given.
        folder: The model's folder.
    """
    versions = {library: version(library) for library in _LIBRARIES}
    content = {**asdict(report), "recipe": asdict(recipe), "versions": versions}
    (Path(folder) / RECORD_FILE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_training_record(folder: str | PathLike[str]) -> TrainingRecord:
    """Read training.json.

    Args:
        folder: The model's folder.

    Raises:
        ValueError: If the file is missing, no JSON, or not of this form; names the file.

    Example:
        >>> read_training_record("no/such/folder")
        Traceback (most recent call last):
        ...
        ValueError: cannot read no/such/folder/training.json: no such file
    """
    file = Path(folder) / RECORD_FILE
    if not file.is_file():
        raise ValueError(f"cannot read {file}: no such file")
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        report = TrainingReport(**{field.name: content[field.name] for field in fields(TrainingReport)})
        recipe = content["recipe"]
        recipe = Recipe(**{**recipe, "depth_weights": tuple(recipe["depth_weights"])})
        versions = {str(library): str(number) for library, number in content["versions"].items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"cannot read {file}: {type(error).__name__}: {error}") from error
    if not report.losses or len(report.losses) != len(report.steps):
        raise ValueError(f"cannot read {file}: it needs as many losses as steps, and at least one")
    return TrainingRecord(report=report, recipe=recipe, versions=versions)
