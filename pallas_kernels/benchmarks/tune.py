"""Find the best tuning of shapes by trying: `python -m pallas_kernels.benchmarks.tune [--write]`.

Every shape is timed with the formula's tuning and with others; `--write` keeps what beats the formula by 2% or more in
the table that the kernels read (`pallas_kernels/tuned/`, a file a kind of device).
"""

import argparse
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import jax

from pallas_kernels import block_topk_decode, paged_decode
from pallas_kernels._mosaic_gpu_tuning import Tuning, key_of, table_file
from pallas_kernels.benchmarks._measure import make_cache, median_s
from pallas_kernels.benchmarks._shape import Shape

SHAPES = [
    Shape(batch_size=batch, group=group, context_len=context)
    for batch, group, context in ((64, 4, 16_384), (1, 4, 16_384), (16, 8, 32_768))
]
MIN_GAIN = 0.02


def candidates() -> Iterator[Tuning]:
    """Yield the tunings that are tried beside the formula's."""
    for num_stages, num_splits in itertools.product((3, 4, 5), (None, 1, 2, 4)):
        yield Tuning(num_stages=num_stages, num_splits=num_splits)


def best(operation: str, shape: Shape) -> tuple[str, dict[str, int], float, float]:
    """Return the key of a shape, its best settings, and the seconds of the formula and of those settings."""
    q, *pools, means, table, lengths = make_cache(shape)
    arguments = (q, *pools, means, table, lengths) if operation == "block_topk_decode" else (q, *pools, table, lengths)
    num_blocks = shape.num_blocks if operation == "block_topk_decode" else None
    decode: Any = block_topk_decode if num_blocks else paged_decode
    options = {"num_blocks": num_blocks} if num_blocks else {}

    def seconds(tuning: Tuning) -> float:
        step = jax.jit(partial(decode, implementation="mosaic_gpu", tuning=tuning, **options))
        try:
            return median_s(step, *arguments)
        except ValueError:  # more shared memory than there is
            return float("inf")

    formula = seconds(Tuning())
    found = min(((seconds(tuning), tuning) for tuning in candidates()), key=lambda pair: pair[0])
    key = key_of(operation, q, pools[0], table, num_blocks)
    default = asdict(Tuning())
    settings = {name: value for name, value in asdict(found[1]).items() if value != default[name]}
    return key, settings, formula, found[0]


def main(arguments: Sequence[str] | None = None) -> None:
    """Tune the shapes, print what was gained and write it on request."""
    parser = argparse.ArgumentParser(description="Find the best tuning of shapes by trying.")
    parser.add_argument("--write", action="store_true", help="keep what was found in the table of this device")
    options = parser.parse_args(arguments)
    file = table_file(jax.devices()[0].device_kind)
    table = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    for operation, shape in itertools.product(("block_topk_decode", "paged_decode"), SHAPES):
        key, settings, formula_s, best_s = best(operation, shape)
        print(f"{key}: formula {formula_s * 1e6:.1f} us, best {best_s * 1e6:.1f} us with {settings}", flush=True)
        if best_s <= (1 - MIN_GAIN) * formula_s:
            table[key] = settings
    if options.write:
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(table, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        print(f"wrote {file.name}")


if __name__ == "__main__":
    main()
