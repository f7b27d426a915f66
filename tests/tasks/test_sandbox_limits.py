"""Programs that want too much: time, memory, disk, output, threads. And ordinary ones, which want little."""

import time

import pytest

from kinetics_jax.tasks import Limits, ProgramRun, Sandbox


def told(run: ProgramRun) -> tuple[str, str]:
    return run.outcome, run.output


def test_a_full_disk_is_its_own_problem(either: Sandbox):
    fill = "n = 0\nwhile True:\n    open(f'/tmp/{n}', 'wb').write(bytes(1 << 18))\n    n += 1"
    run = either.run(fill)
    assert (run.outcome, "No space left" in run.reason) == ("runtime error", True)
    files = "n = 0\nwhile True:\n    open(f'/tmp/e{n}', 'wb').close()\n    n += 1"
    # bubblewrap limits the bytes of the folder, not its files: there the processor time ends it.
    assert either.run(files).outcome == ("time limit" if either.isolation == "bubblewrap" else "runtime error")
    either.reset()
    assert either.run("import os\nprint(os.listdir('/tmp'), os.statvfs('/tmp').f_bfree > 400)").output == "[] True\n"


def test_a_large_file_is_cut(either: Sandbox):
    grow = "f = open('/tmp/f', 'wb')\nfor _ in range(100): f.write(bytes(1 << 16)); f.flush()"
    assert either.run(grow).outcome == "output limit"
    assert either.run("import os\nos.truncate(os.open('/tmp/g', os.O_CREAT | os.O_RDWR), 1 << 40)").outcome in (
        "output limit",
        "runtime error",
    )


@pytest.mark.parametrize(
    "program",
    [
        "x = []\nwhile True: x.append(bytearray(1 << 24))",
        "x = 'a' * (1 << 40)",
        "import mmap\nx = []\nwhile True:\n    x.append(mmap.mmap(-1, 1 << 26))\n    x[-1][::4096] = bytes(1 << 14)",
        "try:\n    x = [0] * (1 << 40)\nfinally:\n    x = bytearray(1 << 40)",
    ],
)
def test_memory_is_limited(whole: Sandbox, program: str):
    run = whole.run(program)
    # mmap reports its failure as an OSError, which is the program's own way to run out.
    assert run.outcome == "memory limit" or "Cannot allocate memory" in run.reason


def test_threads_share_the_memory_limit(whole: Sandbox):
    program = (
        "import threading\n"
        "def hog():\n    x = []\n    while True: x.append(bytearray(1 << 22))\n"
        "for _ in range(6): threading.Thread(target=hog).start()"
    )
    started = time.monotonic()
    run = whole.run(program)
    assert run.outcome != "time limit"
    assert time.monotonic() - started < 60


def test_a_fork_bomb_without_the_filter_stays_small_and_dies(bare: Sandbox):
    bomb = (
        "import os, time\nforked = 0\n"
        "for _ in range(400):\n"
        "    try: child = os.fork()\n    except OSError: continue\n"
        "    if not child: time.sleep(99)\n"
        "    forked += 1\nprint(forked)"
    )
    run = bare.run(bomb)
    assert run.outcome == "ok"
    assert 1 <= int(run.output) <= bare.limits.num_threads + 2
    count = (
        "import os\nn = 0\nfor pid in range(2, 3000):\n"
        "    try: os.kill(pid, 0); n += pid != os.getpid()\n    except OSError: pass\nprint(n)"
    )
    assert told(bare.run(count)) == ("ok", "0\n")


def test_threads_are_limited(either: Sandbox):
    program = (
        "import threading\nn, counted = 0, threading.Event()\n"
        "for _ in range(200):\n"
        "    try: threading.Thread(target=counted.wait).start(); n += 1\n"
        "    except RuntimeError: pass\n"
        "print(n)\ncounted.set()"
    )
    run = either.run(program)
    assert 1 <= int(run.output) <= either.limits.num_threads + 2


def test_sleeping_computing_and_ignored_signals_end_at_the_limit(whole: Sandbox):
    ignore = (
        "import signal\nfor n in range(1, 65):\n"
        "    try: signal.signal(n, signal.SIG_IGN)\n    except (OSError, ValueError): pass\n"
    )
    raised = (
        "import resource\n"
        "try: resource.setrlimit(resource.RLIMIT_CPU, (99, 99))\nexcept (OSError, ValueError): print('refused')\n"
    )
    limits = Limits(cpu_s=0.3, wall_s=1.0)
    started = time.monotonic()
    with Sandbox(isolation=whole.isolation, limits=limits) as sandbox:
        for program in ("import time\ntime.sleep(99)", f"{ignore}while True: pass", f"{raised}while True: pass"):
            run = sandbox.run(program)
            assert run.outcome == "time limit"
            assert run.output in ("", "refused\n")
    assert time.monotonic() - started < 60


