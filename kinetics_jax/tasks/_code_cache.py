"""Verdicts on disk: one small file each, named by a hash of all it depends on."""

import contextlib
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final


@final
@dataclass(frozen=True, kw_only=True)
class VerdictCache:
    """Remember verdicts in a folder that any number of processes may share.

    A file is written beside its place and renamed, so a reader sees a whole verdict or none. What cannot be read is
    as good as absent; a folder that cannot be written remembers nothing.

    Attributes:
        folder: Made when the first verdict is written; None is `kinetics_jax/verdicts` in the user's cache folder
            ($XDG_CACHE_HOME, else ~/.cache).

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     cache = VerdictCache(folder=Path(folder))
        ...     cache.put("ab12", {"kind": "pass"})
        ...     cache.get("ab12"), cache.get("cd34")
        ({'kind': 'pass'}, None)
    """

    folder: Path | None = None

    def get(self, key: str) -> dict[str, Any] | None:
        """Return the verdict of a key, None where there is none."""
        try:
            verdict = json.loads(self._path(key).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return verdict if isinstance(verdict, dict) and verdict.get("kind") else None

    def put(self, key: str, verdict: dict[str, Any]) -> None:
        """Remember a verdict; the last of two writers wins."""
        path = self._path(key)
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, beside = tempfile.mkstemp(dir=path.parent, suffix=".new")
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    json.dump(verdict, file)
                os.replace(beside, path)
            except OSError:
                os.unlink(beside)

    def _path(self, key: str) -> Path:
        root = self.folder
        if root is None:
            home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
            root = Path(home) / "kinetics_jax" / "verdicts"
        return root / key[:2] / f"{key}.json"
