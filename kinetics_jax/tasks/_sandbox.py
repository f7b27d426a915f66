"""Run a program that nobody has read: `Sandbox` starts one, and every run in it answers with what happened.

A sandbox is a few Linux namespaces around a small Python process (`_sandbox_guest.py`): no network, a root file
system of read-only libraries and one small temporary folder, no environment, another user, a short list of system
calls, limits on everything, and one kill that ends it all. Start-up is paid once for all tests of a program.
Called by the judges in `_code_judge.py`. What holds against which attack is in docs/sandbox.md.
"""

import contextlib
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, final

from ._sandbox_files import Files, bwrap_command, guest_files, visible_files
from ._sandbox_seccomp import filters_machine
from ._sandbox_values import EXIT_MEMORY, decode_value, read_value, write_value

Outcome = Literal["ok", "runtime error", "time limit", "memory limit", "output limit"]
Isolation = Literal["bubblewrap", "namespaces", "none"]

_END_S = 2.0
"""Wall time a sandbox may take to end by itself [s]."""
_START_S = 20.0
"""Wall time a sandbox may take to start or to answer beyond the limits of the run, on a machine however busy [s]."""
_BOOT = """
import sys
for name, path in (("kinetics_jax", []), ("kinetics_jax.tasks", [sys.argv[1]])):
    sys.modules[name] = package = type(sys)(name)
    package.__path__ = path
from kinetics_jax.tasks._sandbox_guest import main
main()
"""  # the two packages are stand-ins: importing the real ones would load JAX


class SandboxError(RuntimeError):
    """The sandbox itself failed; says nothing about the program."""


class NoIsolationError(RuntimeError):
    """This machine cannot keep a program in; nothing was run."""