def test_the_time_of_all_threads_counts_to_the_hundredth(whole: Sandbox):
    spin = "import hashlib, threading\ndef spin():\n    while True: hashlib.sha256(bytes(1 << 20)).digest()\n"
    limits = Limits(cpu_s=0.3, wall_s=60.0)
    with Sandbox(isolation=whole.isolation, limits=limits) as sandbox:
        for program in (f"{spin}for _ in range(4): threading.Thread(target=spin).start()", "while True: pass"):
            run = sandbox.run(program)
            assert run.outcome == "time limit"
            assert 0.3 <= run.cpu_s < 1.9  # the kernel's own limit knows whole seconds only


def test_ten_gigabytes_of_output_are_cut(whole: Sandbox):
    for stream in ("stdout", "stderr"):
        run = whole.run(f"import sys\nfor _ in range(10_000): sys.{stream}.write('x' * 1_000_000)")
        assert run.outcome == "output limit"
        assert len(run.output) <= whole.limits.output_bytes


def test_a_program_that_swallows_the_write_error_is_still_over_the_limit(whole: Sandbox):
    program = (
        "import os, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "for _ in range(100):\n    try: os.write(1, b'x' * 100_000)\n    except OSError: pass\n"
    )
    assert whole.run(program).outcome == "output limit"


def test_a_program_may_end_itself_as_it_likes(whole: Sandbox):
    assert whole.run("import os, signal\nos.kill(os.getpid(), signal.SIGTERM)").outcome == "runtime error"
    assert whole.run("import os\nos.abort()").outcome == "runtime error"
    assert whole.run("import ctypes\nctypes.string_at(1)").outcome == "runtime error"
    assert (whole.run("exit(3)").outcome, whole.run("exit(3)").reason) == ("runtime error", "exit code 3")
    assert told(whole.run("print(1)\nexit()")) == ("ok", "1\n")
    assert whole.run("def (").reason == "SyntaxError: invalid syntax"


def test_ordinary_programs_find_what_they_expect(whole: Sandbox):
    program = (
        "import asyncio, bisect, collections, decimal, fractions, functools, hashlib, heapq, itertools, math, re\n"
        "import random, statistics, string, sys, tempfile, threading, typing, json, zlib, concurrent.futures\n"
        "async def add(a, b):\n    await asyncio.sleep(0.001)\n    return a + b\n"
        "total = asyncio.run(add(1, 2))\n"
        "with concurrent.futures.ThreadPoolExecutor(2) as pool: total += sum(pool.map(abs, [-1, -2]))\n"
        "with tempfile.TemporaryFile() as f: f.write(b'x')\n"
        "sys.setrecursionlimit(10**6)\n"
        "def deep(n): return 0 if n == 0 else 1 + deep(n - 1)\n"
        "print(total, deep(5000), sys.stdin.read().split(), hashlib.md5(b'').hexdigest()[:4], __name__)"
    )
    assert told(whole.run(program, "a b\nc\n")) == ("ok", "6 5000 ['a', 'b', 'c'] d41d __main__\n")
    fast = "import os, sys\nd = os.read(0, os.fstat(0).st_size)\nimport atexit\natexit.register(lambda: os.write(1, d))"
    assert told(whole.run(fast, "late")) == ("ok", "late")
    big = "import threading\nthreading.stack_size(1 << 26)\nt = threading.Thread(target=print, args=(1,))\nt.start()"
    assert told(whole.run(big)) == ("ok", "1\n")


def test_the_order_of_a_set_is_the_same_in_every_run(whole: Sandbox):
    runs: list[ProgramRun] = [whole.run("print({str(n) for n in range(50)})") for _ in range(2)]
    with Sandbox(isolation=whole.isolation, limits=whole.limits) as fresh:
        runs.append(fresh.run("print({str(n) for n in range(50)})"))
    assert len({run.output for run in runs}) == 1


@pytest.mark.parametrize("wrong", [{"cpu_s": 0.0}, {"wall_s": -1.0}, {"memory_bytes": 0}, {"num_threads": 0}])
def test_limits_are_above_zero(wrong: dict[str, float]):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be above zero"):
        Limits(**wrong)  # pyright: ignore[reportArgumentType]
