"""How fast is allocation by gradient? 1,000 budgets solved and differentiated; a fit of six models on 30 problems.

`python benchmarks/allocation.py [--runs N] [--json] [--out benchmarks/results/allocation_cpu.json]`

The first row solves for length, trials and KV budget at 1,000 budgets of one law, and differentiates every optimum by
its budget, in float64. The second fits the law to drawn traces of 6 models x 6 KV budgets x 32 trials x 30 problems.
Laws, budgets and traces are drawn afresh for each run; compilation and drawing are left out of the medians. Targets on
2 cores: 2 s for the first, 30 s for the second.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from kinetics_jax.scaling import (
    AccuracySurface,
    Bounds,
    Optimum,
    fit_accuracy_surface,
    optimal_allocation,
    request_price,
)
from kinetics_jax.specs import HARDWARE, MODELS
from kinetics_jax.traces import TraceTable

MODEL_NAMES = tuple(f"Qwen3-{size}" for size in ("0.6B", "1.7B", "4B", "8B", "14B", "32B"))
BUDGET_LENS = (32, 64, 128, 256, 512, 1024)
NUM_BUDGETS, NUM_PROBLEMS, NUM_TRIALS, MAX_LEN = 1000, 30, 32, 32_768
BOX = Bounds(gen_len=(256.0, float(MAX_LEN)), num_trials=(1.0, 64.0), budget_len=(32.0, None))
CHIP = HARDWARE["H100-SXM"]
SOLVE_TARGET_S, FIT_TARGET_S = 2.0, 30.0


@dataclass(frozen=True, kw_only=True)
class Row:
    """One task.

    Attributes:
        what: The task.
        num_runs: Runs that the median is of.
        median_s: Seconds of a run.
        fastest_s: Seconds of the fastest.
        first_s: Seconds of the first call, compilation included.
        target_s: Seconds that a run may take.
        note: How good the answers are.
    """

    what: str
    num_runs: int
    median_s: float
    fastest_s: float
    first_s: float
    target_s: float
    note: str


def measure(run: Callable[[Any], Any], inputs: Sequence[Any]) -> tuple[list[Any], dict[str, float]]:
    """Time `run` on each input but the first, which compiles; return the answers and the times."""
    answers, times = [], []
    for drawn in inputs:
        start = time.perf_counter()
        answers.append(jax.block_until_ready(run(drawn)))
        times.append(time.perf_counter() - start)
    seconds = {"median_s": statistics.median(times[1:]), "fastest_s": min(times[1:]), "first_s": times[0]}
    return answers[1:], seconds


def draw_law(seed: int) -> tuple[AccuracySurface, jax.Array]:
    """Draw a law of 30 problems and 1,000 budgets."""
    rng = np.random.default_rng(seed)
    values: dict[str, Any] = {
        "log_rate": rng.uniform(-7.5, -6.5),
        "difficulty": rng.normal(0, 1.5, NUM_PROBLEMS),
        "length_slope": rng.uniform(1.0, 1.4),
        "keep_slope": rng.uniform(0.8, 1.5),
        "keep_log_len": rng.uniform(4.0, 5.0),
        "loss_slope": rng.uniform(0.8, 1.5),
        "loss_log_len": rng.uniform(-1.0, 1.0),
        "page_slope": 0.0,
        "ceiling": 0.95,
        "weights": np.full(NUM_PROBLEMS, 1 / NUM_PROBLEMS),
    }
    law = AccuracySurface(**jax.tree.map(jnp.asarray, values))
    return law, jnp.asarray(np.geomspace(1e14, 1e17, NUM_BUDGETS) * rng.uniform(0.9, 1.1))


@jax.jit
def solve_and_differentiate(drawn: tuple[AccuracySurface, jax.Array]) -> tuple[Optimum, Optimum]:
    """Return the optima and their derivatives by the logarithm of each budget."""
    law, budgets = drawn
    price = request_price(MODELS["Qwen3-8B"], "topk", CHIP, prompt_len=500.0)

    def solve(log_factor: jax.Array) -> Optimum:
        return optimal_allocation(law, price, budgets * jnp.exp(log_factor), bounds=BOX)

    zero = jnp.zeros(())
    return jax.jvp(solve, (zero,), (jnp.ones_like(zero),))


def draw_tables(seed: int) -> list[TraceTable]:
    """Draw traces of all models and budgets: lengths to 32,768, chances by problem, model and budget."""
    rng = np.random.default_rng(seed)
    ease, shape = rng.normal(0, 1.5, (NUM_PROBLEMS, 1)), (NUM_PROBLEMS, NUM_TRIALS)
    tables = []
    for size, model in enumerate(MODEL_NAMES):
        for level, budget_len in enumerate(BUDGET_LENS):
            gen_len = np.minimum(rng.lognormal(9.2, 0.7, shape), MAX_LEN).astype(np.int32)
            chance = 1 / (1 + np.exp(2 - ease - 0.5 * size - 0.3 * level))
            tables.append(
                TraceTable(
                    model=model,
                    attention=f"topk:{budget_len}",
                    task="drawn",
                    max_gen_len=MAX_LEN,
                    problems=tuple(f"p{q:02d}" for q in range(NUM_PROBLEMS)),
                    difficulty=np.zeros(NUM_PROBLEMS, np.int32),
                    prompt_len=rng.integers(100, 400, NUM_PROBLEMS).astype(np.int32),
                    gen_len=gen_len,
                    solved_len=np.where(rng.random(shape) < chance, gen_len, np.inf),
                    mask=np.ones(shape, bool),
                )
            )
    return tables


def time_solver(num_runs: int) -> Row:
    with jax.enable_x64(True):
        answers, seconds = measure(solve_and_differentiate, [draw_law(seed) for seed in range(num_runs + 1)])
        worst = max(float(optimum.kkt_residual.max()) for optimum, _ in answers)
        envelope = max(float(jnp.abs(slope.accuracy - optimum.shadow_price).max()) for optimum, slope in answers)
    note = f"KKT residual <= {worst:.0e}, slope less shadow price <= {envelope:.0e}"
    what = f"{NUM_BUDGETS:,} budgets solved and differentiated"
    return Row(what=what, num_runs=num_runs, target_s=SOLVE_TARGET_S, note=note, **seconds)


def time_fit(num_runs: int) -> Row:
    answers, seconds = measure(fit_accuracy_surface, [draw_tables(seed) for seed in range(num_runs + 1)])
    slopes = np.concatenate([np.ravel(surface.keep_slope) for surface in answers])
    note = f"slope in the KV budget {slopes.mean():.2f} +- {slopes.std():.2f}"
    what = f"fit of {len(MODEL_NAMES)} models x {len(BUDGET_LENS)} KV budgets x {NUM_TRIALS} x {NUM_PROBLEMS}"
    return Row(what=what, num_runs=num_runs, target_s=FIT_TARGET_S, note=note, **seconds)


def commit() -> str | None:
    """Return the commit that was measured, with a + if files have changed since; None outside of a repository."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if changed else "")


