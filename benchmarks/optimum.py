"""Is the continuous optimum the best there is? Beside a fine grid on the fitted law, by the number of starts.

`python benchmarks/optimum.py [--caps 200] [--starts 3 --starts 4 --starts 8]`

Accuracy is not concave: climbs from a few starts may all miss the best optimum. The law is fitted to the recorded
top-k traces, 41 lengths x 33 numbers of trials x 45 KV budgets are its grid, in the box that was recorded. A miss is a
cap at which a point of the grid is better by more than a millionth.
"""

import argparse
from collections.abc import Sequence

import jax
import numpy as np

from kinetics_jax.scaling import (
    AccuracySurface,
    Bounds,
    fit_accuracy_surface,
    grid_optimum,
    optimal_allocation,
    request_price,
)
from kinetics_jax.specs import HARDWARE, MODELS
from kinetics_jax.zoo import recorded_tables

PROMPT_LEN = 294.0
BOX = Bounds(gen_len=(8.0, 256.0), num_trials=(1.0, 16.0), budget_len=(16.0, None))
LENS, TRIALS, BUDGETS = (np.geomspace(*ends).tolist() for ends in ((8, 256, 41), (1, 16, 33), (16, 540, 45)))


def ahead_of_optimum(law: AccuracySurface, model: str, caps: np.ndarray, num_starts: int) -> np.ndarray:
    """Return by how much the best point of the grid is better at each cap."""
    price = request_price(MODELS[model], "topk", HARDWARE["H100-SXM"], prompt_len=PROMPT_LEN)
    best = optimal_allocation(law, price, caps, bounds=BOX, num_starts=num_starts)
    grid = grid_optimum(law, price, caps, gen_lens=LENS, num_trials=TRIALS, budget_lens=BUDGETS)
    # The grid has budgets beyond the context, which the optimum may not have.
    is_inside = grid.setting.budget_len <= PROMPT_LEN + grid.setting.gen_len
    return np.where(is_inside, grid.accuracy - np.asarray(best.accuracy), -np.inf)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Count where a fine grid beats the continuous optimum.")
    parser.add_argument("--caps", type=int, default=200, help="caps a model, from 5e8 to 3e11 eFLOPs")
    parser.add_argument("--starts", type=int, action="append", help="numbers of starts; repeat for more")
    options = parser.parse_args(arguments)
    with jax.enable_x64(True):
        tables = [table for table in recorded_tables() if table.attention.startswith(("dense", "topk"))]
        surface, caps = fit_accuracy_surface(tables, num_steps=150), np.geomspace(5e8, 3e11, options.caps)
        for num_starts in options.starts or (3, 4, 8):
            for model in surface.models:
                ahead = ahead_of_optimum(surface.of_model(model), model, caps, num_starts)
                misses, worst = int((ahead > 1e-6).sum()), max(0.0, 100 * float(ahead.max()))
                print(f"{num_starts} starts, {model}: {misses} of {caps.size} missed, by {worst:.1f} points at most")


if __name__ == "__main__":
    main()
