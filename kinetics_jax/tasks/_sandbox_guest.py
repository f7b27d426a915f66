"""The inside of the sandbox: its first process takes requests, and starts one process a program to answer each.

No byte of a judged program runs in the process that serves. A program gets the input of one test and never sees an
expected output; `_sandbox.py` on the other side compares. Where the tests themselves are code (HumanEval), they run
in a second process, and the program's answers cross a pipe as plain values: what a program does to its own
interpreter changes nothing outside of it.

    host --requests--> pid 1 --fork--> program               one test: a whole run, or one call of a function
                        |    --fork--> program <-calls-- judge   `check`: only the judge reads the tests, so no
                        |                                    program's memory, a copy of pid 1's, ever held them
Started with an empty environment and `-s -S -P`; imports built-in modules only, because every program pays for them.
"""

import fcntl
import gc
import os
import resource
import select
import sys
import time

from ._sandbox_isolate import Kernel, isolate
from ._sandbox_programs import answer_calls, judge_calls, run_program
from ._sandbox_seccomp import close_system_calls
from ._sandbox_values import read_value, write_bytes, write_value

TYPE_CHECKING = False  # as in `_sandbox_values.py`
if TYPE_CHECKING:
    from typing import Any
else:
    Any = object

_TAIL_BYTES = 2000
_SIGKILL, _SIGINT, _SIGXFSZ = 9, 2, 25
_STACK_BYTES = 112 << 20  # what the kernel leaves free below the stack of a process started with the usual limit
_MAX_REQUEST_BYTES = 1 << 34  # from the host, which may ask what it likes


def main() -> None:
    """Isolate this process, answer requests until their pipe closes; in a forked child, run its program."""
    config = read_value(0, max_bytes=_MAX_REQUEST_BYTES)
    try:
        kernel = isolate(config)
    except OSError as error:
        write_value(1, {"error": str(error)})
        os._exit(1)
    os.environ.clear()
    sys.path += config["packages"]
    job = _Server(config, kernel).serve()
    if job is None:
        os._exit(0)
    job()  # in the child; the interpreter then ends as usual: threads joined, exit handlers called


class _Server:
    """Pid 1: hold the pipes to the host (files 0 and 1), start programs, wait for them, report."""

    def __init__(self, config: dict[str, Any], kernel: Kernel) -> None:
        self.config, self.kernel = config, kernel
        kernel.libc.signal(_SIGINT, None)  # pid 1 without handlers cannot be signalled from inside
        self.names: dict[str, Any] = {}
        if config["preload"]:
            exec(config["preload"], self.names)  # ours: imports that every program then finds done
        gc.freeze()  # what is here now is no garbage: programs end sooner, and copy fewer pages of this process
        write_value(1, {"ready": True})

    def serve(self) -> Any:
        """Answer requests; return None at their end, or in a child what it has to do."""
        while True:
            try:
                request = read_value(0, max_bytes=_MAX_REQUEST_BYTES)
            except EOFError:
                return None
            if request["kind"] == "reset":
                write_value(1, {"ready": self._empty_temp()})
                continue
            job = self._check(request) if request["kind"] == "check" else self._single(request)
            if job is not None:
                return job

    def _empty_temp(self) -> bool:
        """Delete what programs left in the temporary folder, the one thing that outlives a run."""
        if self.config["isolation"] == "none":
            return True  # theirs was the host's
        _empty("/tmp", self.config["mounted"])
        return not _leftovers("/tmp", self.config["mounted"])

    def _single(self, request: dict[str, Any]) -> Any:
        files = [_file(request["stdin"]), _file(), _file(), _file()]
        child = os.fork()
        if not child:
            self._confine(files)
            return lambda: run_program(request, self.names)
        end, usage = self._wait([child])
        write_value(1, self._report(end, usage[child], output=files[1], errors=files[2], value=files[3]))
        _close(files)
        return None

    def _check(self, request: dict[str, Any]) -> Any:
        __import__("random")  # for the judge, once for all of them
        calls, answers = os.pipe(), os.pipe()
        files = [_file(b""), _file(), _file(), calls[0], answers[1]]
        program = os.fork()
        if not program:
            self._confine(files)
            return lambda: answer_calls(request)
        judge_files = [_file(b""), _file(), _file(), answers[0], calls[1], _file()]
        has_read, tell = os.pipe()
        judge = os.fork()
        if not judge:
            # Read by the judge itself: later programs are copies of this process, and none may hold the tests.
            text = read_value(0, max_bytes=_MAX_REQUEST_BYTES)
            os.write(tell, b"1")
            self._confine(judge_files)
            return lambda: judge_calls(text, self.config["output_bytes"])
        os.close(tell)
        if not os.read(has_read, 1):
            os._exit(1)  # the pipe from the host is of no more use
        os.close(has_read)
        _close([*calls, *answers])  # so that either sees the other's end
        end, usage = self._wait([judge, program])
        report = self._report(end, usage[program], output=files[1], errors=files[2], value=judge_files[5])
        write_value(1, report | {"judge_stderr": _tail(judge_files[2])})
        _close([*files[:3], *judge_files[:3], judge_files[5]])
        return None

    def _confine(self, files: list[int]) -> None:
        """In a child: keep these files as 0, 1, 2, ... and no others, set limits, close the system calls."""
        copies = [fcntl.fcntl(file, fcntl.F_DUPFD, 64) for file in files]  # out of the way of the places to fill
        for place, copy in enumerate(copies):
            os.dup2(copy, place, inheritable=False)
        os.closerange(len(files), 1024)
        config = self.config
        if sys.platform == "linux":
            self.kernel.libc.signal(_SIGXFSZ, None)  # a file past its limit ends the program at once
        limits = [
            (resource.RLIMIT_CPU, int(config["cpu_s"]) + 2),  # a backstop: `_wait` ends it to the hundredth
            (resource.RLIMIT_AS, config["memory_bytes"]),
            (resource.RLIMIT_FSIZE, config["output_bytes"]),
            (resource.RLIMIT_NOFILE, 64),
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_STACK, _STACK_BYTES),
        ]
        if config["isolation"] != "none":  # counts all processes of a user, who is ours alone
            limits.append((resource.RLIMIT_NPROC, config["num_threads"] + 2))
        for kind, value in limits:
            _, hard = resource.getrlimit(kind)
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(kind, (value, value))
        if config["seccomp"]:
            close_system_calls(self.kernel.libc)

    def _wait(self, children: list[int]) -> tuple[str, dict[int, Any]]:
        """Wait for the first child, kill all; return what ended it ("" by itself) and what each came to."""
        started = time.monotonic()
        end = ""
        watch = _watch(children[0])
        while not end:
            wall_left = self.config["wall_s"] - (time.monotonic() - started)
            cpu_left = min(self.config["cpu_s"] - _cpu_s(child) for child in children)
            if wall_left <= 0 or cpu_left <= 0:
                end = "wall limit" if wall_left <= 0 else "cpu limit"
            elif _ended(watch, min(wall_left, max(cpu_left / self.config["num_threads"], 0.01))):
                break
        if watch > 0:
            os.close(watch)
        usage = {}
        for child in children:
            if end or child != children[0]:
                os.kill(child, _SIGKILL)
            usage[child] = (*os.wait4(child, 0)[1:], time.monotonic() - started)
        if os.getpid() == 1 and self.config["isolation"] != "none":
            _sweep()
        return end, usage

    def _report(self, end: str, usage: Any, *, output: int, errors: int, value: int) -> dict[str, Any]:
        status, spent, wall_s = usage
        limit = self.config["output_bytes"]
        full = any(os.fstat(file).st_size >= limit for file in (output, errors))
        return {
            "end": end or ("output limit" if full else ""),
            "exit": os.waitstatus_to_exitcode(status),
            "cpu_s": spent.ru_utime + spent.ru_stime,
            "wall_s": wall_s,
            "peak_bytes": spent.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
            "stdout": os.pread(output, limit, 0),
            "stderr": _tail(errors),
            "value": os.pread(value, limit, 0),
        }


