"""Every Qwen3 geometry with contexts, budgets, pages and batch sizes.

`check` holds all of them to XLA's implementation; `decode` times those that differ from its shape A in one thing.
"""

import itertools
from collections.abc import Iterator
from dataclasses import replace

from pallas_kernels.benchmarks._shape import Shape

GEOMETRIES = {"Qwen3-0.6B, 1.7B": (8, 2), "Qwen3-4B, 8B": (8, 4), "Qwen3-14B": (8, 5), "Qwen3-32B": (8, 8)}
CONTEXTS, BUDGETS, PAGES, BATCHES = (4_096, 16_384, 65_536), (256, 1_024, 4_096), (16, 32, 64), (1, 16, 64, 256)


def all_shapes() -> Iterator[tuple[str, Shape]]:
    """Yield every combination with the models that have its heads."""
    for name, (num_kv_heads, group) in GEOMETRIES.items():
        for context, budget, page, batch in itertools.product(CONTEXTS, BUDGETS, PAGES, BATCHES):
            yield (
                name,
                Shape(
                    num_kv_heads=num_kv_heads,
                    group=group,
                    batch_size=batch,
                    context_len=context,
                    page_len=page,
                    budget_len=budget,
                ),
            )


def shapes_around(centre: Shape) -> Iterator[tuple[str, Shape]]:
    """Yield the combinations that differ from one shape in one thing at most, or in their heads."""
    for name, shape in all_shapes():
        sizes = ("context_len", "budget_len", "page_len", "batch_size")
        num_others = sum(getattr(shape, size) != getattr(centre, size) for size in sizes)
        if num_others == 0 or (num_others == 1 and shape.group == centre.group):
            yield name, replace(shape, kv_dtype=centre.kv_dtype)


_SERVED = (
    (1, 16_384),
    (8, 4_096),
    (8, 32_768),
    (17, 16_384),
    (32, 512),
    (32, 1_024),
    (32, 4_096),
    (68, 4_096),
    (128, 2_048),
)


def serving_shapes(kv_dtype: str) -> Iterator[tuple[str, Shape]]:
    """Yield steps of microseconds: fixed times count, and so does how rows fill rounds of multiprocessors."""
    for name, (num_kv_heads, group) in list(GEOMETRIES.items())[:2]:
        for batch, context in _SERVED:
            sizes = {"num_kv_heads": num_kv_heads, "group": group, "batch_size": batch, "context_len": context}
            yield name, Shape(**sizes, kv_dtype=kv_dtype)