def show(rows: Sequence[Row]) -> None:
    table = Table(box=SIMPLE, padding=(0, 0))
    table.add_column("task")
    for column in ("median s", "fastest s", "first s", "target s", "runs"):
        table.add_column(column, justify="right")
    table.add_column("answers")
    for row in rows:
        seconds = (f"{value:.2f}" for value in (row.median_s, row.fastest_s, row.first_s, row.target_s))
        table.add_row(row.what, *seconds, str(row.num_runs), row.note)
    table.caption = "first: with compilation."
    Console().print(table)
    met = all(row.median_s <= row.target_s for row in rows)
    print(f"targets: {'met' if met else 'missed'}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Time the continuous optimum and the fit of its surface.")
    parser.add_argument("--runs", type=int, default=5, help="runs of each task")
    parser.add_argument("--json", action="store_true", help="print the report as JSON instead of the table")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/allocation_cpu.json"))
    options = parser.parse_args(arguments)
    rows = [time_solver(options.runs), time_fit(options.runs)]
    report = {
        "benchmark": "allocation",
        "device": jax.devices()[0].device_kind,
        "machine": f"{platform.system()} {platform.machine()}",
        "num_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "versions": {"python": platform.python_version(), "jax": jax.__version__, "numpy": np.__version__},
        "commit": commit(),
        "rows": [asdict(row) for row in rows],
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        show(rows)
        print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
