"""The machine around the sandbox: what outlives it (nothing), and which machines are refused."""

import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

import kinetics_jax.tasks
from kinetics_jax.tasks import (
    Judge,
    Limits,
    NoIsolationError,
    OutputTests,
    ProgramRun,
    Sandbox,
    SandboxError,
    _sandbox,
    _sandbox_probe,
    require_isolation,
)
from kinetics_jax.tasks._sandbox import Isolation
from kinetics_jax.tasks._sandbox_files import Files
from kinetics_jax.tasks._sandbox_seccomp import filters_machine

FIRST_OWN_ID = 0x70000000


def told(run: ProgramRun) -> tuple[str, str]:
    return run.outcome, run.output


def own_processes() -> set[str]:
    """Return the processes of all sandboxes on this machine that took an id of their own."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/status"):
        try:
            owner = int(path.read_text().split("Uid:")[1].split()[0])
        except (OSError, IndexError):
            continue
        if FIRST_OWN_ID <= owner < FIRST_OWN_ID + (1 << 23):
            found.add(path.parent.name)
    return found


def gone(pids: set[str]) -> bool:
    """Say whether processes have ended, after a moment for the kernel to take them down."""
    for pid in pids:
        try:
            handle = os.pidfd_open(int(pid))
        except ProcessLookupError:
            continue
        ended, _, _ = select.select([handle], [], [], 60.0)
        os.close(handle)
        if not ended:
            return False
    return True


def children_of(pid: int) -> set[str]:
    try:
        return set(Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    except FileNotFoundError:
        return set()


def test_a_daemon_outlives_neither_its_run_nor_the_sandbox(isolation: Isolation):
    stay = (
        "import os, time\nstarted, tell = os.pipe()\n"
        "if os.fork(): os.read(started, 1)\n"
        "else:\n    os.setsid()\n    if not os.fork():\n"
        "        open('/tmp/daemon', 'w').close()\n        os.write(tell, b'1')\n        time.sleep(600)\n"
    )
    with Sandbox(isolation=isolation, filter_calls=False) as sandbox:
        assert sandbox.run(stay).outcome == "ok"
        count = (
            "import os\nn = 0\nfor pid in range(2, 500):\n"
            "    try: os.kill(pid, 0); n += pid != os.getpid()\n    except OSError: pass\nprint(n, os.listdir('/tmp'))"
        )
        assert sandbox.run(count).output == "0 ['daemon']\n"  # it did run


def test_the_end_of_the_sandbox_ends_everything_in_it(isolation: Isolation):
    before = own_processes()
    with Sandbox(isolation=isolation) as sandbox:
        process = sandbox._process
        assert process is not None
        inside = children_of(process.pid)
        assert len(inside) == 1
        if os.geteuid() == 0 and sandbox.isolation == "namespaces":
            assert inside <= own_processes() - before
    assert gone(inside)


HOST = """
import sys, time
sys.modules["kinetics_jax"] = sys.modules["kinetics_jax.tasks"] = package = type(sys)("package")
package.__path__ = [sys.argv[1]]
from kinetics_jax.tasks._sandbox import Sandbox
from kinetics_jax.tasks._sandbox_probe import require_isolation
"""


@pytest.mark.parametrize("busy", [False, True])
def test_a_host_that_dies_takes_its_sandbox_along(isolation: Isolation, busy: bool):
    start = (
        f"box = Sandbox(isolation={isolation!r}).__enter__()\nprint(box._process.pid, flush=True)\n"
        f"box.run('import time; time.sleep(99)') if {busy} else time.sleep(60)"
    )
    command = [sys.executable, "-c", HOST + start, str(Path(kinetics_jax.tasks.__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as host:
        assert host.stdout is not None
        launcher = int(host.stdout.readline())
        inside = children_of(launcher)
        while busy and not any(children_of(int(pid)) for pid in inside):
            assert host.poll() is None, "the program ended before anybody saw it"
            os.sched_yield()  # until the program runs
        host.kill()
    assert gone({str(launcher)} | inside)


@pytest.mark.parametrize(
    ("errno", "why"),
    [(1, "Operation not permitted"), (38, "Function not implemented"), (0, "this process is where it was")],
)
def test_a_machine_that_forbids_namespaces_is_refused(errno: int, why: str):
    """What a container without privileges does to us: unshare fails, or says that it did what it did not.

    Whatever mounts or kills is forbidden here as well, so that the host stays whole where we believe it.
    """
    forbid = (
        f"errno = {errno}"
        + """
