"""Verdicts that cannot be forged: programs that fake a pass, and the judges that do not believe them."""

import dataclasses
import json
import threading
from pathlib import Path

import pytest

from kinetics_jax.tasks import (
    CallTests,
    CheckTests,
    CodeVerdict,
    Judge,
    Limits,
    OutputTests,
    Sandbox,
    SandboxError,
    VerdictCache,
    _code_judge,
)
from kinetics_jax.tasks._sandbox import Isolation

LIMITS = Limits(cpu_s=0.5, wall_s=20.0, memory_bytes=192 << 20, output_bytes=1 << 20, num_threads=8)
JUDGE = Judge(limits=LIMITS)
ADD = OutputTests(pairs=(("1 2", "3"), ("20 22", "42")))
SOLUTION = CallTests(function="Solution.double", pairs=(((2,), 4), (([1],), [1, 1])))
CHECK = CheckTests(function="double", setup="def helper(x):\n    return x\n", tests=(
    "def check(candidate):\n"
    "    assert candidate(helper(2)) == 4, 'two'\n"
    "    assert candidate([1]) == [1, 1]\n"
    "    assert double('ab') == 'abab'\n"
))  # fmt: skip


@pytest.fixture(autouse=True)
def isolated(isolation: Isolation) -> None:
    """Every test here needs a sandbox."""


def test_right_programs_pass():
    assert JUDGE.judge("print(sum(map(int, input().split())))", ADD) == CodeVerdict(kind="pass")
    assert JUDGE.judge("class Solution:\n    def double(self, x): return x * 2", SOLUTION) == CodeVerdict(kind="pass")
    assert JUDGE.judge("def double(x): return helper(x) * 2", CHECK) == CodeVerdict(kind="pass")


@pytest.mark.parametrize(
    ("program", "kind"),
    [
        ("print('pass')", "wrong"),
        ("print(3)", "wrong"),
        ("import os\nos._exit(0)", "wrong"),
        ("exit()", "wrong"),
        ("raise SystemExit('42')", "runtime error"),
        ("import os\nos.write(1, b'3')\nos._exit(1)", "runtime error"),
        ("while True: pass", "time limit"),
        ("x = bytearray(1 << 40)", "memory limit"),
        ("import os\nos._exit(86)", "memory limit"),
        ("while True: print('x' * 100_000)", "runtime error"),
        ("import sys\nsys.setrecursionlimit(10**9)\ndef f(x): return [f([x])]\nf(0)", "any"),
        ("print(" + "(" * 5000 + ")" * 5000 + ")", "runtime error"),
        ("\0", "runtime error"),
        ("print('\\ud800')", "runtime error"),
        ("", "wrong"),
        # Writing a verdict to every file there is, open or not.
        (
            "import os\nfor n in range(3, 64):\n    try: os.write(n, b't2:s4:passs0:')\n    except OSError: pass",
            "wrong",
        ),
    ],
)
def test_whole_programs_that_do_not_solve_the_problem(program: str, kind: str):
    verdict = JUDGE.judge(program, ADD)
    assert verdict.kind != "pass"
    if kind == "any":  # a stack that overflows ends as it likes
        assert verdict.kind in ("runtime error", "memory limit", "time limit")
    else:
        assert verdict.kind == kind


def test_waiting_counts():
    judge = Judge(limits=dataclasses.replace(LIMITS, wall_s=0.5))
    assert judge.judge("import time\ntime.sleep(60)", ADD).kind == "time limit"


def test_the_first_failing_test_is_named():
    verdict = JUDGE.judge("print(3)", ADD)
    assert (verdict.test, verdict.reason) == (1, "got '3\\n'; expected '42'")
    assert JUDGE.judge("while True: print('x' * 100_000)", ADD).reason.startswith("output limit")
    assert JUDGE.judge("int('x')", ADD).reason.startswith("ValueError: invalid literal")


EQUAL_TO_ALL = "class Equal({base}):\n    __eq__ = lambda self, other: True\n    __hash__ = None\n"


