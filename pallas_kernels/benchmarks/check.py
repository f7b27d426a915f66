"""Hold every shape of the grid to XLA's implementation: `python -m pallas_kernels.benchmarks.check [--processes 14]`.

432 combinations of Qwen3's heads, contexts, budgets, pages and batch sizes, with full pages and with three tokens in
the newest one. The first sequences' pages and outputs must be XLA's, and those of the whole batch must be theirs.
Compiling takes ten times as long as running, so as many processes as there are cores finish in minutes. Nothing is
timed: `decode` does that.
"""

import argparse
import json
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from pallas_kernels.benchmarks._grid import all_shapes
from pallas_kernels.benchmarks._rows import provenance
from pallas_kernels.benchmarks._shape import Shape

POOL_BYTES = 2**30  # of keys, and of values, of each process; all batch sizes read it, and sequences share pages
NUM_COMPARED = 2  # sequences
TOLERANCE = 2e-2


def check_shapes(name: str, shapes: Sequence[Shape], implementation: str) -> list[dict[str, Any]]:
    """Compare the pages and outputs of shapes that differ in their batch alone with XLA's implementation."""
    import jax
    import jax.numpy as jnp

    from pallas_kernels import block_topk_decode
    from pallas_kernels.benchmarks._measure import make_cache, worst_error

    largest = max(shapes, key=lambda shape: shape.batch_size)
    topk: Any = partial(block_topk_decode, num_blocks=largest.num_blocks)
    q, *pools, table, lengths = make_cache(largest, seed=largest.context_len, max_pool_bytes=POOL_BYTES)
    whole = jax.jit(partial(topk, implementation=implementation))
    of_few = [jax.jit(partial(topk, implementation=each, return_residuals=True)) for each in (implementation, "xla")]
    found: dict[int, tuple[list[float], list[float]]] = {shape.batch_size: ([], []) for shape in shapes}
    for shift in (0, largest.page_len - 3):

        def run(step: Any, size: int, shift: int = shift) -> Any:
            return step(q[:size], *pools, table[:size], lengths[:size] - shift)

        got, wanted = (run(step, NUM_COMPARED) for step in of_few)
        error, same = worst_error(got, wanted)
        for size, (errors, same_pages) in found.items():
            compared = min(size, NUM_COMPARED)
            out = run(whole, size)[:compared].astype(jnp.float32)
            errors += [error, float(jnp.abs(out - got.out[:compared].astype(jnp.float32)).max())]
            same_pages.append(same)
    return [
        {"what": name, "shape": asdict(shape)}
        | {"worst_error": max(errors), "same_pages": min(same_pages), "right": max(errors) <= TOLERANCE}
        for shape, (errors, same_pages) in zip(shapes, found.values(), strict=True)
    ]


def check_all(implementation: str, num_processes: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of the grid as they are ready."""
    groups: dict[tuple[str, Shape], list[Shape]] = {}
    for name, shape in all_shapes():  # a group shares most of what it compiles
        groups.setdefault((name, replace(shape, batch_size=1)), []).append(shape)
    with ProcessPoolExecutor(num_processes, multiprocessing.get_context("spawn"), _share_memory) as pool:
        waiting = [pool.submit(check_shapes, name, group, implementation) for (name, _), group in groups.items()]
        for done in as_completed(waiting):
            yield from done.result()


def _share_memory() -> None:
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"


def main(arguments: Sequence[str] | None = None) -> None:
    """Check the grid, print what is wrong and write all of it as JSON; exit with 1 if anything is."""
    parser = argparse.ArgumentParser(description="Hold every shape of the grid to XLA's implementation.")
    parser.add_argument("--implementation", default="mosaic_gpu")
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks/decode_check.json"))
    options = parser.parse_args(arguments)
    _share_memory()
    rows = []
    for entry in check_all(options.implementation, options.processes):
        rows.append(entry)
        if not entry["right"]:
            print(f"WRONG: {entry}", flush=True)
    num_right = sum(entry["right"] for entry in rows)
    print(f"{num_right} of {len(rows)} right, worst error {max(entry['worst_error'] for entry in rows):.1e}")
    report = provenance("decode_check") | {"implementation": options.implementation, "rows": rows}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {options.out}")
    raise SystemExit(num_right < len(rows))


if __name__ == "__main__":
    main()
