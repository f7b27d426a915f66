"""Does a program pass its tests? Run in a sandbox, compared out here, remembered on disk.

Called by the code tasks; `judge_programs` is for many programs at a time.
"""

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, final

from ._code_cache import VerdictCache
from ._code_compare import same_output, same_value
from ._sandbox import CheckRun, Isolation, Limits, ProgramRun, Sandbox, SandboxError
from ._sandbox_probe import require_isolation
from ._sandbox_values import encode_value

VerdictKind = Literal["pass", "wrong", "runtime error", "time limit", "memory limit", "ungradable"]

_JUDGE_VERSION = 1
"""Part of the key of every remembered verdict; raise it when verdicts may change."""


@final
@dataclass(frozen=True, kw_only=True)
class CodeVerdict:
    """Judge one program.

    Attributes:
        kind: "pass" only where every test passed; "ungradable" where the sandbox or the tests failed, not the program.
        reason: A few words; "output limit" is a runtime error with that reason.
        test: Index of the first test that did not pass; None where all did or tests have no order.
    """

    kind: VerdictKind
    reason: str = ""
    test: int | None = None


@final
@dataclass(frozen=True, kw_only=True)
class OutputTests:
    """Feed inputs to whole programs and compare what they print.

    Attributes:
        pairs: Standard input and expected output of each test.
        tolerance: Of `same_output`.
    """

    pairs: tuple[tuple[str, str], ...]
    tolerance: float = 0.0

    @cached_property
    def digest(self) -> str:
        """A hash of the tests, made once for all programs."""
        return _digest(self)

    def run(self, sandbox: Sandbox, program: str) -> CodeVerdict:
        """Judge a program in an open sandbox; stops at the first test it fails."""
        for index, (stdin, expected) in enumerate(self.pairs):
            run = sandbox.run(program, stdin)
            if run.outcome != "ok":
                return _failed(run, index)
            if not same_output(run.output, expected, tolerance=self.tolerance):
                return CodeVerdict(kind="wrong", reason=_shown(run.output, expected), test=index)
        return CodeVerdict(kind="pass")


@final
@dataclass(frozen=True, kw_only=True)
class CallTests:
    """Call one function with plain arguments and compare what it returns.

    Attributes:
        function: Its name, or "Class.method" of a new instance for each call.
        pairs: Arguments and expected value of each call, each call in a process of its own.
        tolerance: Of `same_value`.
    """

    function: str
    pairs: tuple[tuple[tuple[Any, ...], Any], ...]
    tolerance: float = 0.0

    @cached_property
    def digest(self) -> str:
        """A hash of the tests, made once for all programs."""
        return _digest(self)

    def run(self, sandbox: Sandbox, program: str) -> CodeVerdict:
        """Judge a program in an open sandbox; stops at the first test it fails."""
        for index, (args, expected) in enumerate(self.pairs):
            run = sandbox.call(program, self.function, args)
            if run.outcome != "ok":
                return _failed(run, index)
            if not same_value(run.value, expected, tolerance=self.tolerance):
                return CodeVerdict(kind="wrong", reason=_shown(run.value, expected), test=index)
        return CodeVerdict(kind="pass")


@final
@dataclass(frozen=True, kw_only=True)
class CheckTests:
    """Run tests that are code, in a process that the program cannot reach.

    Attributes:
        function: What the tests call.
        setup: Source that the program and the tests both find done: a prompt with helper functions, say.
        tests: Source with the function `check`.
        check: Its name; it takes the judged function and raises AssertionError.
    """

    function: str
    setup: str
    tests: str
    check: str = "check"

    @cached_property
    def digest(self) -> str:
        """A hash of the tests, made once for all programs."""
        return _digest(self)

    def run(self, sandbox: Sandbox, program: str) -> CodeVerdict:
        """Judge a program in an open sandbox."""
        checked: CheckRun = sandbox.check([self.setup, program], self.function, [self.setup, self.tests], self.check)
        if checked.passed:
            return CodeVerdict(kind="pass")
        if checked.wrong:
            return CodeVerdict(kind="wrong", reason=checked.run.reason)
        return _failed(checked.run, None)


Tests = OutputTests | CallTests | CheckTests