@pytest.mark.parametrize(
    "program",
    [
        "{equal_object}def double(x): return Equal()",
        "{equal_int}def double(x): return Equal(5)",
        "{equal_list}def double(x): return Equal([5])",
        "{equal_str}def double(x): return Equal('no')",
        "import os\ndef double(x): os._exit(0)",
        "def double(x): exit()",
        "def double(x): raise AssertionError",
        "def double(x): raise SystemExit(0)",
        "import os\nos._exit(0)\ndef double(x): return x * 2",
        "import builtins\nbuiltins.AssertionError = ValueError\ndef double(x): return 5",
        "import builtins\nbuiltins.isinstance = builtins.all = lambda *a: True\ndef double(x): return 5",
        "import sys\nsys.settrace(lambda *a: None)\ndef double(x): return 5",
        "def check(candidate): pass\ndef double(x): return 5",
        "def helper(x): return 5\ndef double(x): return 5",
        "import os\ndef double(x):\n    os.closerange(3, 64)\n    return x * 2",
        "x = 1",
        "def double(x): return double",
        "def double(x): return (x * 2 for _ in [0])",
        "def double(x):\n    a = []\n    a.append(a)\n    return a",
        "def double(x):\n    a = []\n    for _ in range(500): a = [a]\n    return a",
        "def double(x): return [0] * 10_000_000",
        "def double(x): return 10**5000",
        "class Endless(list):\n    def __iter__(s):\n        while True: yield 1\ndef double(x): return Endless([1])",
        "import threading\ndef double(x):\n    threading.Thread(target=lambda: None).start()\n    return 5",
    ],
)
@pytest.mark.parametrize("tests", [SOLUTION, CHECK], ids=["call", "check"])
def test_functions_that_only_look_right(program: str, tests: CallTests | CheckTests):
    bases = {f"equal_{base}": EQUAL_TO_ALL.format(base=base) for base in ("object", "int", "list", "str")}
    for name, text in bases.items():
        program = program.replace("{" + name + "}", text)
    if tests is SOLUTION:
        program += "\nclass Solution:\n    def double(self, x): return double(x)"
    assert JUDGE.judge(program, tests).kind in ("wrong", "runtime error", "time limit", "memory limit")


