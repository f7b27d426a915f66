"""Decodes under `shard_map`, for a process with 8 simulated devices: `tests/models/sharded_checks.py` calls them.

Over KV heads nothing is communicated; over shards of the sequence partial results merge by log-sum-exp.
"""

import re
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec

from pallas_kernels import DecodeResult, block_topk_decode, merge_partials, paged_decode
from tests.kernels.cases import Case, Layout, make_case

COLLECTIVES = r"= \S+ (?:all-|collective|reduce-scatter|ragged)[a-z-]*"
PAGE_LEN, NUM_SHARDS = 4, 8


def check_heads() -> dict[str, Any]:
    """Cut the KV heads over all devices: each selects and reads its own."""
    case = make_case([5, 24, 17], Layout(PAGE_LEN, NUM_SHARDS, 2, 8, "float32"))
    mesh = jax.make_mesh((NUM_SHARDS,), ("model",))
    heads, rest = PartitionSpec(None, "model"), PartitionSpec()
    specs = Case(heads, heads, heads, heads, heads, rest, rest).arguments("block_topk_decode")

    def decode(*arguments: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(block_topk_decode(*arguments, num_blocks=3, return_residuals=True))

    arguments = case.arguments("block_topk_decode")
    split = jax.shard_map(decode, mesh=mesh, in_specs=specs, out_specs=(heads,) * 3)
    placed = [jax.device_put(a, jax.NamedSharding(mesh, spec)) for a, spec in zip(arguments, specs, strict=True)]
    compiled = jax.jit(split).lower(*placed).compile()
    got, wanted = compiled(*placed), jax.jit(decode)(*arguments)
    return {
        "difference": float(max(np.abs(np.asarray(a) - np.asarray(b)).max() for a, b in zip(got, wanted, strict=True))),
        "collectives": re.findall(COLLECTIVES, compiled.as_text() or ""),
    }


def check_sequence() -> dict[str, Any]:
    """Deal the pages of each sequence to the devices in turn; one holds the tail, some hold nothing."""
    lengths = [0, 3, 21, 64, 40]
    case = make_case(lengths, Layout(PAGE_LEN, 2, 3, 8, "float32"), max_pages=16)
    num_pages = np.arange(16).reshape(2, NUM_SHARDS).T  # [X, pages of a shard]
    table = np.asarray(case.page_table)[:, num_pages].swapaxes(0, 1)  # [X, B, 2]
    held = np.clip(np.array(lengths)[:, None] - np.arange(16) * PAGE_LEN, 0, PAGE_LEN)
    shard_lengths = held[:, num_pages].sum(axis=2).T  # [X, B]

    def decode(table: jax.Array, shard_lengths: jax.Array) -> DecodeResult:
        pools = (case.q, case.key_pages, case.value_pages)
        part = paged_decode(*pools, table[0], shard_lengths[0], return_residuals=True)
        return merge_partials(jax.lax.all_gather(part.out, "data"), jax.lax.all_gather(part.lse, "data"))

    mesh = jax.make_mesh((NUM_SHARDS,), ("data",))
    shards, rest = PartitionSpec("data"), PartitionSpec()
    # Every device merges alike; that is not for `check_vma` to see.
    split = jax.shard_map(decode, mesh=mesh, in_specs=(shards, shards), out_specs=rest, check_vma=False)
    places = jax.NamedSharding(mesh, shards)
    placed = [jax.device_put(array.astype("int32"), places) for array in (table, shard_lengths)]
    compiled = jax.jit(split).lower(*placed).compile()
    out, lse = compiled(*placed)
    whole = jax.jit(lambda *a: paged_decode(*a, return_residuals=True))(*case.arguments("paged_decode"))
    read = np.asarray(whole.lse) > -np.inf
    return {
        "difference": float(np.abs(np.asarray(out) - np.asarray(whole.out)).max()),
        "lse": float(np.abs(np.asarray(lse)[read] - np.asarray(whole.lse)[read]).max()),
        "communicates": bool(re.search(COLLECTIVES, compiled.as_text() or "")),
        "nothing_read": np.asarray(lse)[~read].tolist(),
    }
