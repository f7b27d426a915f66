"""How fast is the cost model over many configurations? Prices 10^7 (model, attention, length, trials) points.

`python benchmarks/cost_sweep.py [--points N] [--runs N] [--sample N] [--out out/benchmarks/cost_sweep.json]`

Every row calls the same public functions, `eflops(request_cost(...))`: compiled by XLA in single and double precision,
on NumPy arrays, and one point at a time in a Python loop, which prices a sample and is extrapolated. Points are the
product of models, attention specs and drawn (prompt_len, gen_len, num_trials); each run draws its own. A run goes chunk
by chunk, from NumPy numbers to NumPy eFLOPs of all points; compilation and drawing are left out of its time. The target
is 1 s after compilation on 2 cores, in at most 2 GB. Leaves out the other conventions, dtypes and the shared-prompt
switch: they change constants.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from kinetics_jax.cost import eflops, request_cost
from kinetics_jax.specs import HARDWARE, MODELS, AttentionSpec, parse_attention

MODEL_NAMES = tuple(f"Qwen3-{size}" for size in ("0.6B", "1.7B", "4B", "8B", "14B", "32B"))
ATTENTIONS = ("dense", "topk:1024", "local:1020,sinks=4", "block_topk:16x64", "quest:16x64,dense_layers=2")
BLOCK_ONLY = ("block_topk:16x64",)
CHIP = HARDWARE["PAPER_B200"]
# Small enough for the caches, large enough that XLA shares a chunk among its threads.
CHUNK_LEN = 2**16
NUM_NUMPY_RUNS = 3


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way to price the points.

    Attributes:
        what: The way.
        num_points: Points that `median_s` is for.
        num_timed: Points that were priced in a run; fewer than `num_points` where the time is extrapolated.
        num_runs: Runs that the median is of.
        median_s: Seconds for all points.
        fastest_s: The same in the fastest run.
        compile_s: Seconds until the program was ready, 0 where nothing is compiled.
        peak_rss_bytes: Largest resident memory of the process so far, earlier rows included.
        worst_error: Largest relative difference from NumPy's double precision.
    """

    what: str
    num_points: int
    num_timed: int
    num_runs: int
    median_s: float
    fastest_s: float
    compile_s: float
    peak_rss_bytes: int
    worst_error: float

    @property
    def points_per_s(self) -> float:
        return self.num_points / self.median_s


def price(attentions: Sequence[AttentionSpec], prompt_len: Any, gen_len: Any, num_trials: Any) -> list[Any]:
    """Return the eFLOPs of every model and attention spec, each of the chunk's shape.

    A list, not a stack: XLA fuses a stack into one loop that branches at every element, up to ten times slower.
    """
    numbers = {"prompt_len": prompt_len, "gen_len": gen_len, "num_trials": num_trials}
    return [
        eflops(request_cost(MODELS[name], attention, **numbers), CHIP)
        for name in MODEL_NAMES
        for attention in attentions
    ]


