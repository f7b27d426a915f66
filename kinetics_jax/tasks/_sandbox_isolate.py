"""How a process leaves the host behind: namespaces, a root of its own, no user, no capabilities.

`isolate` runs in the process that starts the sandbox and returns in its first process, pid 1 of a pid namespace. As
root it takes a user id nobody has; otherwise it makes a user namespace. Loaded inside the sandbox.

    launcher (host's pid namespace) -- waits --> pid 1: serves requests --> one process a program
"""

import ctypes
import os

TYPE_CHECKING = False  # `typing` takes longer to load than most programs to run
if TYPE_CHECKING:
    from typing import Any
else:
    Any = object

_NS_MOUNT, _NS_UTS, _NS_IPC, _NS_USER = 0x00020000, 0x04000000, 0x08000000, 0x10000000
_NS_PID, _NS_NET, _NS_CGROUP = 0x20000000, 0x40000000, 0x02000000
_NAMESPACES = _NS_MOUNT | _NS_UTS | _NS_IPC | _NS_PID | _NS_NET | _NS_CGROUP
_READ_ONLY, _NO_SUID, _NO_DEV, _NO_EXEC = 1, 2, 4, 8
_BIND, _RECURSIVE, _PRIVATE = 4096, 16384, 1 << 18
_DETACH = 2
_PDEATHSIG, _DUMPABLE, _CAPBSET_DROP = 1, 4, 24
_SIGKILL = 9
_OWN_ID = 0x70000000
"""First of the user ids taken as root: the launcher's pid is added, so that sandboxes share neither id nor limits."""
_INSIDE_ID = 1000

_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_MOUNT_SETATTR = 442  # the same on every machine; since Linux 5.12


class Kernel:
    """Call the kernel where Python has no function for it."""

    def __init__(self) -> None:
        self.libc = ctypes.CDLL(None, use_errno=True)

    def _check(self, result: int, what: str) -> None:
        if result:
            raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")

    def unshare(self, flags: int) -> None:
        """Leave namespaces."""
        self._check(self.libc.unshare(flags), "unshare")

    def mount(self, source: str, target: str, kind: str, flags: int, options: str = "") -> None:
        """Mount a file system, or bind a folder."""
        result = self.libc.mount(
            source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode()
        )
        self._check(result, f"mount {target}")

    def restrict(self, target: str, flags: int, *, recursive: bool) -> None:
        """Add restrictions to a mount, and to those below it."""
        attributes = (ctypes.c_uint64 * 4)(flags, 0, 0, 0)
        result = self.libc.syscall(
            ctypes.c_long(_MOUNT_SETATTR),
            ctypes.c_int(-100),
            target.encode(),
            ctypes.c_uint(0x8000 if recursive else 0),
            ctypes.byref(attributes),
            ctypes.c_size_t(ctypes.sizeof(attributes)),
        )
        self._check(result, f"mount_setattr {target}")

    def pivot(self, new: str, old: str) -> None:
        """Make a mount the root, and put the old root at `old`."""
        number = _PIVOT_ROOT[os.uname().machine]
        self._check(self.libc.syscall(ctypes.c_long(number), new.encode(), old.encode()), "pivot_root")

    def forget(self, target: str) -> None:
        """Detach a mount and all below it."""
        self._check(self.libc.umount2(target.encode(), _DETACH), f"umount {target}")

    def prctl(self, option: int, value: int) -> None:
        """Set a process attribute."""
        zero = ctypes.c_ulong(0)
        self._check(self.libc.prctl(option, ctypes.c_ulong(value), zero, zero, zero), f"prctl({option})")

    def drop_capabilities(self) -> None:
        """Give up every capability, now and for good."""
        for capability in range(64):
            if self.libc.prctl(_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0):
                break  # past the last one, or none left to drop with
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)
        self._check(self.libc.capset(ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)())), "capset")


