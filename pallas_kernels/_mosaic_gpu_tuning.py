"""How the work is laid out on a GPU: by formula, or as `pallas_kernels.benchmarks.tune` found best on a kind of device.

tuned/nvidia_h100_80gb_hbm3.json    {"block_topk_decode B=64 K=8 G=4 H=128 P=16 M=1024 J=64": {"num_stages": 5}}
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import jax
from jaxtyping import Array, Float, Int, Real

from ._quantise import is_quantised

FOLDER = Path(__file__).with_name("tuned")


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """Say how the work is laid out on the GPU; None is chosen by formula.

    Attributes:
        num_splits: Parts into which the pages of one sequence and KV head are cut, merged by log-sum-exp.
        num_stages: Tiles of 64 tokens (128 of 8 bits) that are on their way into shared memory at a time.
        num_ctas: Thread blocks, which stay and take one part after another; one fits on a multiprocessor.
        num_pages_in_flight: Pages whose means one warpgroup loads before it multiplies the first.
    """

    num_splits: int | None = None
    num_stages: int | None = None
    num_ctas: int | None = None
    num_pages_in_flight: int = 16


def tuned(
    operation: str,
    q: Float[Array, "B N H"],
    key_pages: Real[Array, "R K P H"],
    page_table: Int[Array, "B M"],
    num_blocks: int | None,
) -> Tuning:
    """Return what was found best for these sizes on this kind of device, or a tuning that leaves all to the formula."""
    devices = jax.local_devices()
    if devices[0].platform != "gpu":
        return Tuning()
    return Tuning(**_table(devices[0].device_kind).get(key_of(operation, q, key_pages, page_table, num_blocks), {}))


def key_of(
    operation: str,
    q: Float[Array, "B N H"],
    key_pages: Real[Array, "R K P H"],
    page_table: Int[Array, "B M"],
    num_blocks: int | None,
) -> str:
    """Return the name of these sizes in a table of tunings."""
    num_kv_heads, page_len, head_dim = key_pages.shape[1:]
    sizes = f"B={q.shape[0]} K={num_kv_heads} G={q.shape[1] // num_kv_heads} H={head_dim} P={page_len}"
    read = "" if num_blocks is None else f" J={num_blocks}"
    kind = f" {key_pages.dtype}" if is_quantised(key_pages) else ""
    return f"{operation} {sizes} M={page_table.shape[1]}{read}{kind}"


def table_file(device_kind: str) -> Path:
    """Return the table of a kind of device; it need not exist."""
    return FOLDER / f"{device_kind.lower().replace(' ', '_')}.json"


@lru_cache
def _table(device_kind: str) -> dict[str, dict[str, int]]:
    file = table_file(device_kind)
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
