"""Find the best tuning of shapes by trying: `python -m pallas_kernels.benchmarks.tune [--write]`.

Every shape that Mosaic GPU runs first is timed with the formula's tuning and with others; `--write` keeps what beats
the formula by 2% or more in the table that the kernels read (`pallas_kernels/tuned/`, a file a kind of device).
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import jax

from pallas_kernels._mosaic_gpu_tuning import Tuning, key_of, table_file
from pallas_kernels.benchmarks._measure import cache_maker, dense_step, median_s, topk_step
from pallas_kernels.benchmarks._shape import Shape

_TOPK, _DENSE = "block_topk_decode", "paged_decode"
_SHAPE_A = Shape(batch_size=64)
SHAPES = [(_TOPK, _SHAPE_A)] + [
    (operation, replace(_SHAPE_A, kv_dtype=kv_dtype))
    for kv_dtype in ("int8", "float8_e4m3fn")
    for operation in (_TOPK, _DENSE)
]
MIN_GAIN = 0.02


def candidates(operation: str) -> Iterator[Tuning]:
    """Yield the formula's tuning, then those that are tried beside it."""
    yield Tuning()
    yield from (Tuning(num_stages=num_stages) for num_stages in (2, 3, 4))
    if operation == _TOPK:
        yield from (Tuning(num_pages_in_flight=num_pages) for num_pages in (8, 32))


def timed(operation: str, shape: Shape) -> list[tuple[float, Tuning]]:
    """Return the seconds of each candidate that can run, the formula's first."""
    make, key = cache_maker(shape), jax.random.key(0)
    shapes = jax.eval_shape(make, key)

    def compiled(tuning: Tuning) -> Any:
        step = (partial(topk_step, shape) if operation == _TOPK else dense_step)("mosaic_gpu", tuning)
        try:
            return step.lower(*shapes).compile()
        except ValueError:  # more shared memory than there is
            return None

    with ThreadPoolExecutor() as pool:
        tunings = list(candidates(operation))
        steps = list(zip(pool.map(compiled, tunings), tunings, strict=True))
    cache = make(key)
    return [(median_s(step, *cache), tuning) for step, tuning in steps if step is not None]


def settings_of(tuning: Tuning) -> dict[str, int]:
    """Return what a tuning says that the formula does not."""
    default = asdict(Tuning())
    return {name: value for name, value in asdict(tuning).items() if value != default[name]}


def name_of(operation: str, shape: Shape) -> str:
    """Return the name of a shape in the table."""
    names = []

    def note(key: jax.Array) -> None:
        q, key_pages, _, _, page_table, *_ = cache_maker(shape)(key)
        names.append(key_of(operation, q, key_pages, page_table, shape.num_blocks if operation == _TOPK else None))

    jax.eval_shape(note, jax.random.key(0))
    return names[0]


def main(arguments: Sequence[str] | None = None) -> None:
    """Tune the shapes, print what was gained and write it on request."""
    parser = argparse.ArgumentParser(description="Find the best tuning of shapes by trying.")
    parser.add_argument("--write", action="store_true", help="keep what was found in the table of this device")
    options = parser.parse_args(arguments)
    file = table_file(jax.devices()[0].device_kind)
    table = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    for operation, shape in SHAPES:
        times = timed(operation, shape)
        (formula_s, _), (best_s, best) = times[0], min(times, key=lambda pair: pair[0])
        name = name_of(operation, shape)
        print(f"{name}: formula {formula_s * 1e6:.1f} us, best {best_s * 1e6:.1f} us with {settings_of(best)}")
        for seconds, tuning in times[1:]:
            print(f"    {seconds * 1e6:.1f} us {settings_of(tuning)}", flush=True)
        table.pop(name, None)
        if best_s <= (1 - MIN_GAIN) * formula_s:
            table[name] = settings_of(best)
    if options.write:
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(table, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        print(f"wrote {file.name}")


if __name__ == "__main__":
    main()
