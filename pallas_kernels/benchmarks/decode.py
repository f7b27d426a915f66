"""Time one layer's decode against its byte floor: `python -m pallas_kernels.benchmarks.decode [--grid small|full]`.

    shape A   64 sequences, 8 KV heads of 4 query heads, width 128, context 16,384, pages of 16, budget 1,024
    grid      every Qwen3 geometry with contexts, budgets, pages and batch sizes (`--grid small` is a part of it)

Floors: the bytes that must be read (page means and selected pages, or all pages), at the rate of a copy measured in
the same run. Peers in the same run: XLA's implementation and, where torch and flashinfer can be imported, FlashInfer
and the paper's recipe. A row of the grid also says whether pages and outputs agree with XLA's implementation. Times are
a synchronised clock around a hundred calls, launches included, the median of twenty runs; `kernels us` is what the
device's own events say of the kernels alone. Leaves out whole models: `benchmarks/` has those.
"""

import argparse
import importlib.util
import itertools
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

SHAPE_A = {"batch_size": 64}
GEOMETRIES = {"Qwen3-0.6B, 1.7B": (8, 2), "Qwen3-4B, 8B": (8, 4), "Qwen3-14B": (8, 5), "Qwen3-32B": (8, 8)}
CONTEXTS, BUDGETS, PAGES, BATCHES = (4_096, 16_384, 65_536), (256, 1_024, 4_096), (16, 32, 64), (1, 16, 64, 256)
NUM_COMPARED = 2  # sequences of a grid row whose result is compared
TOLERANCE = 2e-2


def shape_a_rows(implementation: Any, copy_rate: float) -> list[dict[str, Any]]:
    """Return the rows of shape A: ours, XLA's and the peers."""
    import jax

    from pallas_kernels import block_topk_decode, paged_decode
    from pallas_kernels.benchmarks._measure import Shape, kernels_s, make_cache, median_s

    shape = Shape(**SHAPE_A)
    cache = make_cache(shape)
    rows = []
    names: list[Any] = [implementation, "xla"]
    for name in dict.fromkeys(names):
        topk: Any = partial(block_topk_decode, num_blocks=shape.num_blocks, implementation=name)
        whole: Any = partial(paged_decode, implementation=name)
        for what, decode, arguments, num_bytes in (
            ("block top-k", topk, cache, shape.topk_bytes),
            ("dense", whole, cache[:3] + cache[4:], shape.dense_bytes),
        ):
            step = jax.jit(decode)
            timed = row(f"{what}, {name}", median_s(step, *arguments), num_bytes, copy_rate)
            rows.append(timed | {"kernels_s": kernels_s(step, *arguments)})
    del cache, arguments
    for name, seconds in peers(asdict(shape)).items():
        num_bytes = shape.dense_bytes if "dense" in name else shape.topk_bytes
        rows.append(row(name, seconds, num_bytes, copy_rate))
    return rows