def _leftovers(folder: str, mounted: Any) -> list[str]:
    """Return what is in a folder, without mount points and the folders that lead to them."""
    paths = [os.path.join(folder, name) for name in os.listdir(folder)]
    return [path for path in paths if not any(f"{mount}/".startswith(f"{path}/") for mount in mounted)]


def _empty(folder: str, mounted: Any) -> None:
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        if path in mounted:
            continue
        if os.path.isdir(path) and not os.path.islink(path):
            _empty(path, mounted)
    for path in _leftovers(folder, mounted):
        if os.path.isdir(path) and not os.path.islink(path):
            os.rmdir(path)
        else:
            os.unlink(path)


def _sweep() -> None:
    """As pid 1, kill whatever else runs in this pid namespace: nothing, as long as the filter lets nobody fork."""
    try:
        os.kill(-1, _SIGKILL)
        while True:
            os.waitpid(-1, 0)
    except (ProcessLookupError, ChildProcessError):
        return


def _file(content: bytes | None = None) -> int:
    """Return a nameless file; with content, one that nobody can change any more."""
    sealable = hasattr(os, "memfd_create")
    if sealable:
        file = os.memfd_create("file", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    else:
        import tempfile

        with tempfile.TemporaryFile() as temporary:
            file = os.dup(temporary.fileno())
    if content is None:
        return file
    write_bytes(file, content)
    os.lseek(file, 0, os.SEEK_SET)
    if sealable:
        seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, seals)
    return file


def _close(files: list[int]) -> None:
    for file in files:
        os.close(file)


def _tail(file: int) -> bytes:
    return os.pread(file, _TAIL_BYTES, max(os.fstat(file).st_size - _TAIL_BYTES, 0))


def _watch(child: int) -> int:
    """Return a handle on a process that can be waited for, or minus its id where there are none (macOS)."""
    return os.pidfd_open(child) if hasattr(os, "pidfd_open") else -child


def _ended(watch: int, timeout_s: float) -> bool:
    if watch > 0:
        return bool(select.select([watch], [], [], timeout_s)[0])
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        if os.waitid(os.P_PID, -watch, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return True
        time.sleep(0.002)
    return False


def _cpu_s(child: int) -> float:
    """Return the processor time of another process so far [s]; 0.0 where only `RLIMIT_CPU` keeps count."""
    try:
        return time.clock_gettime((~child << 3) | 2) if sys.platform == "linux" else 0.0  # the kernel's id of its clock
    except OSError:
        return 0.0  # it has just ended
