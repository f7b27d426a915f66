"""How good is a fitted accuracy surface? Grid points that the fit has not seen, told by the law and by three baselines.

`python benchmarks/surface.py [--method topk] [--json]`

Each inner KV budget of the recorded Kinetics-Mini traces is left out in turn, and every second length of all; the rest
is fitted, and what was left out is scored in mean log likelihood of a trial (`scaling.score_left_out`). The last row of
the first table uses no law: it interpolates each problem's own shares between the neighbouring points. The second table
is the calibration: of the trials that the law gives such a chance, so many are right.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from kinetics_jax.scaling import SurfaceScore, score_left_out
from kinetics_jax.zoo import recorded_tables

METHODS = ("topk", "block_topk")
TOLD_BY = {
    "constant": "one number for all",
    "grid_mean": "means over problems, interpolated",
    "surface": "the surface",
    "problem_mean": "each problem's own shares, interpolated",
}


def score(method: str) -> SurfaceScore:
    return score_left_out([table for table in recorded_tables() if table.attention.startswith(("dense", f"{method}:"))])


def show(scores: dict[str, SurfaceScore]) -> None:
    table = Table(box=SIMPLE, padding=(0, 0))
    table.add_column("log likelihood of a trial [nats]")
    for method, found in scores.items():
        table.add_column(f"{method} ({found.num_points} points)", justify="right")
    for field, name in TOLD_BY.items():
        table.add_row(name, *(f"{getattr(found, field):.3f}" for found in scores.values()))
    Console().print(table)
    table = Table(box=SIMPLE, padding=(0, 0))
    table.add_column("the law says")
    for method in scores:
        table.add_column(f"{method}: said", justify="right")
        table.add_column("measured", justify="right")
        table.add_column("trials", justify="right")
    for tenth in range(10):
        cells = [
            (f"{found.predicted[tenth]:.3f}", f"{found.measured[tenth]:.3f}", f"{found.num_trials[tenth]:,.0f}")
            for found in scores.values()
        ]
        table.add_row(f"{tenth / 10:.1f} to {(tenth + 1) / 10:.1f}", *(cell for row in cells for cell in row))
    Console().print(table)
    for method, found in scores.items():
        miss = np.abs(found.measured - found.predicted)
        mean = np.average(miss, weights=found.num_trials)
        print(f"{method}: off by {100 * mean:.1f} points on average, {100 * miss.max():.1f} at most")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Score the fitted surface on grid points that it has not seen.")
    parser.add_argument("--method", choices=METHODS, action="append", help="attention method; repeat for both")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the tables")
    options = parser.parse_args(arguments)
    scores = {method: score(method) for method in options.method or METHODS}
    if options.json:
        plain = {
            method: {name: np.asarray(value).tolist() for name, value in asdict(found).items()}
            for method, found in scores.items()
        }
        print(json.dumps(plain, indent=2))
    else:
        show(scores)


if __name__ == "__main__":
    main()
