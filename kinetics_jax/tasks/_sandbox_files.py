"""What of the host's files a sandbox shows: the interpreter's libraries, read-only, and nothing else."""

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_SYSTEM = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/nix/store")
_PACKAGE_FOLDERS = ("site-packages", "dist-packages")


@dataclass(frozen=True, kw_only=True)
class Files:
    """List what is put into the empty root of a sandbox.

    Attributes:
        binds: Folders shown read-only where they are.
        links: Symbolic links, as path and target.
        masks: Folders below them that appear empty.
    """

    binds: tuple[str, ...]
    links: tuple[tuple[str, str], ...]
    masks: tuple[str, ...]


def visible_files(packages: Sequence[Path] = ()) -> Files:
    """Return the libraries this interpreter needs, without installed packages, and the given folders of packages.

    Raises:
        ValueError: If one of the packages' folders is none.
    """
    extra = []
    for path in packages:
        if not Path(path).is_dir():
            raise ValueError(f"packages must be folders the program may read; got {str(path)!r}")
        extra.append(str(Path(path).resolve()))
    base = _libraries()
    masks = tuple(mask for mask in base.masks if mask not in extra)
    return Files(binds=tuple(dict.fromkeys((*base.binds, *extra))), links=base.links, masks=masks)


@cache
def _libraries() -> Files:
    links = tuple((path, os.readlink(path)) for path in _SYSTEM if os.path.islink(path))
    folders = [path for path in _SYSTEM if os.path.isdir(path) and not os.path.islink(path)]
    own = [os.path.join(sys.base_prefix, "lib"), *(path for path in sys.path if path.endswith("lib-dynload"))]
    own.append(os.path.dirname(os.__file__))
    for path in sorted({os.path.realpath(path) for path in own if os.path.isdir(path)}):
        if not any(path == folder or path.startswith(folder + "/") for folder in folders):
            folders.append(path)
    masks = []
    for folder in folders:
        for name in _PACKAGE_FOLDERS:
            found = [*Path(folder).glob(f"python3*/{name}"), Path(folder) / name]
            masks += [str(path) for path in found if path.is_dir() and not path.is_symlink()]
    return Files(binds=tuple(folders), links=links, masks=tuple(sorted(set(masks))))


def bwrap_command(files: Files, *, temp_bytes: int, guest: Sequence[str]) -> list[str]:
    """Return the bubblewrap command that shows these files to `guest`, a command of this interpreter."""
    command = [bwrap_path() or "bwrap", "--unshare-all", "--die-with-parent", "--as-pid-1", "--cap-drop", "ALL"]
    command += ["--size", str(temp_bytes), "--tmpfs", "/tmp"]
    for path in files.binds:
        command += ["--ro-bind", path, path]
    for path, target in files.links:
        command += ["--symlink", target, path]
    for path in files.masks:
        command += ["--size", "4096", "--tmpfs", path, "--remount-ro", path]
    for path in guest_files():
        command += ["--ro-bind", path, path]
    command += ["--dev-bind", "/dev/null", "/dev/null", "--remount-ro", "/", "--chdir", "/tmp"]
    return [*command, "--", *guest]


def guest_files() -> tuple[str, ...]:
    """Return the files that start a guest under bubblewrap: the interpreter and the modules of the sandbox."""
    return os.path.realpath(sys.executable), *map(str, sorted(Path(__file__).parent.glob("_sandbox_*.py")))


def bwrap_path() -> str | None:
    """Return where bubblewrap is installed, None if it is not."""
    return shutil.which("bwrap")
