"""Hold every shape of the grid to XLA's implementation: `python -m pallas_kernels.benchmarks.check [--processes 14]`.

432 combinations of Qwen3's heads, contexts, budgets, pages and batch sizes. Each runs whole and on its first sequences,
with full pages and with three tokens in the newest one; pages and outputs must be XLA's. Compiling takes ten times as
long as running, so as many processes as there are cores finish in minutes. Nothing is timed: `decode` does that.
"""

import argparse
import json
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from pallas_kernels.benchmarks._grid import all_shapes
from pallas_kernels.benchmarks._rows import provenance
from pallas_kernels.benchmarks._shape import Shape

POOL_BYTES = 2**30  # of keys, and of values, of each process; sequences share pages beyond
NUM_COMPARED = 2  # sequences
TOLERANCE = 2e-2


def check_shape(name: str, shape: Shape, implementation: str) -> dict[str, Any]:
    """Compare the pages and outputs of one shape with XLA's implementation."""
    import jax
    import jax.numpy as jnp

    from pallas_kernels import block_topk_decode
    from pallas_kernels.benchmarks._measure import make_cache, worst_error

    topk: Any = partial(block_topk_decode, num_blocks=shape.num_blocks)
    *cache, lengths = make_cache(shape, seed=shape.context_len + shape.batch_size, max_pool_bytes=POOL_BYTES)

    def of_few(other: str) -> Any:
        def run(q: Any, keys: Any, values: Any, means: Any, table: Any, lengths: Any) -> Any:
            few = q[:NUM_COMPARED], keys, values, means, table[:NUM_COMPARED], lengths[:NUM_COMPARED]
            return topk(*few, implementation=other, return_residuals=True)

        return jax.jit(run)

    whole, ours, xla = jax.jit(partial(topk, implementation=implementation)), of_few(implementation), of_few("xla")
    errors, same_pages = [], []
    for shift in (0, shape.page_len - 3):
        got, wanted = (few(*cache, lengths - shift) for few in (ours, xla))
        error, same = worst_error(got, wanted)
        out = whole(*cache, lengths - shift)[:NUM_COMPARED].astype(jnp.float32)
        errors += [error, float(jnp.abs(out - got.out.astype(jnp.float32)).max())]
        same_pages.append(same)
    checked = {"worst_error": max(errors), "same_pages": min(same_pages), "right": max(errors) <= TOLERANCE}
    return {"what": name, "shape": asdict(shape)} | checked


def check_all(implementation: str, num_processes: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of the grid as they are ready."""
    with ProcessPoolExecutor(num_processes, multiprocessing.get_context("spawn"), _share_memory) as pool:
        waiting = [pool.submit(check_shape, name, shape, implementation) for name, shape in all_shapes()]
        for done in as_completed(waiting):
            yield done.result()


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
