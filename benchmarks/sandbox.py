"""What a sandbox costs: milliseconds to start one and to run a program in it, and programs judged a second.

    python benchmarks/sandbox.py [--programs 200] [--workers 2] [--json FILE]

Prints medians. The floor is a bare Python of the same flags that does nothing. `judged/s` are different small programs
of two tests each, with the cache off, and then once more with every verdict remembered.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from kinetics_jax.tasks import CheckTests, Judge, OutputTests, Sandbox, VerdictCache, require_isolation


def median_ms(action: Callable[[], object], repeats: int) -> float:
    action()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1e3


def judged_per_s(judge: Judge, programs: int, workers: int) -> float:
    jobs = [
        (f"n = int(input())\nprint(n + {k} - {k})", OutputTests(pairs=(("1", "1"), ("2", "2"))))
        for k in range(programs)
    ]
    started = time.perf_counter()
    verdicts = judge.judge_many(jobs, num_workers=workers)
    assert all(verdict.kind == "pass" for verdict in verdicts)
    return programs / (time.perf_counter() - started)


def measure(programs: int, workers: int) -> dict[str, float]:
    isolation = require_isolation()
    flags = ["-s", "-S", "-P", "-X", "utf8", "-c", "pass"]
    rows = {"bare python [ms]": median_ms(lambda: subprocess.run([sys.executable, *flags], check=True), 30)}

    def start() -> None:
        with Sandbox(isolation=isolation):
            pass

    def start_and_run() -> None:
        with Sandbox(isolation=isolation) as sandbox:
            sandbox.run("print(int(input()) + 1)", "1")

    rows["start and close a sandbox [ms]"] = median_ms(start, 30)
    rows["start, run one program, close [ms]"] = median_ms(start_and_run, 30)
    with Sandbox(isolation=isolation) as sandbox:
        rows["one more run in it [ms]"] = median_ms(lambda: sandbox.run("print(int(input()) + 1)", "1"), 100)
        rows["one more call of a function [ms]"] = median_ms(lambda: sandbox.call("def f(x): return x", "f", (1,)), 100)
        tests = CheckTests(function="f", setup="", tests="def check(f):\n    assert f(1) == 1\n")
        rows["one more check by assertions [ms]"] = median_ms(lambda: tests.run(sandbox, "def f(x): return x"), 50)
        rows["empty its temporary folder [ms]"] = median_ms(sandbox.reset, 50)
    with tempfile.TemporaryDirectory() as folder:
        judge = Judge(cache=VerdictCache(folder=Path(folder)))
        rows[f"judged/s, {workers} workers"] = judged_per_s(judge, programs, workers)
        rows[f"judged/s, {workers} workers, remembered"] = judged_per_s(judge, programs, workers)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="What a sandbox costs.")
    parser.add_argument("--programs", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print(f"{require_isolation()}, Python {platform.python_version()}, Linux {platform.release()}")
    rows = measure(options.programs, options.workers)
    for name, value in rows.items():
        print(f"{name:<44} {value:10.1f}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
