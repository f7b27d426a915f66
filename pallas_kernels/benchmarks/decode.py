"""Time one layer's decode against its byte floor: `python -m pallas_kernels.benchmarks.decode [--grid none]`.

    shape A          64 sequences, 8 KV heads of 4 query heads, width 128, context 16,384, pages of 16, budget 1,024
    grid "small"     the shapes that differ from it in one thing: heads, context, budget, page or batch size
    grid "serving"   short contexts and odd batches, dense too: where launches and rounds count

Several `--implementation` are timed in turn: what `_dispatch` chooses between on Hopper. With `--kv-dtype int8` or
`float8_e4m3fn` all are of quantised pages, with a bfloat16 scale for each vector.

Floors: the bytes that must be read (page means and selected pages, or all pages), at the rate of a copy measured in
the same run. Peers in the same run: XLA's implementation and, where torch and flashinfer can be imported, FlashInfer
and the paper's recipe. Times are a synchronised clock around a hundred calls, launches included, the median of twenty
runs; `kernels us` is what the device's own events say of the kernels alone. Whether results are right, `check` says.
Leaves out whole models: `benchmarks/` has those.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pallas_kernels.benchmarks._grid import serving_shapes, shapes_around
from pallas_kernels.benchmarks._rows import provenance, row, summary_of, text_of
from pallas_kernels.benchmarks._shape import Shape

SHAPE_A = Shape(batch_size=64)
LEAST_FLOOR_S, TARGET = 50e-6, 0.75
"""Rows of the grid with a larger floor are counted against the target."""


def shape_a_rows(implementations: Sequence[Any], shape: Shape, copy_rate: float) -> list[dict[str, Any]]:
    """Return the rows of shape A: ours, XLA's and, of bfloat16 pages, the peers."""
    from pallas_kernels.benchmarks._measure import dense_step, kernels_s, make_cache, median_s, topk_step

    cache = make_cache(shape)
    rows = []
    for name in dict.fromkeys([*implementations, "xla"]):
        for what, step, num_bytes in (
            ("block top-k", topk_step(shape, name), shape.topk_bytes),
            ("dense", dense_step(name), shape.dense_bytes),
        ):
            seconds = median_s(step, *cache)
            rows.append(row(f"{what}, {name}", seconds, num_bytes, copy_rate, kernels_s(step, *cache)))
    del cache
    for name, seconds in (peers(asdict(shape)) if shape.kv_dtype == "bfloat16" else {}).items():
        num_bytes = shape.dense_bytes if "dense" in name else shape.topk_bytes
        rows.append(row(name, seconds, num_bytes, copy_rate))
    return rows


def peers(shape: dict[str, Any]) -> dict[str, float]:
    """Return what the peers take [s] by name, and nothing where they are not installed."""
    if not all(importlib.util.find_spec(name) for name in ("torch", "flashinfer")):
        return {}
    command = [sys.executable, str(Path(__file__).with_name("_peers.py")), json.dumps(shape)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"peers left out: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return {}
    return json.loads(done.stdout.splitlines()[-1])


def grid_rows(
    implementations: Sequence[Any], shapes: Sequence[tuple[str, Shape]], copy_rate: float, *, with_dense: bool
) -> list[dict[str, Any]]:
    """Return the rows of these shapes, all compiled before the first is timed."""
    import jax

    from pallas_kernels.benchmarks._measure import cache_maker, dense_step, kernels_s, median_s, topk_step

    def steps_of(shape: Shape) -> list[tuple[str, Any, int]]:
        selects = shape.num_blocks < shape.max_pages
        topk = [(f"block top-k, {name}", topk_step(shape, name), shape.topk_bytes) for name in implementations]
        dense = [(f"dense, {name}", dense_step(name), shape.dense_bytes) for name in implementations]
        return (topk if selects else []) + (dense if with_dense else [])

    def compiled(shape: Shape) -> tuple[Any, list[tuple[str, Any, int]]]:
        make, key = cache_maker(shape), jax.random.key(0)
        shapes_of_cache = jax.eval_shape(make, key)
        steps = [(what, step.lower(*shapes_of_cache).compile(), num_bytes) for what, step, num_bytes in steps_of(shape)]
        return make.lower(key).compile(), steps

    with ThreadPoolExecutor() as pool:
        programs = list(pool.map(compiled, [shape for _, shape in shapes]))
    rows = []
    for (name, shape), (make, steps) in zip(shapes, programs, strict=True):
        cache = make(jax.random.key(0))
        for what, step, num_bytes in steps:
            seconds, kernels = median_s(step, *cache), kernels_s(step, *cache)
            entry = row(f"{name}, {what}", seconds, num_bytes, copy_rate, kernels) | {"shape": asdict(shape)}
            print(text_of([entry], head=False), flush=True)
            rows.append(entry)
        del cache
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark, print its table and write it as JSON."""
    parser = argparse.ArgumentParser(description="Time one layer's decode against its byte floor.")
    parser.add_argument("--implementation", action="append", help="what is timed beside XLA's; repeat for more")
    parser.add_argument("--grid", choices=("none", "small", "serving"), default="small")
    kv_dtypes = ("bfloat16", "int8", "float8_e4m3fn")
    parser.add_argument("--kv-dtype", choices=kv_dtypes, default="bfloat16", help="what the pages hold")
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks/decode.json"))
    options = parser.parse_args(arguments)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the peers need memory too
    import jax

    from pallas_kernels.benchmarks._measure import copy_bytes_per_s

    copy_rate = copy_bytes_per_s()
    print(f"{jax.devices()[0].device_kind}: copy {copy_rate / 1e9:,.0f} GB/s", flush=True)
    shape = replace(SHAPE_A, kv_dtype=options.kv_dtype)
    implementations = options.implementation or ["mosaic_gpu"]
    rows = shape_a_rows(implementations, shape, copy_rate)
    print(text_of(rows), flush=True)
    if options.grid != "none":
        is_serving = options.grid == "serving"
        shapes = list(serving_shapes(shape.kv_dtype) if is_serving else shapes_around(shape))
        of_grid = grid_rows(implementations, shapes, copy_rate, with_dense=is_serving)
        print(summary_of(of_grid, least_floor_s=LEAST_FLOOR_S, target=TARGET))
        rows += of_grid
    report = provenance("decode") | {"copy_bytes_per_s": copy_rate, "rows": rows}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