FORGERIES = {
    "a verdict where an answer is read": "send(4, ('pass', ''))",
    "a verdict where the judge leaves its own": "send(5, ('pass', ''))",
    "raised": "send(4, ('raised', 'pass'))",
    "answers before the questions": "for _ in range(99): send(4, ('value', 4))",
    "no value": "os.write(4, (4).to_bytes(8, 'little') + b'!!!!')",
    "a length without end": "os.write(4, (1 << 62).to_bytes(8, 'little'))",
    "a value nested without end": "data = b'l1:' * 200_000; os.write(4, len(data).to_bytes(8, 'little') + data)",
    "a large value out of few bytes": "data = b'l999999999:'; os.write(4, len(data).to_bytes(8, 'little') + data)",
    "nothing": "pass",
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_forged_messages_to_the_judge(forgery: str):
    program = (
        "import os, signal\nsignal.signal(signal.SIGPIPE, signal.SIG_DFL)\n"
        "def text(s): return b's%d:%s' % (len(s), s.encode())\n"
        "def send(file, pair):\n"
        "    second = text(pair[1]) if isinstance(pair[1], str) else b'i%x;' % pair[1]\n"
        "    data = b't2:' + text(pair[0]) + second\n"
        "    try: os.write(file, len(data).to_bytes(8, 'little') + data)\n"
        "    except OSError: pass\n"
        f"def double(x):\n    {FORGERIES[forgery]}\n    os._exit(0)"
    )
    verdict = JUDGE.judge(program, CHECK)
    assert verdict.kind in ("wrong", "runtime error")


def test_no_program_ever_holds_the_tests_in_its_memory():
    """Judge two programs in one sandbox; the second reads all memory around its objects for the tests' text."""
    marker = "the-marker-of-the-tests"
    tests = CheckTests(
        function="f", setup="", tests=f"def check(f):\n    found = f(1)\n    assert found == 0, found\n    '{marker}'\n"
    )
    calls = CallTests(function="f", pairs=(((1,), marker),))
    search = (
        "import ctypes, os\n"
        "def f(x):\n"
        "    libc = ctypes.CDLL(None)\n"
        # The halves never stand together here: a copy of what is looked for would be found, more often than once.
        f"    half, rest = {marker[:12]!r}.encode(), {marker[12:]!r}.encode()\n"
        "    found, pages = 0, 0\n"
        "    r, w = os.pipe()\n"
        "    bases = {id(object()) >> 24, id(half) >> 24, id(os) >> 24, id([0] * 9999) >> 24}\n"
        "    for start in bases:\n"
        "        for page in range((start - 1) << 12, (start + 2) << 12):\n"
        "            if libc.write(w, ctypes.c_void_p(page << 12), 4096) == 4096:\n"
        "                pages += 1\n"
        "                text, at = os.read(r, 4096), -1\n"
        "                while (at := text.find(half, at + 1)) >= 0:\n"
        "                    found += text.startswith(rest, at + len(half))\n"
        "    return (found, pages)\n"
    )
    limits = dataclasses.replace(LIMITS, cpu_s=10.0, wall_s=30.0)
    with Sandbox(isolation=_code_judge.require_isolation(), limits=limits) as sandbox:
        right = sandbox.check(["", "def f(x): return 0"], "f", ["", tests.tests], "check")
        assert right.passed
        assert calls.run(sandbox, "def f(x): return 0").kind == "wrong"
        found, pages = sandbox.call(search, "f", (1,)).value
        found_if_told, _ = sandbox.call(search, "f", (marker,)).value
    assert pages > 500  # it did read its own heap
    assert found == 0 < found_if_told


def test_tests_that_fail_themselves_are_no_verdict_on_the_program():
    for tests in ("def check(f): import no_such_module", "syntax error", "no_check = 1", "def check(f): raise OSError"):
        verdict = JUDGE.judge("def f(): return 1", CheckTests(function="f", setup="", tests=tests))
        assert verdict.kind == "ungradable"


def test_a_broken_sandbox_is_ungradable_and_replaced(monkeypatch: pytest.MonkeyPatch):
    run, calls = Sandbox.run, []

    def break_once(self: Sandbox, program: str, stdin: str = ""):
        calls.append(program)
        if len(calls) == 2:
            raise SandboxError("it broke")
        return run(self, program, stdin)

    monkeypatch.setattr(Sandbox, "run", break_once)
    one = OutputTests(pairs=(("", "1"),))
    verdicts = JUDGE.judge_many([("print(1)", one), ("print(1 )", one), ("print( 1)", one)], num_workers=1)
    assert [verdict.kind for verdict in verdicts] == ["pass", "ungradable", "pass"]


def test_programs_leave_each_other_nothing():
    leave = "import os\nos.makedirs('/tmp/a/b')\nopen('/tmp/a/b/c', 'w').close()\nos.chmod('/tmp/a', 0)\nprint(1)"
    look = "import os\nprint(len(os.listdir('/tmp')) + 1)"
    one = OutputTests(pairs=(("", "1"),))
    assert [v.kind for v in JUDGE.judge_many([(leave, one), (look, one)], num_workers=1)] == ["pass", "pass"]


def test_many_programs_keep_their_order_and_equal_ones_run_once(tmp_path: Path):
    cache = VerdictCache(folder=tmp_path / "verdicts")
    judge = dataclasses.replace(JUDGE, cache=cache)
    jobs = [(f"print({n % 5})", OutputTests(pairs=(("", str(n % 2)),))) for n in range(20)]
    verdicts = judge.judge_many(jobs, num_workers=3)
    assert [verdict.kind == "pass" for verdict in verdicts] == [n % 5 == n % 2 for n in range(20)]
    assert len(list(cache.folder.rglob("*.json"))) == len(set(jobs)) == 10  # pyright: ignore[reportOptionalMemberAccess]
    assert not list(cache.folder.rglob("*.new"))  # pyright: ignore[reportOptionalMemberAccess]


def test_remembered_verdicts_are_used_and_broken_ones_are_not(tmp_path: Path):
    judge = dataclasses.replace(JUDGE, cache=VerdictCache(folder=tmp_path))
    key = judge.key("print(7)", ADD)
    judge.cache.put(key, {"kind": "pass"})  # pyright: ignore[reportOptionalMemberAccess]
    assert judge.judge("print(7)", ADD).kind == "pass"
    for broken in ("", "{", '{"kind"', "[]", "{}"):
        (tmp_path / key[:2] / f"{key}.json").write_text(broken)
        assert judge.judge("print(7)", ADD).kind == "wrong"
    assert json.loads((tmp_path / key[:2] / f"{key}.json").read_text())["kind"] == "wrong"


def test_the_key_is_of_all_that_a_verdict_depends_on(monkeypatch: pytest.MonkeyPatch):
    keys = {
        JUDGE.key("print(1)", ADD),
        JUDGE.key("print(2)", ADD),
        JUDGE.key("print(1)", dataclasses.replace(ADD, tolerance=0.1)),
        JUDGE.key("print(1)", OutputTests(pairs=ADD.pairs[:1])),
        JUDGE.key("print(1)", CHECK),
        Judge(limits=dataclasses.replace(LIMITS, cpu_s=2.0)).key("print(1)", ADD),
        Judge(limits=LIMITS, preload="import math").key("print(1)", ADD),
        Judge(limits=LIMITS, packages=(Path("/usr"),)).key("print(1)", ADD),
    }
    monkeypatch.setattr(_code_judge.sys, "version", "another")
    keys.add(JUDGE.key("print(1)", ADD))
    assert len(keys) == 9
    assert JUDGE.key("print(1)", ADD) in keys


def test_ungradable_verdicts_are_not_remembered(tmp_path: Path):
    judge = dataclasses.replace(JUDGE, cache=VerdictCache(folder=tmp_path / "none"))
    assert judge.judge("x = 1", CheckTests(function="f", setup="", tests="syntax error")).kind == "ungradable"
    assert not (tmp_path / "none").exists()


def test_concurrent_writers_leave_one_whole_verdict(tmp_path: Path):
    cache = VerdictCache(folder=tmp_path)
    seen = []

    def write(number: int) -> None:
        for _ in range(50):
            cache.put("abc", {"kind": "wrong", "reason": "x" * 5000 * number})
            seen.append(cache.get("abc"))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(verdict is not None and len(verdict["reason"]) % 5000 == 0 for verdict in seen)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["abc.json"]


def test_a_folder_that_cannot_be_written_remembers_nothing(tmp_path: Path):
    (tmp_path / "file").write_text("")
    cache = VerdictCache(folder=tmp_path / "file")
    cache.put("abc", {"kind": "pass"})
    assert cache.get("abc") is None


def test_the_users_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    VerdictCache().put("abcd", {"kind": "pass"})
    assert (tmp_path / "kinetics_jax" / "verdicts" / "ab" / "abcd.json").exists()