@final
@dataclass(frozen=True, kw_only=True)
class Judge:
    """Hold what programs are judged with.

    Attributes:
        limits: Bounds of each test.
        packages: Folders of packages that programs may import beside the standard library.
        preload: Imports that every program finds done.
        cache: Remembers verdicts; None judges anew.
        unsafe_no_isolation: Judge even where nothing keeps a program in; see `require_isolation`.
    """

    limits: Limits = field(default_factory=Limits)
    packages: tuple[Path, ...] = ()
    preload: str = ""
    cache: VerdictCache | None = None
    unsafe_no_isolation: bool = False

    def judge(self, program: str, tests: Tests) -> CodeVerdict:
        r"""Return the verdict on one program.

        Raises:
            NoIsolationError: If this machine cannot keep it in.

        Example:
            >>> tests = OutputTests(pairs=(("1 2", "3"), ("2 2", "4")))
            >>> judge = Judge(unsafe_no_isolation=True)  # we have read the programs; else leave that out
            >>> judge.judge("print(sum(map(int, input().split())))", tests).kind
            'pass'
            >>> judge.judge("print(3)", tests)
            CodeVerdict(kind='wrong', reason="got '3\\n'; expected '4'", test=1)
        """
        return self.judge_many([(program, tests)], num_workers=1)[0]

    def judge_many(self, jobs: Sequence[tuple[str, Tests]], *, num_workers: int | None = None) -> list[CodeVerdict]:
        """Return the verdicts on many programs, in order; equal programs with equal tests are judged once.

        Args:
            jobs: Programs with their tests.
            num_workers: Sandboxes at a time; None opens one a processor core.

        Raises:
            NoIsolationError: If this machine cannot keep them in.
        """
        isolation = require_isolation(unsafe_no_isolation=self.unsafe_no_isolation)
        keys = [self.key(program, tests) for program, tests in jobs]
        verdicts = {key: self.cache.get(key) for key in dict.fromkeys(keys)} if self.cache else {}
        todo = {key: job for key, job in zip(keys, jobs, strict=True) if verdicts.get(key) is None}
        num_workers = max(1, min(num_workers or os.cpu_count() or 1, len(todo)))
        shares = [list(todo.items())[start::num_workers] for start in range(num_workers)]
        with ThreadPoolExecutor(num_workers) as pool:  # threads: the work is done in the sandboxes
            for judged in pool.map(lambda share: self._judge_share(isolation, share), shares):
                verdicts |= judged
        return [_of(verdicts[key]) for key in keys]

    def key(self, program: str, tests: Tests) -> str:
        """Return a hash of all a verdict depends on: program, tests, limits, interpreter, version of the judge."""
        settled = {
            "judge": _JUDGE_VERSION,
            "python": sys.version,
            "program": program,
            "tests": tests.digest,
            "limits": asdict(self.limits),
            "preload": self.preload,
            "packages": [str(path) for path in self.packages],
        }
        return hashlib.sha256(json.dumps(settled, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()

    def _judge_share(self, isolation: Isolation, share: Sequence[tuple[str, Any]]) -> dict[str, CodeVerdict | None]:
        """Judge a worker's programs in one sandbox, emptied between them, replaced when it fails."""
        verdicts: dict[str, CodeVerdict | None] = {}
        with contextlib.ExitStack() as stack:
            sandbox: Sandbox | None = None
            for key, (program, tests) in share:
                try:
                    if sandbox is None:
                        sandbox = stack.enter_context(self._sandbox(isolation))
                    verdicts[key] = tests.run(sandbox, program)
                    sandbox.reset()
                except SandboxError as error:
                    verdicts.setdefault(key, CodeVerdict(kind="ungradable", reason=str(error)))
                    stack.close()
                    sandbox = None
                verdict = verdicts[key]
                if self.cache and verdict is not None and verdict.kind != "ungradable":
                    self.cache.put(key, asdict(verdict))
        return verdicts

    def _sandbox(self, isolation: Isolation) -> Sandbox:
        return Sandbox(isolation=isolation, limits=self.limits, packages=self.packages, preload=self.preload)


def _digest(tests: Tests) -> str:
    settled = [type(tests).__name__, *((item.name, getattr(tests, item.name)) for item in fields(tests))]
    return hashlib.sha256(encode_value(settled)).hexdigest()


def _of(found: Any) -> CodeVerdict:
    return found if isinstance(found, CodeVerdict) else CodeVerdict(**found)


def _failed(run: ProgramRun, test: int | None) -> CodeVerdict:
    if run.outcome == "output limit":
        return CodeVerdict(kind="runtime error", reason=f"output limit: {run.reason}", test=test)
    if run.outcome == "ok":
        raise SandboxError("a run without an error is no failure")
    return CodeVerdict(kind=run.outcome, reason=run.reason, test=test)


def _shown(got: Any, wanted: Any) -> str:
    try:
        return f"got {got!r:.80}; expected {wanted!r:.80}"
    except ValueError:  # Python writes no whole numbers of more than some thousand digits
        return f"got a {type(got).__name__} too large to show"
