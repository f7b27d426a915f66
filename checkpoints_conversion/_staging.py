"""Where a checkpoint is written: in a folder beside its place, which takes its name once it is whole.

    model.partial -> model          one rename; whoever reads `model` never meets half a checkpoint

Called by `_convert`, which goes on in a `.partial` that a killed run left, and `_export`, which starts anew.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LOCK_FILE = ".lock"


def partial_of(target: Path) -> Path:
    """Return the folder that becomes `target`.

    Raises:
        ValueError: If `target` has no name that could be given.

    Example:
        >>> partial_of(Path("models/mine")).name
        'mine.partial'
    """
    if target.name in ("", ".."):
        raise ValueError(f"the target {target} must have a name of its own; choose a folder in it")
    return target.with_name(f"{target.name}.partial")


def check_target(target: Path, source: Path, *, proof: str, force: bool, problems: list[str]) -> None:
    """Add why nothing may be written to `target`: it is taken, lies in the source, or the disk refuses.

    Args:
        target: Where to.
        source: What is read.
        proof: The file by which a folder shows that it is a checkpoint and may be replaced.
        force: Whether a checkpoint that is there is replaced.
        problems: Gets one sentence for each problem.
    """
    partial = partial_of(target)
    if any(_lies_in(one, other) for one, other in ((target, source), (source, target), (source, partial))):
        problems.append(f"the target {target} and the source {source} must not lie in each other; choose another")
        return
    check_free(target, proof=proof, force=force, problems=problems)
    if partial.exists() and not (partial / _LOCK_FILE).exists():
        problems.append(f"{partial} is in the way and not ours; move it, or choose another target")
    parent = _existing_parent(target)
    if not os.access(parent, os.W_OK | os.X_OK):
        problems.append(f"{parent} may not be written to; choose another target")


def check_free(target: Path, *, proof: str, force: bool, problems: list[str]) -> None:
    """Add why `target` may not be replaced. Ask again before `publish`: hours may lie between."""
    if target.is_symlink() or os.path.ismount(target):
        problems.append(f"the target {target} is a link or a mount point, which no folder can replace; choose another")
    elif target.exists() and not target.is_dir():
        problems.append(f"the target {target} is a file; choose a folder")
    elif _is_filled(target):
        if not force:
            problems.append(f"the target {target} exists and is not empty; choose another, or force its replacement")
        elif not (target / proof).is_file():
            problems.append(f"the target {target} is no checkpoint ({proof} is missing) and is never replaced")
        elif os.path.lexists(_replaced_of(target)):
            problems.append(f"{_replaced_of(target)}, where {target} would wait for its end, exists; move or remove it")


def check_space(target: Path, num_bytes: int, problems: list[str]) -> None:
    """Add that the disk of `target` lacks room for so many bytes beside what its `.partial` has already."""
    partial = partial_of(target)
    written = sum(file.stat().st_size for file in partial.rglob("*") if file.is_file()) if partial.is_dir() else 0
    parent = _existing_parent(target)
    missing = num_bytes - written - shutil.disk_usage(parent).free
    if missing > 0:
        problems.append(f"the disk of {parent} lacks {missing / 1e9:.3g} GB of the {num_bytes / 1e9:.3g} GB to write")


@contextmanager
def sole_writer(partial: Path) -> Iterator[None]:
    """Make the folder and hold it: a second process that writes the same target is refused.

    Raises:
        ValueError: If another process holds it.
    """
    import fcntl  # POSIX, as Orbax and JAX on accelerators are

    partial.mkdir(parents=True, exist_ok=True)
    with (partial / _LOCK_FILE).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process is writing {partial}; wait for it, or choose another target") from None
        if not _is_still_there(partial / _LOCK_FILE, lock.fileno()):
            raise ValueError(f"another process has just finished {partial}; look at its target, or run again")
        yield


@contextmanager
def new_folder(partial: Path) -> Iterator[Path]:
    """Make the folder, empty and held; remove it if what is written in it fails."""
    with sole_writer(partial):
        try:
            clear(partial)
            yield partial
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def clear(partial: Path) -> None:
    """Remove everything in the folder but the lock on it."""
    for entry in partial.iterdir():
        if entry.name == _LOCK_FILE:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def publish(partial: Path, target: Path) -> None:
    """Give a whole checkpoint its name; one that had it is removed afterwards.

    The lock goes last. A kill before leaves a folder that is known as ours, or, between the two renames of a
    replacement, the old checkpoint as `TARGET.replaced`.
    """
    for file in partial.iterdir():
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
    old, has_old = _replaced_of(target), _is_filled(target)
    if has_old:
        target.replace(old)
    partial.replace(target)
    (target / _LOCK_FILE).unlink()
    if has_old:
        shutil.rmtree(old)


def _replaced_of(target: Path) -> Path:
    return target.with_name(f"{target.name}.replaced")


def _is_filled(target: Path) -> bool:
    return target.is_dir() and any(target.iterdir())


def _is_still_there(file: Path, descriptor: int) -> bool:
    """Say whether an open file still has its name: whoever held the lock may have renamed the folder."""
    try:
        return os.path.samestat(file.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _existing_parent(target: Path) -> Path:
    return next(parent for parent in Path(os.path.abspath(target)).parents if parent.exists())


def _lies_in(inner: Path, outer: Path) -> bool:
    return inner.resolve().is_relative_to(outer.resolve())
