"""How long do a million trials take to load? Makes the rows, times every way to read them, prints the seconds.

`python benchmarks/read_traces.py [--rows N] [--tokens N] [--folder DIR] [--out out/benchmarks/read_traces.json]`

The rows are those of a large study: 6 models x 7 attention specs, problems x 32 trials of each, every trial with its
own length, answer and outcome. They lie in one JSONL shard a model and attention, and packed into one Parquet file.
Each way is timed once in a process of its own, its start left out, files in the page cache. The target is 10 s for
10^6 rows on 2 cores. Leaves out the time to write the shards: `TraceWriter` flushes every batch to the disk.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from kinetics_jax.traces import SCHEMA_VERSION, compact

MODEL_NAMES = tuple(f"Qwen3-{size}" for size in ("0.6B", "1.7B", "4B", "8B", "14B", "32B"))
ATTENTIONS = ("dense", *(f"topk:{budget}" for budget in (32, 64, 128, 256, 512, 1024)))
NUM_TRIALS = 32
MAX_GEN_LEN = 32_768
# The library is imported and Arrow's threads are started before the clock is; the rows themselves are not touched.
TIMED = """
import json, sys, time
import pyarrow.json, pyarrow.parquet
from kinetics_jax.traces import inspect_traces, read_tables, verify_traces
start, cpu = time.perf_counter(), time.process_time()
result = {call}
seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
print(json.dumps([seconds, cpu, {count}]))
"""
TABLES, NUM_TRIALS_READ = "read_tables(sys.argv[1])", "int(sum(table.mask.sum() for table in result))"
WAYS = {
    "tables from Parquet": ("parquet", TABLES, NUM_TRIALS_READ),
    "tables with answers from Parquet": ("parquet", "read_tables(sys.argv[1], answers=True)", NUM_TRIALS_READ),
    "inspect Parquet": ("parquet", "inspect_traces(sys.argv[1])", "sum(part.num_rows for part in result)"),
    "verify Parquet": ("parquet", "verify_traces(sys.argv[1])", "result.num_rows if not result.issues else 0"),
    "tables from JSONL": ("jsonl", TABLES, NUM_TRIALS_READ),
    "verify JSONL": ("jsonl", "verify_traces(sys.argv[1])", "result.num_rows if not result.issues else 0"),
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way to read the rows.

    Attributes:
        what: The way.
        num_rows: Trials that it read.
        seconds: How long it took.
        cpu_s: Processor time of all threads [s]: what would remain of a busy machine's seconds on a quiet core.
    """

    what: str
    num_rows: int
    seconds: float
    cpu_s: float


def write_shards(folder: Path, num_rows: int, num_tokens: int) -> None:
    """Write one shard a model and attention, as `TraceWriter` would; `num_tokens` ids a trial, 0 for counts alone."""
    num_problems = -(-num_rows // (len(MODEL_NAMES) * len(ATTENTIONS) * NUM_TRIALS))
    rng = np.random.default_rng(0)
    shared = {
        "schema_version": SCHEMA_VERSION,
        "weights_hash": "c0ffee",
        "task": "aime24",
        "difficulty": 0,
        "seed": 0,
        "sampling": "greedy",
        "max_gen_len": MAX_GEN_LEN,
        "time_s": 0.5,
        "task_revision": None,
        "task_licence": None,
    }
    folder.mkdir(parents=True)
    for model in MODEL_NAMES:
        for attention in ATTENTIONS:
            run = f"aime24/{model}/{attention}/seed0"
            with (folder / f"{run.replace('/', '-').replace(':', '-')}.jsonl").open("w", encoding="utf-8") as shard:
                for problem in range(num_problems):
                    ids = rng.integers(0, 150_000, (NUM_TRIALS, num_tokens)).tolist()
                    lens = (
                        [num_tokens] * NUM_TRIALS if num_tokens else rng.integers(1, MAX_GEN_LEN, NUM_TRIALS).tolist()
                    )
                    for trial, (gen_len, is_right) in enumerate(zip(lens, rng.random(NUM_TRIALS) < 0.5, strict=True)):
                        row = {
                            **shared,
                            "run": run,
                            "model": model,
                            "problem": f"problem-{problem}",
                            "trial": trial,
                            "attention": attention,
                            "prompt_ids": None,
                            "output_ids": ids[trial] if num_tokens else None,
                            "prompt_len": 100 + problem % 50,
                            "gen_len": gen_len,
                            "finish_reason": "eos",
                            "answer": "204" if is_right else str(gen_len % 1000),
                            "score": float(is_right),
                            "solved_len": gen_len if is_right else None,
                        }
                        shard.write(json.dumps(row, separators=(",", ":")) + "\n")


def time_way(what: str, sources: dict[str, Path]) -> Row:
    """Time one way in a process of its own."""
    source, call, count = WAYS[what]
    code = TIMED.format(call=call, count=count)
    done = subprocess.run(
        [sys.executable, "-c", code, str(sources[source])], capture_output=True, text=True, check=True
    )
    seconds, cpu_s, num_rows = json.loads(done.stdout)
    return Row(what=what, num_rows=num_rows, seconds=seconds, cpu_s=cpu_s)


def size_of(path: Path) -> int:
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.iterdir()))


def show(rows: Sequence[Row], title: str) -> None:
    table = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 0))
    table.add_column("way", no_wrap=True)
    for column in ("rows", "seconds", "rows/s", "CPU s"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row.what,
            f"{row.num_rows:,}",
            f"{row.seconds:.2f}",
            f"{row.num_rows / row.seconds:,.0f}",
            f"{row.cpu_s:.2f}",
        )
    Console().print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Time how a million trials are read.")
    parser.add_argument("--rows", type=int, default=1_000_000, help="trials, at least")
    parser.add_argument("--tokens", type=int, default=0, help="token ids of each trial; 0 has counts alone")
    parser.add_argument(
        "--folder", type=Path, default=None, help="where the files are made; a temporary one by default"
    )
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks/read_traces.json"))
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        sources = {"jsonl": Path(folder) / "shards", "parquet": Path(folder) / "all.parquet"}
        write_shards(sources["jsonl"], options.rows, options.tokens)
        start, cpu = time.perf_counter(), time.process_time()
        num_rows = compact(sources["jsonl"], sources["parquet"])
        packing = Row(
            what="compact JSONL into Parquet",
            num_rows=num_rows,
            seconds=time.perf_counter() - start,
            cpu_s=time.process_time() - cpu,
        )
        sizes = {name: size_of(path) for name, path in sources.items()}
        rows = [*(time_way(what, sources) for what in WAYS), packing]
    show(
        rows,
        f"{num_rows:,} trials, {options.tokens} token ids each: {sizes['jsonl'] / 1e6:,.0f} MB of JSONL, "
        f"{sizes['parquet'] / 1e6:,.0f} MB of Parquet",
    )
    wrong = [row.what for row in rows if row.num_rows != num_rows]
    if wrong:
        sys.exit(f"these did not read every trial: {', '.join(wrong)}")
    report = {
        "benchmark": "read_traces",
        "machine": f"{platform.system()} {platform.machine()}",
        "num_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "versions": {"python": platform.python_version(), "pyarrow": pyarrow.__version__, "numpy": np.__version__},
        "num_tokens": options.tokens,
        "bytes": sizes,
        "rows": [asdict(row) for row in rows],
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
