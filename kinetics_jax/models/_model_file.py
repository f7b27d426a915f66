"""A converted checkpoint on disk: which files it has, what model.json says, how a leaf is called.

    model.json       geometry, dtype and quantisation of the weights
    weights/         one Orbax checkpoint, a flat dictionary of leaves by dotted path: "layers.0.q_proj.kernel"

`checkpoints_conversion` writes such folders and adds files of its own; `load_model` reads these two.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kinetics_jax.specs import ModelSpec

MODEL_FILE, WEIGHTS_FOLDER = "model.json", "weights"
_FORMAT, _VERSION = "kinetics-jax checkpoint", 1
_DTYPES = ("float32", "bfloat16", "float16")

WeightDType = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """Hold what model.json says.

    Attributes:
        spec: Geometry of the model.
        dtype: The dtype that most of the weights that are floats are stored in; the others keep theirs.
        quantisation: "int8" if the kernels are int8 with a scale an output channel (`abstract_decoder`), or None.
    """

    spec: ModelSpec
    dtype: WeightDType
    quantisation: Literal["int8"] | None = None

    def write(self, folder: Path) -> None:
        """Write model.json into a folder that exists."""
        content = {
            "format": _FORMAT,
            "version": _VERSION,
            "spec": self.spec.to_dict(),
            "dtype": self.dtype,
            "quantisation": self.quantisation,
        }
        (folder / MODEL_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "ModelFile":
        """Return what model.json of a folder says.

        Raises:
            ValueError: If the file is missing, malformed or of a version that this one does not know.
        """
        file = folder / MODEL_FILE
        if not file.is_file():
            raise ValueError(
                f"{folder} holds no converted checkpoint: {MODEL_FILE} is missing. Make one with "
                "`kinetics convert HF_FOLDER_OR_HUB_NAME TARGET`."
            )
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(f"{file} cannot be read as JSON: {error}") from error
        if problems := _wrong_values(content):
            raise ValueError(f"{file}: {'; '.join(problems)}")
        try:
            spec = ModelSpec.from_dict(content["spec"])
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
        return cls(spec=spec, dtype=content["dtype"], quantisation=content["quantisation"])


def leaf_name(path: tuple[object, ...]) -> str:
    """Return the name of a leaf of `Decoder` in the weights.

    Example:
        >>> leaf_name(("layers", 0, "q_proj", "kernel"))
        'layers.0.q_proj.kernel'
    """
    return ".".join(map(str, path))


def _wrong_values(content: Any) -> list[str]:
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        return [f"it must be an object with format {_FORMAT!r}"]
    wanted = {"version": (_VERSION,), "dtype": _DTYPES, "quantisation": (None, "int8")}
    problems = [
        f"{field} must be {' or '.join(map(repr, known))}; got {content.get(field)!r}. Use a newer kinetics_jax"
        for field, known in wanted.items()
        if not any(content.get(field) == value and type(content.get(field)) is type(value) for value in known)
    ]
    return problems if isinstance(content.get("spec"), dict) else [*problems, "spec must be an object"]