@final
@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bound one run of a program.

    Attributes:
        cpu_s: Processor time of all its threads [s]; past it the run is a time limit.
        wall_s: Time on the clock [s]; also for programs that sleep or wait.
        memory_bytes: Address space, stacks and libraries included.
        output_bytes: Standard output, standard error and any file it writes, each.
        temp_bytes: Its temporary folder, kept between the runs of one sandbox.
        num_threads: Threads at a time; it can start no process.

    Raises:
        ValueError: If a limit is not above zero.
    """

    cpu_s: float = 6.0
    wall_s: float = 18.0
    memory_bytes: int = 2 << 30
    output_bytes: int = 16 << 20
    temp_bytes: int = 64 << 20
    num_threads: int = 32

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not value > 0:
                raise ValueError(f"{name} must be above zero; got {value}")


@final
@dataclass(frozen=True, kw_only=True)
class ProgramRun:
    """Say what one run of a program did.

    Attributes:
        outcome: How it ended; "ok" is an end by itself without an error.
        reason: What ended it, in a few words; "" where it is "ok".
        output: What it printed.
        value: What its function returned, as plain data; None for a whole program.
        cpu_s: Processor time [s].
        wall_s: Time on the clock [s].
    """

    outcome: Outcome
    reason: str = ""
    output: str = ""
    value: Any = None
    cpu_s: float = 0.0
    wall_s: float = 0.0


@final
@dataclass(frozen=True, kw_only=True)
class CheckRun:
    """Say what came of tests that are code.

    Attributes:
        passed: Whether they ran to their end.
        wrong: Whether an answer of the program failed them.
        run: What the program did.
    """

    passed: bool
    wrong: bool
    run: ProgramRun


@final
@dataclass(kw_only=True)
class Sandbox:
    r"""Keep one sandbox open; use it in a `with` block, from one thread.

    Attributes:
        isolation: How it is kept in, from `require_isolation`.
        limits: Bounds of every run.
        packages: Folders of importable packages the program may read, `site-packages` for example.
        preload: Imports of ours that every run finds done.
        filter_calls: Whether system calls are filtered too; False tests what the namespaces hold alone.

    Example:
        >>> from kinetics_jax.tasks import require_isolation
        >>> isolation = require_isolation(unsafe_no_isolation=True)  # we have read the program; else leave that out
        >>> with Sandbox(isolation=isolation) as sandbox:
        ...     sandbox.run("print(int(input()) + 1)", "41").output
        '42\n'
    """

    isolation: Isolation
    limits: Limits = field(default_factory=Limits)
    packages: Sequence[Path] = ()
    preload: str = ""
    filter_calls: bool = True
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False, repr=False)
    _folder: "tempfile.TemporaryDirectory[str] | None" = field(default=None, init=False, repr=False)

    def __enter__(self) -> "Sandbox":
        files = visible_files(self.packages)
        if self.isolation == "none":
            self._folder = tempfile.TemporaryDirectory(prefix="kinetics-unsafe-")
        guest = [guest_files()[0], *_flags(), "-c", _BOOT, str(Path(__file__).parent)]
        if self.isolation == "bubblewrap":
            guest = bwrap_command(files, temp_bytes=self.limits.temp_bytes, guest=guest)
        self._process = subprocess.Popen(
            guest,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={"PYTHONHASHSEED": "0"},  # the order of a set decides no verdict
            cwd="/" if self._folder is None else self._folder.name,
            start_new_session=True,
        )
        try:
            answer = self._ask(_config(self, files), wall_s=0.0)
        except SandboxError:
            self.close()
            raise
        if "error" in answer:
            self.close()
            raise SandboxError(f"the sandbox did not start: {answer['error']}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill everything in it."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdin is not None and self.isolation != "none":
            process.stdin.close()  # an idle one ends by that, and leaves no dead process for the host to bury
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_END_S)
        if process.returncode is None:
            _kill(process)
            process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        if self._folder is not None:
            self._folder.cleanup()

    def reset(self) -> None:
        """Empty the temporary folder, all that a program can leave to the next one.

        Raises:
            SandboxError: If something stays behind; the sandbox is of no more use.
        """
        if not self._ask({"kind": "reset"}, wall_s=0.0)["ready"]:
            raise SandboxError("the temporary folder could not be emptied")

    def run(self, program: str, stdin: str = "") -> ProgramRun:
        """Run a whole program on an input.

        Raises:
            SandboxError: If the sandbox fails.
        """
        return self._single(program, stdin=stdin, function="", args=())

    def call(self, program: str, function: str, args: Sequence[Any]) -> ProgramRun:
        """Run a program and call its "function", or "Class.method" of a new instance, with plain arguments.

        Raises:
            SandboxError: If the sandbox fails.
        """
        return self._single(program, stdin="", function=function, args=tuple(args))

    def check(self, programs: Sequence[str], function: str, tests: Sequence[str], check: str) -> CheckRun:
        """Run tests that are code against a function, each side in a process of its own.

        Args:
            programs: Sources run one after the other; the last one is the program judged.
            function: What to call in them.
            tests: Sources with the tests, which the program never sees.
            check: The function in `tests` that gets a stand-in for `function` as its argument.

        Raises:
            SandboxError: If the sandbox or the tests fail.
        """
        first = {"kind": "check", "programs": list(programs), "function": function}
        answer = self._ask(
            first, {"sources": list(tests), "function": function, "check": check}, wall_s=self.limits.wall_s
        )
        run = self._outcome(answer)
        if not answer["value"]:
            if run.outcome in ("time limit", "output limit"):
                return CheckRun(passed=False, wrong=False, run=run)
            raise SandboxError(f"the tests failed: {_last_line(answer['judge_stderr'])}")
        verdict, reason = decode_value(answer["value"])
        if verdict == "pass":
            return CheckRun(passed=True, wrong=False, run=ProgramRun(outcome="ok", cpu_s=run.cpu_s, wall_s=run.wall_s))
        if verdict == "wrong":
            wrong = ProgramRun(outcome="ok", reason=reason, cpu_s=run.cpu_s, wall_s=run.wall_s)
            return CheckRun(passed=False, wrong=True, run=wrong)
        if verdict == "gone" and run.outcome != "ok" and answer["exit"] != -signal.SIGKILL:
            return CheckRun(passed=False, wrong=False, run=run)  # its own end says more
        return CheckRun(passed=False, wrong=False, run=ProgramRun(outcome="runtime error", reason=reason))

    def _single(self, program: str, *, stdin: str, function: str, args: tuple[Any, ...]) -> ProgramRun:
        request = {
            "kind": "run",
            "program": program,
            "stdin": stdin.encode("utf-8", "surrogatepass"),
            "function": function,
            "args": args,
        }
        answer = self._ask(request, wall_s=self.limits.wall_s)
        run = self._outcome(answer)
        if not function or run.outcome != "ok":
            return run
        try:
            value = decode_value(answer["value"])
        except ValueError as error:  # it ended early, or wrote over its own answer
            return ProgramRun(outcome="runtime error", reason=f"no return value: {error}", output=run.output)
        return ProgramRun(outcome="ok", output=run.output, value=value, cpu_s=run.cpu_s, wall_s=run.wall_s)

    def _outcome(self, answer: dict[str, Any]) -> ProgramRun:
        code, end = answer["exit"], answer["end"]
        outcome: Outcome = "ok" if code == 0 else "runtime error"
        reason = "" if code == 0 else _last_line(answer["stderr"]) or f"exit code {code}"
        if end in ("cpu limit", "wall limit") or code == -signal.SIGXCPU or answer["cpu_s"] > self.limits.cpu_s:
            outcome, reason = "time limit", f"{answer['cpu_s']:.1f} s computing, {answer['wall_s']:.1f} s in all"
        elif end == "output limit" or code == -signal.SIGXFSZ:
            outcome, reason = "output limit", f"more than {self.limits.output_bytes} bytes written"
        elif code == EXIT_MEMORY or (code < 0 and answer["peak_bytes"] > 0.8 * self.limits.memory_bytes):
            outcome, reason = "memory limit", f"more than {self.limits.memory_bytes} bytes asked for"
        output = answer["stdout"].decode("utf-8", "replace")
        return ProgramRun(outcome=outcome, reason=reason, output=output, cpu_s=answer["cpu_s"], wall_s=answer["wall_s"])

    def _ask(self, *requests: dict[str, Any], wall_s: float) -> dict[str, Any]:
        """Send requests and return the one answer; a sandbox that does not answer in time is killed."""
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise SandboxError("the sandbox is closed; use it in a with block")
        timer = threading.Timer(wall_s + _START_S, _kill, (process,))
        timer.start()
        answer = None
        try:
            for request in requests:
                write_value(process.stdin.fileno(), request)
            answer = read_value(process.stdout.fileno(), max_bytes=(1 << 20) + 2 * self.limits.output_bytes)
            return answer
        except (EOFError, BrokenPipeError, ValueError) as error:
            _kill(process)
            said = b"" if process.stderr is None else process.stderr.read()
            raise SandboxError(f"the sandbox gave no answer: {_last_line(said) or error}") from None
        finally:
            timer.cancel()
            if answer is None:  # Ctrl-C too: the program is still at work
                _kill(process)


def _flags() -> tuple[str, ...]:
    return ("-s", "-S", "-P", "-X", "utf8")


def _config(sandbox: Sandbox, files: Files) -> dict[str, Any]:
    return asdict(sandbox.limits) | {
        "isolation": sandbox.isolation,
        "seccomp": sandbox.filter_calls and sys.platform == "linux" and filters_machine(platform.machine()),
        "preload": sandbox.preload,
        "packages": [str(Path(path).resolve()) for path in sandbox.packages],
        "binds": list(files.binds),
        "links": list(files.links),
        "masks": list(files.masks),
        "mounted": [*files.binds, *guest_files()],
    }


def _kill(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _last_line(text: bytes) -> str:
    lines = text.decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:300] if lines else ""
