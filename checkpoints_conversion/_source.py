"""What is converted: a Hugging Face folder, a name on the hub or a GGUF file, behind one face.

Called by `_convert`, which reads tensors in pieces and keeps the SHA-256 of their bytes.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Protocol, final, runtime_checkable

import numpy as np

from ._gguf import GgufSource
from ._gguf_file import GgufFile
from ._gguf_tokenizer import load_gguf_tokenizer
from ._hub import download, is_hub_name
from ._manifest import Manifest
from ._problems import raise_problems
from ._stored import StoredTensor, read_inventory, read_json_object, stream_rows
from ._tokenizer import HfTokenizer, save_tokenizer

HF_CONFIG_FILE = "hf_config.json"
"""config.json of the source, under a name by which no tool takes the converted folder for its own."""
TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template*",
    "vocab.json",
    "merges.txt",
)

OnBytes = Callable[[Any], None]
"""Gets the stored bytes in order, as a buffer."""


@runtime_checkable
class Source(Protocol):
    """Show a checkpoint as Hugging Face names, shapes, config and numbers."""

    @property
    def name(self) -> str:
        """Name of the model where its geometry has no published one."""
        ...

    @property
    def folder(self) -> Path:
        """Where it lies."""
        ...

    @property
    def origin(self) -> Mapping[str, str]:
        """What the manifest says about it."""
        ...

    @property
    def config(self) -> dict[str, Any]:
        """What config.json says."""
        ...

    def inventory(self, problems: list[str]) -> dict[str, StoredTensor]:
        """Return every tensor by its Hugging Face name; add what is wrong to `problems`."""
        ...

    def stored_dtype(self, tensor: StoredTensor) -> str:
        """Return the type of a tensor in the file."""
        ...

    def rows(self, tensor: StoredTensor, on_bytes: OnBytes) -> Iterator[np.ndarray]:
        """Yield the numbers of a tensor, some rows at a time, in order."""
        ...

    def copy_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer's files into a folder that exists."""
        ...


@final
class HfFolder:
    """Read a folder of safetensors; `origin` says where it came from."""

    def __init__(self, folder: Path, *, name: str, origin: Mapping[str, str], problems: list[str]):
        self.folder = folder
        self.name = name
        self.origin = origin
        self.config = read_json_object(folder / "config.json", problems)

    def inventory(self, problems: list[str]) -> dict[str, StoredTensor]:
        """Return every tensor by its name; add what is wrong to `problems`."""
        return read_inventory(self.folder, problems)

    def stored_dtype(self, tensor: StoredTensor) -> str:
        """Return the dtype in the file."""
        return tensor.dtype

    def rows(self, tensor: StoredTensor, on_bytes: OnBytes) -> Iterator[np.ndarray]:
        """Yield the numbers of a tensor, some rows at a time, in order."""
        for rows in stream_rows(tensor):
            on_bytes(rows.reshape(-1).view(np.uint8))
            yield rows

    def copy_tokenizer(self, folder: Path) -> None:
        """Copy the tokenizer's files."""
        copy_files(self.folder, folder, TOKENIZER_FILES)


@final
class GgufFolder:
    """Read a GGUF file; quantised tensors come as float32."""

    def __init__(self, path: Path):
        self._source = GgufSource(path)
        self.folder = path
        self.name = path.stem
        self.origin = {"file": path.name}
        self.config = self._source.config
        has_tokenizer = any(key.startswith("tokenizer.") for key in GgufFile(path).metadata)
        # Now: one that is not known is an error before any work.
        self._tokenizer: HfTokenizer | None = load_gguf_tokenizer(path) if has_tokenizer else None

    def inventory(self, problems: list[str]) -> dict[str, StoredTensor]:
        """Return every tensor by its Hugging Face name; the file was found whole when it was opened."""
        return self._source.inventory()

    def stored_dtype(self, tensor: StoredTensor) -> str:
        """Return the type in the file, such as "Q4_K"."""
        return self._source.stored(tensor.name)[0]

    def rows(self, tensor: StoredTensor, on_bytes: OnBytes) -> Iterator[np.ndarray]:
        """Yield the numbers of a tensor, some rows at a time, in order."""
        for stored, numbers in self._source.rows(tensor.name, num_groups=tensor.shape[0]):
            on_bytes(stored.reshape(-1))
            yield numbers

    def copy_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer as files of `tokenizers`, if the file has one."""
        if self._tokenizer is not None:
            save_tokenizer(self._tokenizer, folder)


def open_source(source: str | PathLike[str], *, revision: str | None, problems: list[str]) -> Source:
    """Return the source that a path or a hub name means; a folder that exists comes before the hub.

    Raises:
        ValueError: If there is no such folder, file or name, or a revision is given for what has none.
        ImportError: If the source needs an extra that is not installed.
        OSError: If the hub refuses or cannot be reached.
    """
    path = Path(source)
    subject = f"cannot convert {fspath(source)}"
    is_local = path.is_dir() or path.suffix == ".gguf"
    if is_local and revision is not None:
        raise_problems(subject, [f"revision {revision!r} is for names on the hub; this is a local path"])
    if path.is_dir():
        resolved = path.resolve()
        return HfFolder(path, name=resolved.name, origin={"folder": resolved.name}, problems=problems)
    if path.suffix == ".gguf":
        return GgufFolder(path)
    if not is_hub_name(fspath(source)):
        raise_problems(subject, ["no such folder, and no name on the hub, which looks like Qwen/Qwen3-0.6B"])
    repo = fspath(source)
    folder, commit = download(repo, revision)
    origin = {"repo": repo, "revision": commit}
    return HfFolder(folder, name=repo.partition("/")[2], origin=origin, problems=problems)


def local_source(converted: Path, source: str | PathLike[str]) -> Path:
    """Return where the source of a converted checkpoint lies: the path that was given, or the hub's cache.

    Args:
        converted: The folder that `convert_checkpoint` wrote.
        source: What it was given.

    Raises:
        ValueError: If the folder has no manifest.
        ImportError: If the source is a hub name and huggingface_hub is missing.
        OSError: If the cache has it no longer, and the hub refuses or cannot be reached.
    """
    problems: list[str] = []
    manifest = Manifest.read(converted, problems)
    raise_problems(f"cannot find the source of {converted}", problems)
    assert manifest is not None
    if "repo" not in manifest.source:
        return Path(source)
    return download(manifest.source["repo"], manifest.source["revision"])[0]


def copy_files(source: Path, target: Path, patterns: tuple[str, ...]) -> None:
    """Copy the files of a folder whose names match, none of its subfolders."""
    for file in sorted({file for pattern in patterns for file in source.glob(pattern)}):
        if file.is_file():
            shutil.copyfile(file, target / file.name)
