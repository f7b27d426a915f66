"""The append-only log of trials: one writer, flushed to disk per batch, safe to kill at any instant.

`collect` writes through it. The state of a shard is its complete lines: a line counts when its newline is on disk,
so a half-written one is cut off on the next opening, and a batch that fails is taken back.
"""

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from ._jsonl import parse_lines
from ._runs import Settings, require_same_settings, settings_of
from ._schema import Trace, TraceKey, trace_to_json


class TraceWriter:
    r"""Append traces to one JSONL shard; when `append` returns, the rows are on disk.

    Args:
        path: The .jsonl shard; it and its folder are created if missing. An existing shard is continued.

    Raises:
        OSError: If the shard cannot be opened, locked or written, or another writer holds it.
        ValueError: If the path does not end in .jsonl, or the shard holds a broken line, other than a torn last one,
            which is removed.

    Example:
        >>> import tempfile
        >>> from kinetics_jax.traces import Trace, TraceWriter
        >>> trace = Trace(run="r", model="m", weights_hash="h", task="pathfind", problem="p0", difficulty=1, trial=0,
        ...               seed=0, attention="dense", sampling="greedy", max_gen_len=8, prompt_ids=(1, 2),
        ...               output_ids=(3, 4), finish_reason="eos", answer="4", score=1.0, solved_len=2, time_s=0.1)
        >>> with tempfile.TemporaryDirectory() as folder, TraceWriter(f"{folder}/r.jsonl") as writer:
        ...     writer.append([trace])
        ...     writer.done_keys()
        frozenset({('r', 'p0', 0)})
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        if self.path.suffix != ".jsonl":  # nobody would read it, and the end of another file is no torn line
            raise ValueError(f"a shard must end in .jsonl; got {self.path}")
        self.num_recovered_bytes = 0
        """Bytes of a torn last line that were removed when the shard was opened."""
        self._keys: set[TraceKey] = set()
        self._runs: dict[str, Settings] = {}
        self._file: int | None = open_locked(self.path)
        try:
            self._end = self._recover(self._file)
        except BaseException:
            self.close()
            raise

    def append(self, traces: Sequence[Trace]) -> None:
        """Write the traces and flush them to disk: all of them, or none.

        After any other interruption (Ctrl-C) the writer is closed: only opening the shard anew tells what is on disk.

        Raises:
            OSError: If the disk refuses; the batch is taken back and all earlier rows stay.
            ValueError: If a trial is already there or twice in the batch, a run changes its settings,
                or the writer is closed. Nothing is written then.
        """
        if self._file is None:
            raise ValueError(f"the writer of {self.path} is closed; open a new TraceWriter")
        keys, runs = self._admit(traces)
        data = "".join(trace_to_json(trace) + "\n" for trace in traces).encode()
        try:
            _write_all(self._file, data)
            os.fsync(self._file)
        except OSError as error:
            self._take_back(error)
        except BaseException:
            self.close()
            raise
        self._end += len(data)
        self._keys |= keys
        self._runs = runs

    def done_keys(self) -> frozenset[TraceKey]:
        """Return the (run, problem, trial) of every row on disk: what a resumed job need not sample again."""
        return frozenset(self._keys)

    def close(self) -> None:
        """Release the shard; closing twice is harmless."""
        if self._file is not None:
            os.close(self._file)  # gives the lock back, too
            self._file = None

    def __enter__(self) -> "TraceWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _recover(self, file: int) -> int:
        """Cut off a torn last line, learn the keys of the rest and return where it ends [bytes]."""
        data = self.path.read_bytes()
        end = data.rfind(b"\n") + 1
        for number, trace in enumerate(parse_lines(data[:end], self.path), start=1):
            try:
                keys, self._runs = self._admit([trace])
            except ValueError as error:
                raise ValueError(f"{self.path}, line {number}: {error}") from error
            self._keys |= keys
        if end < len(data):
            self.num_recovered_bytes = len(data) - end
            os.ftruncate(file, end)
            os.fsync(file)
        return end

    def _admit(self, traces: Sequence[Trace]) -> tuple[set[TraceKey], dict[str, Settings]]:
        """Return the keys of the traces and the settings of all runs, or raise for a duplicate or a changed run."""
        keys: set[TraceKey] = set()
        runs = dict(self._runs)
        for trace in traces:
            if trace.key in self._keys or trace.key in keys:
                raise ValueError(
                    f"run {trace.run!r}, problem {trace.problem!r}, trial {trace.trial} is already in {self.path}. "
                    "Skip what done_keys() lists, or give the run another name."
                )
            keys.add(trace.key)
            now = settings_of(trace)
            require_same_settings(trace.run, runs.setdefault(trace.run, now), now)
        return keys, runs

    def _take_back(self, error: OSError) -> None:
        """Restore the shard to its acknowledged rows and raise; a failed restore leaves the writer closed."""
        assert self._file is not None
        try:
            os.ftruncate(self._file, self._end)
        except OSError:
            self.close()
        raise OSError(
            error.errno,
            f"cannot write traces ({error.strerror}); the rows written before are safe. Free some space and resume",
            str(self.path),
        ) from error


def open_locked(path: Path) -> int:
    """Open the shard for appending under an exclusive lock, which the kernel drops when its process ends.

    Raises:
        OSError: If it cannot be opened or locked, or another writer holds it.
    """
    import fcntl  # POSIX only; reading traces works elsewhere, too

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not path.exists()
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise OSError(
            error.errno,
            f"cannot open a trace shard for writing ({error.strerror}). Choose a folder that you may write to",
            str(path),
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(file), path.stat()):  # replaced by `rewrite_traces` before the lock was ours
            raise OSError(errno.EAGAIN, "replaced")
        if is_new:
            flush_folder(path.parent)
    except OSError as error:
        os.close(file)
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise OSError(error.errno, f"cannot lock a trace shard ({error.strerror})", str(path)) from error
        raise OSError(
            error.errno, "another writer holds this trace shard. Wait for it, or write to another file", str(path)
        ) from error
    return file


def _write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def flush_folder(folder: Path) -> None:
    """Make a new name in a folder durable: fsync of the file alone does not."""
    if os.name != "posix":  # a folder is no file there
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