def peers(shape: dict[str, int]) -> dict[str, float]:
    """Return what the peers take [s] by name, and nothing where they are not installed."""
    if not all(importlib.util.find_spec(name) for name in ("torch", "flashinfer")):
        return {}
    command = [sys.executable, str(Path(__file__).with_name("_peers.py")), json.dumps(shape)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"peers left out: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return {}
    return json.loads(done.stdout.splitlines()[-1])


def grid(kind: str) -> Iterator[tuple[str, Any]]:
    """Yield the geometries with their shapes; `small` keeps what differs most from shape A, one thing at a time."""
    from pallas_kernels.benchmarks._measure import Shape

    for name, (num_kv_heads, group) in GEOMETRIES.items():
        for context, budget, page, batch in itertools.product(CONTEXTS, BUDGETS, PAGES, BATCHES):
            differs = (context != 16_384) + (budget != 1_024) + (page != 16) + (batch != 64)
            if kind == "full" or differs == 0 or (group == 4 and differs == 1):
                yield (
                    name,
                    Shape(
                        batch_size=batch,
                        num_kv_heads=num_kv_heads,
                        group=group,
                        context_len=context,
                        page_len=page,
                        budget_len=budget,
                    ),
                )


def grid_row(name: str, shape: Any, implementation: str, copy_rate: float) -> dict[str, Any]:
    """Time one shape and compare its first sequences with XLA's implementation."""
    import jax

    from pallas_kernels import block_topk_decode
    from pallas_kernels.benchmarks._measure import kernels_s, make_cache, median_s, worst_error

    cache = make_cache(shape)
    topk: Any = partial(block_topk_decode, num_blocks=shape.num_blocks)
    step = jax.jit(partial(topk, implementation=implementation))
    seconds, kernel_seconds = median_s(step, *cache), kernels_s(step, *cache)
    q, *pools, table, lengths = cache
    few = (q[:NUM_COMPARED], *pools, table[:NUM_COMPARED], lengths[:NUM_COMPARED] - 3)
    ours, wanted = (
        jax.jit(partial(topk, implementation=other, return_residuals=True))(*few) for other in (implementation, "xla")
    )
    error, same = worst_error(ours, wanted)
    timed = row(f"{name}, block top-k", seconds, shape.topk_bytes, copy_rate)
    checked = {"worst_error": error, "same_pages": same, "right": error <= TOLERANCE}
    return timed | {"kernels_s": kernel_seconds, "shape": asdict(shape)} | checked


def row(what: str, seconds: float, num_bytes: int, copy_rate: float) -> dict[str, Any]:
    """Return one row with its floor."""
    floor_s = num_bytes / copy_rate
    rate = num_bytes / seconds
    return {"what": what, "seconds": seconds, "floor_s": floor_s, "share": floor_s / seconds, "bytes_per_s": rate}


def text_of(rows: Sequence[dict[str, Any]]) -> str:
    """Return a table of rows."""
    heads = ("us", "kernels us", "floor us", "share")
    lines = [f"{'what':62s} " + " ".join(f"{head:>10s}" for head in heads) + "  same pages, worst error"]
    for entry in rows:
        name = entry["what"]
        if "shape" in entry:
            shape = entry["shape"]
            name += (
                f" {shape['budget_len']} of {shape['context_len']}, page {shape['page_len']}, B={shape['batch_size']}"
            )
        times = [entry["seconds"], entry.get("kernels_s") or float("nan"), entry["floor_s"]]
        line = f"{name:62s} " + " ".join(f"{1e6 * seconds:10.1f}" for seconds in times) + f" {entry['share']:10.1%}"
        lines.append(line + (f"  {entry['same_pages']:.3f} {entry['worst_error']:.1e}" if "shape" in entry else ""))
    return "\n".join(lines)


def commit() -> str | None:
    """Return the commit that was measured; None outside of a repository."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    done = subprocess.run(git, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark, print its table and write it as JSON."""
    parser = argparse.ArgumentParser(description="Time one layer's decode against its byte floor.")
    parser.add_argument("--implementation", default="mosaic_gpu", help="what is timed beside XLA's")
    parser.add_argument("--grid", choices=("none", "small", "full"), default="small")
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks/decode.json"))
    options = parser.parse_args(arguments)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the peers need memory too
    import jax

    from pallas_kernels.benchmarks._measure import copy_bytes_per_s

    copy_rate = copy_bytes_per_s()
    print(f"{jax.devices()[0].device_kind}: copy {copy_rate / 1e9:,.0f} GB/s", flush=True)
    rows = shape_a_rows(options.implementation, copy_rate)
    print(text_of(rows), flush=True)
    for name, shape in [] if options.grid == "none" else grid(options.grid):
        rows.append(grid_row(name, shape, options.implementation, copy_rate))
        print(text_of(rows[-1:]).splitlines()[-1], flush=True)
    report = {
        "benchmark": "decode",
        "device": jax.devices()[0].device_kind,
        "copy_bytes_per_s": copy_rate,
        "versions": {"jax": jax.__version__, "python": platform.python_version()},
        "commit": commit(),
        "rows": rows,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