def draw(num_points: int, num_programs: int, seed: int) -> np.ndarray:
    """Draw prompt_len, gen_len, num_trials in chunks of equal length: [chunks, 3, chunk], at least as many as asked."""
    num_triples = -(-num_points // num_programs)
    num_chunks = -(-num_triples // CHUNK_LEN)
    shape = (num_chunks, -(-num_triples // num_chunks))
    rng = np.random.default_rng(seed)
    lens = (rng.integers(0, 32_768, shape), rng.integers(0, 32_768, shape), rng.integers(1, 65, shape))
    return np.stack(lens, axis=1).astype(np.int32)


def sweep(price_chunk: Callable[..., Any], chunks: np.ndarray, out: np.ndarray) -> float:
    """Price all chunks into `out` and return the seconds."""
    start = time.perf_counter()
    for chunk, part in zip(chunks, out, strict=True):
        for row, priced in zip(part, price_chunk(*chunk), strict=True):
            row[...] = priced
    return time.perf_counter() - start


def time_arrays(
    what: str, specs: Sequence[str], num_points: int, num_runs: int, *, compiled: bool, float64: bool
) -> Row:
    """Time the compiled program, or NumPy."""
    attentions = [parse_attention(text) for text in specs]
    num_programs = len(MODEL_NAMES) * len(specs)
    chunks = draw(num_points, num_programs, seed=0)
    out = np.zeros((len(chunks), num_programs, chunks.shape[2]), np.float64 if float64 else np.float32)
    wanted = np.stack(price(attentions, *chunks[0]))
    with jax.enable_x64(float64):
        start = time.perf_counter()
        price_chunk: Callable[..., Any] = partial(price, attentions)
        if compiled:
            price_chunk = jax.jit(price_chunk).lower(*chunks[0]).compile()
        compile_s = time.perf_counter() - start if compiled else 0.0
        sweep(price_chunk, chunks, out)
        error = float(np.max(np.abs(out[0] - wanted) / np.maximum(wanted, 1.0)))
        del wanted
        times = []
        for run in range(num_runs):
            chunks = draw(num_points, num_programs, seed=1 + run)
            times.append(sweep(price_chunk, chunks, out))
    return Row(
        what=what,
        num_points=out.size,
        num_timed=out.size,
        num_runs=num_runs,
        median_s=statistics.median(times),
        fastest_s=min(times),
        compile_s=compile_s,
        peak_rss_bytes=peak_rss_bytes(),
        worst_error=error,
    )


def time_loop(num_points: int, num_sampled: int) -> Row:
    """Time a Python loop over single points, and extrapolate to all of them."""
    attentions = [parse_attention(text) for text in ATTENTIONS]
    num_programs = len(MODEL_NAMES) * len(ATTENTIONS)
    sample = np.concatenate([*draw(num_sampled, num_programs, seed=0)], axis=1).T.tolist()
    total, start = 0.0, time.perf_counter()
    for prompt_len, gen_len, num_trials in sample:
        for name in MODEL_NAMES:
            for attention in attentions:
                cost = request_cost(
                    MODELS[name], attention, prompt_len=prompt_len, gen_len=gen_len, num_trials=num_trials
                )
                total += float(eflops(cost, CHIP))
    num_timed = len(sample) * num_programs
    seconds = (time.perf_counter() - start) * num_points / num_timed
    wanted = float(np.sum(price(attentions, *np.array(sample).T)))
    return Row(
        what="Python loop (estimate)",
        num_points=num_points,
        num_timed=num_timed,
        num_runs=1,
        median_s=seconds,
        fastest_s=seconds,
        compile_s=0.0,
        peak_rss_bytes=peak_rss_bytes(),
        worst_error=abs(total - wanted) / wanted,
    )


def peak_rss_bytes() -> int:
    """Return the largest resident memory so far; Linux counts it in kilobytes, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


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
    table = Table(title=f"{rows[0].num_points:,} points", title_justify="left", box=SIMPLE, padding=(0, 0))
    table.caption_justify = "left"
    table.add_column("way", no_wrap=True)
    for column in ("seconds", "points/s", "compile", "peak MB", "ratio", "error"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row.what,
            f"{row.median_s:.2g}",
            f"{row.points_per_s:.1e}",
            f"{row.compile_s:.1f} s" if row.compile_s else "-",
            f"{row.peak_rss_bytes / 1e6:,.0f}",
            f"{row.median_s / rows[0].median_s:.2g}",
            f"{row.worst_error:.0e}",
        )
    table.caption = (
        f"seconds: median of the runs; the estimate is extrapolated from {rows[-1].num_timed:,} points. peak: of the "
        "process so far. ratio: of seconds to the first row. error: largest, relative to NumPy float64."
    )
    Console().print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Time the cost model over many configurations.")
    parser.add_argument("--points", type=int, default=10_000_000, help="points priced in a run")
    parser.add_argument("--runs", type=int, default=20, help="runs of each compiled program")
    parser.add_argument("--sample", type=int, default=100_000, help="points of the Python loop")
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks/cost_sweep.json"))
    options = parser.parse_args(arguments)
    num_points, num_runs, num_numpy_runs = options.points, options.runs, min(options.runs, NUM_NUMPY_RUNS)
    rows = [
        time_arrays("jit float32", ATTENTIONS, num_points, num_runs, compiled=True, float64=False),
        time_arrays("jit float32, block top-k", BLOCK_ONLY, num_points, num_runs, compiled=True, float64=False),
        time_arrays("jit float64", ATTENTIONS, num_points, num_runs, compiled=True, float64=True),
        time_arrays("NumPy float64", ATTENTIONS, num_points, num_numpy_runs, compiled=False, float64=True),
        time_loop(num_points, min(options.sample, num_points)),
    ]
    show(rows)
    wrong = [row.what for row in rows if not row.worst_error < 1e-5]
    if wrong:
        sys.exit(f"the ways disagree: {', '.join(wrong)}")
    report = {
        "benchmark": "cost_sweep",
        "device": jax.devices()[0].device_kind,
        "machine": f"{platform.system()} {platform.machine()}",
        "num_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "versions": {"python": platform.python_version(), "jax": jax.__version__, "numpy": np.__version__},
        "commit": commit(),
        "shapes": {"models": MODEL_NAMES, "attentions": ATTENTIONS, "longest_chunk": CHUNK_LEN},
        "rows": [{**asdict(row), "points_per_s": row.points_per_s} for row in rows],
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
