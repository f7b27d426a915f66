"""Where every number of a converted checkpoint came from: manifest.json, and the journal that becomes it.

While converting, one line is added for each tensor that is safely on the disk; a run that was killed goes on after the
last. Called by `_convert` and `_export`.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeGuard, final

from kinetics_jax import __version__

from ._stored import read_json_object

MANIFEST_FILE, JOURNAL_FILE = "manifest.json", "journal.jsonl"
_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class TensorRecord:
    """Say what became of one stored tensor.

    Attributes:
        name: Its Hugging Face name.
        leaf: The leaf that holds its numbers.
        index: Its place in the leaf, of a leaf that stacks experts; else None.
        file: Name of the file it was stored in.
        dtype: As stored: "BF16", or a GGUF type.
        shape: As stored, in the layout of Hugging Face.
        sha256: Of its bytes as stored, in hex.
    """

    name: str
    leaf: str
    index: int | None
    file: str
    dtype: str
    shape: tuple[int, ...]
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Say where a converted checkpoint came from.

    Attributes:
        source: The folder or file by name, or the hub repository and its revision.
        tensors: Every tensor of the source, in the order of its files.
        tool_version: Version of this library that converted it.
    """

    source: Mapping[str, str]
    tensors: tuple[TensorRecord, ...]
    tool_version: str = __version__

    def write(self, folder: Path) -> None:
        """Write manifest.json into a folder that exists."""
        head = {
            "version": _VERSION,
            "tool": f"kinetics_jax {self.tool_version}",
            "source": dict(self.source),
            "weights_hash": combined_hash(self.tensors),
        }
        tensors = ",\n    ".join(json.dumps(asdict(tensor)) for tensor in self.tensors)  # a line for each
        text = json.dumps(head, indent=2).removesuffix("\n}") + f',\n  "tensors": [\n    {tensors}\n  ]\n}}\n'
        (folder / MANIFEST_FILE).write_text(text, encoding="utf-8")

    @classmethod
    def read(cls, folder: Path, problems: list[str]) -> "Manifest | None":
        """Return what manifest.json says; on failure add one problem and return None."""
        found: list[str] = []
        content = read_json_object(folder / MANIFEST_FILE, found)
        problems.extend(found)
        if found:
            return None
        tensors = content.get("tensors")
        records = [_read_record(entry) for entry in tensors] if isinstance(tensors, list) else [None]
        whole = tuple(record for record in records if record is not None)
        source = content.get("source")
        if content.get("version") != _VERSION or len(whole) != len(records) or not _is_origin(source):
            problems.append(f"{MANIFEST_FILE} is malformed, or of a newer kinetics_jax ({content.get('tool')})")
            return None
        tool = str(content.get("tool")).removeprefix("kinetics_jax ")
        return cls(source=source, tensors=whole, tool_version=tool)


def combined_hash(tensors: Iterable[TensorRecord]) -> str:
    """Return the SHA-256 over all tensors as stored, in hex: what `weights_hash` says of the source.

    Example:
        >>> combined_hash([])[:8]
        'e3b0c442'
    """
    lines = sorted(f"{tensor.name} {tensor.dtype} {list(tensor.shape)} {tensor.sha256}\n" for tensor in tensors)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@final
class Journal:
    """Keep the records of a conversion under way.

    Args:
        folder: The unfinished checkpoint.
        identity: Says which conversion: source files, geometry, dtype. A journal of another one is not believed.

    Attributes:
        records: Of the tensors that are on the disk, by name.
        is_new: Whether there was no journal of this conversion.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]):
        self._file = folder / JOURNAL_FILE
        self._identity = json.loads(json.dumps(identity))  # tuples become lists, as in the file
        self.records: dict[str, TensorRecord] = {}
        self.is_new = not self._believe()

    def start(self) -> None:
        """Begin a new journal: the leaves are laid out, none is filled."""
        self.records = {}
        self._file.write_text(json.dumps(self._identity) + "\n", encoding="utf-8")

    def add(self, record: TensorRecord) -> None:
        """Note that a tensor is on the disk."""
        self.records[record.name] = record
        with self._file.open("a", encoding="utf-8") as opened:
            opened.write(json.dumps(asdict(record)) + "\n")

    def remove(self) -> None:
        """Forget the conversion: its manifest is written."""
        self._file.unlink()

    def _believe(self) -> bool:
        """Read the records up to a line that a killed run left half; cut the rest off."""
        try:
            lines = self._file.read_bytes().splitlines(keepends=True)
        except FileNotFoundError:
            return False
        if not lines or not lines[0].endswith(b"\n") or _parse(lines[0]) != self._identity:
            return False
        num_whole = 1
        for line in lines[1:]:
            record = _read_record(_parse(line)) if line.endswith(b"\n") else None
            if record is None:
                break
            self.records[record.name] = record
            num_whole += 1
        self._file.write_bytes(b"".join(lines[:num_whole]))
        return True


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _is_origin(source: Any) -> TypeGuard[dict[str, str]]:
    """Say whether a JSON value is a source: texts, and with a repository its revision."""
    if not isinstance(source, dict) or not all(isinstance(value, str) for value in source.values()):
        return False
    return "repo" not in source or "revision" in source


def _read_record(stored: Any) -> TensorRecord | None:
    """Return the record of a JSON object, None if it is none."""
    if not isinstance(stored, dict) or set(stored) != {field.name for field in fields(TensorRecord)}:
        return None
    texts = all(isinstance(stored[name], str) for name in ("name", "leaf", "file", "dtype", "sha256"))
    numbers = stored["shape"] if isinstance(stored["shape"], list) else [None]
    numbers = [*numbers, 0 if stored["index"] is None else stored["index"]]
    if not texts or not all(isinstance(number, int) and number >= 0 for number in numbers):
        return None
    return TensorRecord(**{**stored, "shape": tuple(stored["shape"])})
