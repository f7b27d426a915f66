"""Can this machine keep a program in? Found out by trying: a probe inside the sandbox attempts to get out.

A way of isolating counts only if the probe ran and reached nothing: once with the namespaces alone, once with the
system calls filtered too. Asked once a process. Every attempt is harmless where it succeeds: it asks whether it may
rather than doing it, because a machine that isolates badly is just where this runs.
"""

import os
import platform
import socket
import sys
import tempfile
from functools import cache

from ._sandbox import Isolation, Limits, NoIsolationError, Sandbox, SandboxError
from ._sandbox_files import bwrap_path, visible_files
from ._sandbox_seccomp import filters_machine

_LIMITS = Limits(cpu_s=5.0, wall_s=15.0, memory_bytes=512 << 20, temp_bytes=1 << 20, num_threads=4)
_PROBE = """
import ctypes, os, socket, sys, threading

port, host_pid, num_threads, filtered, *paths = sys.stdin.read().split("\\n")

def reached(what, attempt):
    try:
        if attempt() is not False:
            print("reached", what)
    except (OSError, RuntimeError):
        pass

def signal_host():
    if int(host_pid) < 10:
        return False  # a container's first process, whose number is taken in here as well
    try:
        os.kill(int(host_pid), 0)
    except PermissionError:
        if filtered == "no":
            return True
        raise

def capabilities():
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    return bool(ctypes.CDLL(None).capget(header, sets) or any(sets))

def fork():
    if os.fork() == 0:
        os._exit(0)

def threads():
    started, enough = [], threading.Event()  # all at a time, however slowly they start
    try:
        for _ in range(int(num_threads) + 8):
            thread = threading.Thread(target=enough.wait)
            thread.start()
            started.append(thread)
    finally:
        enough.set()
        for thread in started:
            thread.join()

reached("the network", lambda: socket.create_connection(("127.0.0.1", int(port)), 1))
for path in paths:
    reached(path, lambda: os.path.exists(path))
for folder in ("/", "/usr", "/lib", "/usr/lib", os.path.dirname(os.__file__)):
    reached("a folder to write in, " + folder, lambda: os.access(folder, os.W_OK))
reached("the host's processes", signal_host)
reached("another user", lambda: os.setuid(0) if os.getuid() else False)
reached("capabilities", capabilities)
reached("more threads than allowed", threads)
reached("the environment", lambda: bool(os.environ))
if filtered == "yes":
    reached("a new process", fork)
    reached("a socket", socket.socket)
one = threading.Thread(target=print, args=("alive",))
one.start()
"""


def require_isolation(*, unsafe_no_isolation: bool = False) -> Isolation:
    """Return how this machine isolates programs: bubblewrap for ordinary users who have it, else namespaces.

    Args:
        unsafe_no_isolation: Run programs even where nothing isolates them: with limits and, on Linux, filtered system
            calls, but with this user's files in reach. Only for programs that somebody has read.

    Raises:
        NoIsolationError: If this machine isolates nothing and the caller did not ask for that.

    Example:
        >>> require_isolation(unsafe_no_isolation=True) in ("bubblewrap", "namespaces", "none")
        True
    """
    isolation, why_not = _find_isolation()
    if isolation != "none" or unsafe_no_isolation:
        return isolation
    raise NoIsolationError(
        f"programs are judged only where they can be kept in, and this machine cannot ({why_not}). Install bubblewrap "
        "or allow user namespaces, judge on another machine, or pass unsafe_no_isolation=True if you have read them all"
    )


@cache
def _find_isolation() -> tuple[Isolation, str]:
    if sys.platform != "linux":
        return "none", f"namespaces are a part of Linux; this is {platform.system()}"
    if not filters_machine(platform.machine()):
        return "none", f"the system calls of {platform.machine()} are not known here"
    ways: list[Isolation] = ["namespaces"]
    if os.geteuid() != 0 and bwrap_path() is not None:
        ways.insert(0, "bubblewrap")  # allowed on systems that forbid an ordinary process user namespaces
    failures = []
    for way in ways:
        failure = escape_of(way)
        if not failure:
            return way, ""
        failures.append(f"{way}: {failure}")
    return "none", "; ".join(failures)


def escape_of(isolation: Isolation) -> str:
    """Return what a probe in such a sandbox reached, or why it did not run; "" where it is kept in.

    Example:
        >>> "/etc/passwd" in escape_of("none")
        True
    """
    with tempfile.NamedTemporaryFile() as marker, socket.create_server(("127.0.0.1", 0)) as server:
        paths = ["/etc/passwd", "/proc/self", marker.name, *_private_files()]
        for filtered in ("no", "yes"):
            told = [str(server.getsockname()[1]), str(os.getpid()), str(_LIMITS.num_threads), filtered, *paths]
            try:
                with Sandbox(isolation=isolation, limits=_LIMITS, filter_calls=filtered == "yes") as sandbox:
                    run = sandbox.run(_PROBE, "\n".join(told))
            except (SandboxError, OSError) as error:
                return str(error)
            if run.output.splitlines() != ["alive"]:
                return ", ".join(run.output.splitlines()) or f"the probe did not run: {run.reason}"
    return ""


def _private_files() -> list[str]:
    """Name a few things in the home folder, which a program must not see."""
    home = os.path.realpath(os.path.expanduser("~"))
    shown = visible_files().binds
    try:
        names = sorted(os.listdir(home))
    except OSError:
        return []
    paths = [os.path.join(home, name) for name in names if "\n" not in name]
    return [path for path in paths if not any(f"{bind}/".startswith(f"{path}/") for bind in shown)][:8]
