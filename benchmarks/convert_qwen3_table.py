"""The table of `convert_qwen3.py`: what was measured, what is wanted, and whether it is met."""

from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from kinetics_jax.specs import ModelSpec

MAX_GROWTH_BYTES, MIN_RATE_SHARE = 512e6, 0.7
FLOAT32_TOLERANCE, ROUNDED_TOLERANCE = 1e-4, 0.02
"""The largest error in float32 and the mean error in bfloat16 or int8, as shares of the largest logit."""


def rows_of(results: dict[str, dict[str, Any]]) -> list[tuple[str, str, str, bool | None]]:
    """Return (what, measured, wanted, met) for the table; met is None where nothing is asked."""
    num_bytes, disk_s = results["make"]["bytes"], results["read"]["disk_s"]
    disk_rate = num_bytes / disk_s
    slower_rate = min(disk_rate, num_bytes / results["write"]["disk_s"])
    rows: list[tuple[str, str, str, bool | None]] = [
        ("read from disk", f"{disk_rate / 1e6:,.0f} MB/s", "", None),
        ("read from page cache", f"{num_bytes / results['read']['cache_s'] / 1e6:,.0f} MB/s", "", None),
        ("write to disk", f"{num_bytes / results['write']['disk_s'] / 1e6:,.0f} MB/s", "", None),
    ]
    for step in ("convert", "convert_int8"):
        result = results[step]
        rate = num_bytes / result["seconds"]
        limit = result["largest_tensor_bytes"] + MAX_GROWTH_BYTES
        rows += [
            (
                step.replace("_", " "),
                f"{rate / 1e6:,.0f} MB/s, {result['seconds']:.1f} s",
                f">= {MIN_RATE_SHARE:.0%} of the disk" if step == "convert" else "",
                rate >= MIN_RATE_SHARE * disk_rate if step == "convert" else None,
            ),
            ("  of the slower of reading and writing", f"{rate / slower_rate:.0%}", "", None),
            (
                "  host memory: growth, peak",
                f"{result['grown_bytes'] / 1e6:,.0f} MB, {result['peak_rss_bytes'] / 1e6:,.0f} MB",
                f"growth <= {limit / 1e6:,.0f} MB",
                result["grown_bytes"] <= limit,
            ),
            ("  on disk", f"{result['target_bytes'] / num_bytes:.2f} of the source", "", None),
        ]
    loaded = results["run"]
    rows.append(
        (
            "load",
            f"{num_bytes / loaded['load_s'] / 1e6:,.0f} MB/s, {loaded['load_s']:.1f} s",
            f"onto {loaded['device']}",
            None,
        )
    )
    for name, error in (loaded["errors"] | results["mesh"].get("errors", {})).items():
        rows.append(logit_row(name, error, loaded["largest_logit"]))
    if results["mesh"]["num_devices"] < 2:
        rows.append(("2 devices", "not here", "", None))
    exported = results["export"]
    rows.append(("export", f"{num_bytes / exported['seconds'] / 1e6:,.0f} MB/s", "bit-equal", exported["bit_equal"]))
    return rows


def logit_row(name: str, error: dict[str, Any], largest: float) -> tuple[str, str, str, bool | None]:
    is_float32 = name.startswith("float32")
    tolerance = FLOAT32_TOLERANCE if is_float32 else ROUNDED_TOLERANCE
    met = error["max_abs" if is_float32 else "mean_abs"] <= tolerance * largest
    return (
        f"logits, {name}",
        f"max {error['max_abs'] / largest:.1e}, mean {error['mean_abs'] / largest:.1e}, "
        f"KL {error['kl_nats']:.1e}, top-1 {error['top1_agreement']:.0%}",
        f"{'max' if is_float32 else 'mean'} <= {tolerance:.0e}",
        None if name.startswith("transformers") else met,
    )


def show(spec: ModelSpec, num_bytes: int, rows: list[tuple[str, str, str, bool | None]]) -> None:
    title = f"{spec.name}, {num_bytes / 1e9:.2f} GB of random bfloat16 weights; logit errors as shares of the largest"
    table = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 1))
    for column in ("what", "measured", "wanted", "met"):
        table.add_column(column)
    for what, measured, wanted, met in rows:
        table.add_row(what, measured, wanted, "" if met is None else "yes" if met else "NO")
    Console(width=140).print(table)
