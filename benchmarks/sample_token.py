"""How long does it take to draw a token? Times `sample_token` at Qwen3's vocabulary, by spec and batch.

`python benchmarks/sample_token.py [--vocab V] [--batches 1,8,64,256] [--runs N] [--step-ms 3] [--out FILE]`

Logits are normal with a few likely tokens, float32, several sets in turn; keys differ in every row. The floor is one
read of the logits at the rate of a copy within device memory, measured in the same run. `us` is wall-clock time of a
call among calls one after another; `kernels us` is the sum of its kernels by the device's events, where there are such.
The share is that of a decode step of `--step-ms`; the target is 2 % at batch 64. The last row of each batch sorts the
vocabulary (`jax.lax.top_k`), for comparison. On a CPU choose a small vocabulary or few rows.
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

import jax
import jax.numpy as jnp
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from kinetics_jax.sampling import sample_token
from kinetics_jax.specs import SamplingSpec
from pallas_kernels.benchmarks._measure import kernels_s

SPECS = {
    "greedy": SamplingSpec(temperature=0.0),
    "paper: 0.6, top-k 20, top-p 0.95": SamplingSpec(temperature=0.6, top_k=20, top_p=0.95),
    "top-k 20": SamplingSpec(top_k=20),
    "top-k 64": SamplingSpec(top_k=64),
    "top-k 100": SamplingSpec(top_k=100),
    "top-p 0.95": SamplingSpec(top_p=0.95),
    "min-p 0.05": SamplingSpec(min_p=0.05),
    "plain": SamplingSpec(),
    "penalty 1.1 and paper": SamplingSpec(temperature=0.6, top_k=20, top_p=0.95, repetition_penalty=1.1),
}
SORTED = "by jax.lax.top_k 20"
NUM_SETS = 4
TARGET_SHARE = 0.02


@dataclass(frozen=True, kw_only=True)
class Row:
    """One spec at one batch.

    Attributes:
        spec: The way to draw.
        batch_size: Rows, B.
        median_s: Seconds of a call.
        kernels_s: Seconds of its kernels; None where the device does not tell.
        floor_s: Seconds of one read of the logits.
        share: Of a decode step.
    """

    spec: str
    batch_size: int
    median_s: float
    kernels_s: float | None
    floor_s: float
    share: float


def make_inputs(batch_size: int, vocab_size: int, seed: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return logits, key data and seen tokens: a thousand tokens of a row stand out, as after a trained model."""

    @jax.jit
    def make(key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        normal, likely, rows, seen = jax.random.split(key, 4)
        shape = (batch_size, vocab_size)
        logits = 2 * jax.random.normal(normal, shape)
        logits += 10 * jax.random.bernoulli(likely, min(1.0, 1000 / vocab_size), shape)
        keys = jax.random.key_data(jax.random.split(rows, batch_size))
        return logits, keys, jax.random.bernoulli(seen, 0.05, shape)

    return make(jax.random.key(seed))


def draw(sampling: SamplingSpec) -> Callable[..., jax.Array]:
    def run(logits: jax.Array, key_data: jax.Array, seen: jax.Array) -> jax.Array:
        keys = jax.random.wrap_key_data(key_data)
        return sample_token(logits, keys, sampling, seen if sampling.repetition_penalty != 1 else None)

    return jax.jit(run)


@jax.jit
def draw_sorted(logits: jax.Array, key_data: jax.Array, seen: jax.Array) -> jax.Array:
    """Draw as one would with the library's own top-k; judges top-p among the 20 only."""
    values, ids = jax.lax.top_k(logits / 0.6, 20)
    mass = jnp.cumsum(jax.nn.softmax(values, axis=-1), axis=-1)
    kept = jnp.where(mass - jax.nn.softmax(values, axis=-1) < 0.95, values, -jnp.inf)
    index = jax.vmap(jax.random.categorical)(jax.random.wrap_key_data(key_data), kept)
    return jnp.take_along_axis(ids, index[:, None], axis=-1)[:, 0]


def median_s(step: Callable[..., jax.Array], inputs: Sequence[tuple[jax.Array, ...]], num_runs: int) -> float:
    """Return the seconds of a call: the median run of several calls one after another, on several inputs in turn."""
    for arguments in inputs:
        jax.block_until_ready(step(*arguments))
    num_calls = 100 if jax.default_backend() == "gpu" else 1
    runs = []
    for _ in range(num_runs):
        start = time.perf_counter()
        last = None
        for call in range(num_calls):  # kept are only the newest results: a hundred copies of a gigabyte fit nowhere
            last = step(*inputs[call % len(inputs)])
        jax.block_until_ready(last)
        runs.append((time.perf_counter() - start) / num_calls)
    return statistics.median(runs)


def copy_bytes_per_s(num_bytes: int) -> float:
    """Return the rate of a copy within device memory, read and written bytes counted."""
    source = jnp.zeros(num_bytes // 4, jnp.float32)
    return 2 * num_bytes / median_s(jax.jit(lambda source: source + 1), [(source,)], 20)


def commit() -> str | None:
    """Return the commit that was measured, with a + if files have changed since; None outside of a repository."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if changed else "")


def measure(batch_size: int, vocab_size: int, num_runs: int, rate: float, step_s: float) -> list[Row]:
    inputs = [make_inputs(batch_size, vocab_size, seed) for seed in range(NUM_SETS)]
    floor_s, rows = 4 * batch_size * vocab_size / rate, []
    for name, step in ({name: draw(sampling) for name, sampling in SPECS.items()} | {SORTED: draw_sorted}).items():
        seconds, kernels = median_s(step, inputs, num_runs), kernels_s(step, *inputs[0])
        on_device = None if kernels is None else sum(kernels.values())
        rows.append(
            Row(
                spec=name,
                batch_size=batch_size,
                median_s=seconds,
                kernels_s=on_device,
                floor_s=floor_s,
                share=(seconds if on_device is None else on_device) / step_s,
            )
        )
    return rows


def show(rows: Sequence[Row], vocab_size: int, step_s: float) -> None:
    table = Table(title=f"sample_token, vocabulary {vocab_size:,}", title_justify="left", box=SIMPLE, padding=(0, 0))
    table.add_column("spec", no_wrap=True)
    for column in ("batch", "us", "kernels us", "floor us", "times floor", f"share of {1e3 * step_s:g} ms"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row.spec,
            str(row.batch_size),
            f"{1e6 * row.median_s:,.0f}",
            "-" if row.kernels_s is None else f"{1e6 * row.kernels_s:,.0f}",
            f"{1e6 * row.floor_s:,.1f}",
            f"{(row.kernels_s or row.median_s) / row.floor_s:,.1f}",
            f"{100 * row.share:.1f} %",
        )
    Console().print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Time the drawing of tokens.")
    parser.add_argument("--vocab", type=int, default=151_936, help="tokens of the vocabulary")
    parser.add_argument("--batches", default="1,8,64,256", help="batch sizes")
    parser.add_argument("--runs", type=int, default=20, help="runs that a median is of")
    parser.add_argument("--step-ms", type=float, default=3.0, help="decode step that the share is of")
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks/sample_token.json"))
    options = parser.parse_args(arguments)
    rate = copy_bytes_per_s(2**30 if jax.default_backend() == "gpu" else 2**26)
    step_s = 1e-3 * options.step_ms
    batches = [int(batch) for batch in options.batches.split(",")]
    rows = [row for batch in batches for row in measure(batch, options.vocab, options.runs, rate, step_s)]
    show(rows, options.vocab, step_s)
    report = {
        "benchmark": "sample_token",
        "device": jax.devices()[0].device_kind,
        "machine": f"{platform.system()} {platform.machine()}",
        "num_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "versions": {"python": platform.python_version(), "jax": jax.__version__},
        "commit": commit(),
        "shapes": {"vocab": options.vocab, "batches": batches},
        "copy_bytes_per_s": rate,
        "step_s": step_s,
        "target_share": TARGET_SHARE,
        "specs": {name: str(sampling) for name, sampling in SPECS.items()},
        "rows": [asdict(row) for row in rows],
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