import ctypes, os
from kinetics_jax.tasks import _sandbox_seccomp as filters
column = 0 if os.uname().machine == "x86_64" else 1
unshare, *harmful = [pair[column] for pair in ((272, 97), (165, 40), (166, 39), (155, 41), (442, 442), (161, 51))]
code = [(0x20, 0, 0, 0), (0x15, 0, 1, unshare), (6, 0, 0, 0x50000 | errno)]
code += [line for number in harmful for line in ((0x15, 0, 1, number), (6, 0, 0, 0x50001))]
code += [(6, 0, 0, 0x7FFF0000)]
filters.filter_code = lambda machine, pid: code
filters.close_system_calls(ctypes.CDLL(None, use_errno=True))
try:
    require_isolation()
except RuntimeError as error:
    print(type(error).__name__, error)
print(require_isolation(unsafe_no_isolation=True))
"""
    )
    command = [sys.executable, "-c", HOST + forbid, str(Path(kinetics_jax.tasks.__file__).parent)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env={"PATH": ""})  # no bubblewrap
    refusal, isolation = done.stdout.splitlines()
    assert refusal.startswith("NoIsolationError programs are judged only where they can be kept in")
    assert why in refusal
    assert refusal.endswith("or pass unsafe_no_isolation=True if you have read them all")
    assert isolation == "none"


def test_a_machine_that_isolates_badly_is_refused(monkeypatch: pytest.MonkeyPatch):
    found = _sandbox_probe.escape_of("none")  # the probe only asks whether it may, and does nothing
    for escape in ("the network", "/etc/passwd", "the host's processes", "more threads than allowed"):
        assert f"reached {escape}" in found
    monkeypatch.setattr(_sandbox_probe, "escape_of", lambda isolation: "reached the network, alive")
    _sandbox_probe._find_isolation.cache_clear()
    try:
        with pytest.raises(NoIsolationError, match="reached the network"):
            require_isolation()
    finally:
        monkeypatch.undo()
        _sandbox_probe._find_isolation.cache_clear()


@pytest.mark.parametrize(("system", "machine", "why"), [("darwin", "arm64", "Linux"), ("linux", "riscv64", "riscv64")])
def test_other_systems_are_refused(monkeypatch: pytest.MonkeyPatch, system: str, machine: str, why: str):
    monkeypatch.setattr(_sandbox_probe.sys, "platform", system)
    monkeypatch.setattr(_sandbox_probe.platform, "machine", lambda: machine)
    _sandbox_probe._find_isolation.cache_clear()
    try:
        with pytest.raises(NoIsolationError, match=why):
            Judge().judge("print(1)", OutputTests(pairs=(("", "1"),)))
        assert require_isolation(unsafe_no_isolation=True) == "none"
    finally:
        monkeypatch.undo()
        _sandbox_probe._find_isolation.cache_clear()


def test_the_unsafe_way_still_limits_and_filters():
    with Sandbox(isolation="none", limits=Limits(cpu_s=1.0, memory_bytes=192 << 20)) as sandbox:
        assert told(sandbox.run("print(input())", "1")) == ("ok", "1\n")
        assert sandbox.run("while True: pass").outcome == "time limit"
        assert sandbox.run("x = bytearray(1 << 40)").outcome == "memory limit"
        folder = sandbox.run("import os\nopen('left', 'w').close()\nprint(os.getcwd(), dict(os.environ))").output
        assert folder.endswith(" {}\n")
        if sys.platform == "linux" and filters_machine(os.uname().machine):
            closed = (
                "import os, socket\n"
                "for call in (os.fork, socket.socket):\n    try: call()\n    except OSError: print('no')"
            )
            assert told(sandbox.run(closed)) == ("ok", "no\nno\n")
    assert not Path(folder.split()[0]).exists()


def test_a_sandbox_that_fails_says_so(isolation: Isolation, monkeypatch: pytest.MonkeyPatch):
    with Sandbox(isolation=isolation) as sandbox:
        process = sandbox._process
        assert process is not None
        process.kill()
        with pytest.raises(SandboxError, match="no answer"):
            sandbox.run("print(1)")
    with pytest.raises(SandboxError, match="with block"):
        sandbox.run("print(1)")
    monkeypatch.setattr(_sandbox, "visible_files", lambda packages: Files(binds=("/no/such",), links=(), masks=()))
    with pytest.raises(SandboxError, match="mount /no/such: No such file"):
        Sandbox(isolation="namespaces").__enter__()
