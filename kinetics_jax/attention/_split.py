"""How work on a cache is split over a mesh: each device runs it on the KV heads, and the page group, that it holds.

XLA does not see that a gather of pages leaves KV heads apart, and would bring the whole pool to every device.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
from jax.sharding import Mesh, PartitionSpec

from ._cache import PagedCache, cache_of_leaves
from ._mesh import DATA_AXIS, MODEL_AXIS, kv_head_axis

Cut = Literal["cache", "heads", "rows", "whole"]
"""How an argument of `split_over_mesh` is cut."""


def split_over_mesh(
    function: Callable[..., Any],
    mesh: Mesh,
    cache: PagedCache,
    inputs: tuple[Cut, ...],
    output: Cut | tuple[Cut, ...],
) -> Callable[..., Any]:
    """Return the function run on what each device holds of a cache: its KV heads, and its page group where there are.

    Without page groups a data axis of more than one place stays with XLA.

    Args:
        function: Takes and returns parts.
        mesh: Has the axes "data" and "model".
        cache: The cache, for its geometry.
        inputs: How each argument is cut: "cache", "heads" [B, ..., heads, H], "rows" [B, ...], or "whole".
        output: How the result is cut, or each of several.
    """
    heads = kv_head_axis(mesh, cache.key_pages.shape[2])
    rows = DATA_AXIS if cache.num_page_groups > 1 else None
    if rows and cache.num_page_groups != mesh.shape[DATA_AXIS]:
        raise ValueError(
            f"page groups must be the places on the data axis; got {cache.num_page_groups} groups, {mesh.shape}"
        )
    pool, table = PartitionSpec(None, rows, heads), PartitionSpec(rows)
    leaves = dict.fromkeys(("key_pages", "value_pages", "key_means"), pool) | {"page_table": table, "lengths": table}
    specs: dict[Cut, Any] = {
        "cache": cache_of_leaves(cache, **leaves),
        "rows": table,
        "whole": PartitionSpec(),
    }

    def run(*arguments: Any) -> Any:
        # Heads come last but one: [B, N, H] of a step, [B, T, N, H] of a chunk.
        num_axes = [each.ndim for each, cut in zip(arguments, inputs, strict=True) if cut == "heads"]
        here = specs | {"heads": PartitionSpec(rows, *[None] * (max(num_axes, default=3) - 3), heads)}
        wanted = tuple(here[cut] for cut in inputs)
        results = here[output] if isinstance(output, str) else tuple(here[cut] for cut in output)
        # A device alone with all that it needs can run a kernel; XLA can divide none.
        is_alone = rows is not None or mesh.shape[DATA_AXIS] == 1
        axes = {DATA_AXIS, MODEL_AXIS} if is_alone else {MODEL_AXIS}
        local = jax.shard_map(
            function, mesh=mesh, in_specs=wanted, out_specs=results, axis_names=axes, check_vma=not is_alone
        )
        return local(*arguments)

    return run