def isolate(config: dict[str, Any]) -> Kernel:
    """Leave the host; returns in the first process of the sandbox, never in the one that called.

    Args:
        config: "isolation" ("namespaces", "bubblewrap": already inside, or "none"); "binds", "links", "masks" and
            "temp_bytes" of the file system.

    Raises:
        OSError: If the machine does not let it.
    """
    kernel = Kernel()
    if config["isolation"] == "none":
        return kernel
    if config["isolation"] == "namespaces":
        kernel.prctl(_PDEATHSIG, _SIGKILL)
        _volunteer_for_oom()
        host = _mount_namespace()
        own_id = _enter_namespaces(kernel)
        if _mount_namespace() == host:  # the call may succeed and do nothing: mounts would be the host's
            raise OSError("unshare: it succeeded, and this process is where it was")
        child = os.fork()
        if child:
            _, status = os.waitpid(child, 0)
            os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
        _expect_first_process()
        _build_root(kernel, config)
        if own_id:
            os.setgroups([])
            os.setresgid(own_id, own_id, own_id)
            os.setresuid(own_id, own_id, own_id)
        kernel.drop_capabilities()
    _expect_first_process()
    kernel.prctl(_PDEATHSIG, _SIGKILL)  # after the change of user, which resets it
    kernel.prctl(_DUMPABLE, 0)
    return kernel


def _mount_namespace() -> tuple[int, int]:
    """Return what tells this process's mounts from those of others."""
    state = os.stat("/proc/self/ns/mnt")
    return state.st_dev, state.st_ino


def _expect_first_process() -> None:
    """Refuse to go on outside of a pid namespace of our own, where killing all and emptying /tmp would be meant."""
    if os.getpid() != 1:
        raise OSError(f"a sandbox's first process must be number 1 of its namespace; this is {os.getpid()}")


def _volunteer_for_oom() -> None:
    """Ask to be killed first where the host runs out of memory; a kindness, not a limit."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    except OSError:
        return


def _enter_namespaces(kernel: Kernel) -> int:
    """Leave the host's namespaces; return the user id to take as root, 0 where a user namespace holds us."""
    own_id = _OWN_ID + os.getpid()
    user_id, group_id = os.geteuid(), os.getegid()
    if user_id == 0 and _is_mapped(own_id):
        try:
            kernel.unshare(_NAMESPACES)
            return own_id
        except PermissionError:  # root in name only
            own_id = 0
    kernel.unshare(_NS_USER | _NAMESPACES)
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{_INSIDE_ID} {user_id} 1"),
        ("gid_map", f"{_INSIDE_ID} {group_id} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    return 0


def _is_mapped(user_id: int) -> bool:
    with open("/proc/self/uid_map") as file:
        spans = [tuple(map(int, line.split())) for line in file]
    return any(first <= user_id < first + count for first, _, count in spans)


def _build_root(kernel: Kernel, config: dict[str, Any]) -> None:
    """Make a small root of read-only libraries and one temporary folder, and detach the host's files."""
    kernel.mount("none", "/", "", _PRIVATE | _RECURSIVE)
    base = "/tmp" if os.path.isdir("/tmp") else "/dev"
    kernel.mount("tmpfs", base, "tmpfs", _NO_SUID | _NO_DEV, "size=1m,nr_inodes=4096,mode=755")
    os.chdir(base)
    os.mkdir("old")
    kernel.pivot(".", "old")
    os.chdir("/")
    os.mkdir("/tmp")
    options = f"size={config['temp_bytes']},nr_inodes=4096,mode=1777"
    kernel.mount("tmpfs", "/tmp", "tmpfs", _NO_SUID | _NO_DEV | _NO_EXEC, options)
    for path in config["binds"]:
        os.makedirs(path, exist_ok=True)
        kernel.mount(f"/old{path}", path, "", _BIND | _RECURSIVE)
        kernel.restrict(path, _READ_ONLY | _NO_SUID | _NO_DEV, recursive=True)
    for path, target in config["links"]:
        os.symlink(target, path)
    for path in config["masks"]:
        kernel.mount("tmpfs", path, "tmpfs", _READ_ONLY | _NO_SUID | _NO_DEV | _NO_EXEC, "size=4k,mode=755")
    os.mkdir("/dev")
    os.close(os.open("/dev/null", os.O_CREAT | os.O_WRONLY, 0o666))
    kernel.mount("/old/dev/null", "/dev/null", "", _BIND)
    kernel.forget("/old")
    os.rmdir("/old")
    kernel.restrict("/", _READ_ONLY | _NO_SUID | _NO_DEV | _NO_EXEC, recursive=False)
    os.chdir("/tmp")
