"""The rows of the benchmark's table: what was timed, beside the least time its bytes need."""

import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def row(
    what: str, seconds: float, num_bytes: int, copy_rate: float, kernels: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """Return one row with its floor; `kernels` are the seconds of each kernel by the device's events."""
    floor_s = num_bytes / copy_rate
    timed = {"what": what, "seconds": seconds, "floor_s": floor_s, "share": floor_s / seconds}
    timed["bytes_per_s"] = num_bytes / seconds
    return timed if kernels is None else timed | {"kernels_s": sum(kernels.values()), "kernels": dict(kernels)}


def text_of(rows: Sequence[dict[str, Any]], *, head: bool = True) -> str:
    """Return a table of rows."""
    heads = ("us", "kernels us", "floor us", "share")
    lines = (
        [f"{'what':62s} " + " ".join(f"{name:>10s}" for name in heads) + "  same pages, worst error"] if head else []
    )
    for entry in rows:
        name = entry["what"]
        if "shape" in entry:
            shape = entry["shape"]
            name += (
                f" {shape['budget_len']} of {shape['context_len']}, page {shape['page_len']}, B={shape['batch_size']}"
            )
        times = [entry["seconds"], entry.get("kernels_s") or float("nan"), entry["floor_s"]]
        line = f"{name:62s} " + " ".join(f"{1e6 * seconds:10.1f}" for seconds in times) + f" {entry['share']:10.1%}"
        if "kernels" in entry:
            line += "  " + ", ".join(f"{kernel} {1e6 * seconds:.1f}" for kernel, seconds in entry["kernels"].items())
        lines.append(line)
    return "\n".join(lines)


def summary_of(rows: Sequence[dict[str, Any]], *, least_floor_s: float, target: float) -> str:
    """Say how many rows come near their floors, of those with a floor worth it."""
    worth = [entry for entry in rows if entry["floor_s"] > least_floor_s]
    met = [entry for entry in worth if entry["share"] >= target]
    by_kernels = [entry for entry in worth if entry["floor_s"] >= target * (entry.get("kernels_s") or float("inf"))]
    return (
        f"{len(met)} of {len(worth)} shapes with a floor over {1e6 * least_floor_s:.0f} us reach {target:.0%} of it, "
        f"{len(by_kernels)} by the kernels' time"
    )


def provenance(benchmark: str) -> dict[str, Any]:
    """Return what was measured where: device, versions and commit."""
    import jax

    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    done = subprocess.run(git, capture_output=True, text=True, check=False)
    return {
        "benchmark": benchmark,
        "device": jax.devices()[0].device_kind,
        "versions": {"jax": jax.__version__, "python": platform.python_version()},
        "commit": done.stdout.strip() or None,
    }
