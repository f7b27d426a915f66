"""How the optimum moves with the chip: the cheapest setting by each price, the best model by intensity."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from ._kkt import Bounds
from ._lanes import cheapest_lanes, solve_lanes, stack
from ._optimum import Optimum, cheapest_price, require_affordable, require_reachable
from ._price import RequestPrice
from ._setting import Surface
from ._surface import AccuracySurface


def cheapest_by_chip(
    surface: Surface, prices: Mapping[str, RequestPrice], accuracy: float, *, bounds: Bounds
) -> dict[str, Optimum]:
    """Return the cheapest way to an accuracy by each price: what moves when the chip or the batch changes.

    eFLOPs of two chips are different money, so that optima are compared at equal accuracy.

    Args:
        surface: Law of one model.
        prices: Prices of that model by name, of one method (`request_price` with another chip or `batch_size`).
        accuracy: The accuracy to reach.
        bounds: As for `minimal_cost`.

    Returns:
        The optimum by name.

    Raises:
        ValueError: As `minimal_cost`.

    References:
        PAPER.md section 8 (local deployment, which the paper leaves out).
    """
    for price in prices.values():
        require_reachable(surface, price, accuracy, bounds)
    first = next(iter(prices.values()))
    # An intensity is all that eFLOPs know of a chip: with one peak for all, lanes share a program. Latencies differ.
    same = [replace(price, hardware=first.hardware) for price in prices.values()]
    groups = [same] if bounds.latency_s is None else [[price] for price in prices.values()]
    optima: list[Optimum] = []
    for group in groups:
        size = len(group)
        accuracies = jnp.full(size, accuracy, jnp.zeros(()).dtype)
        lanes = cheapest_lanes(stack([surface] * size), stack(group), stack([bounds] * size), accuracies)
        optima += [jax.tree.map(lambda leaf, lane=lane: leaf[lane], lanes) for lane in range(size)]
    return dict(zip(prices, optima, strict=True))


@dataclass(frozen=True, kw_only=True)
class ModelsByIntensity:
    """Hold which model is best when a byte displaces more or fewer FLOPs. S intensities, X budgets, M models.

    Attributes:
        intensities: FLOPs that a byte displaces [FLOP/byte].
        budgets: Budgets [FLOP].
        model: Row of the best model, -1 where none is affordable, [S, X].
        accuracy: Accuracy of each model's optimum, NaN where it is not affordable, [S, M, X].
        models: What the rows are, as in the surface.
    """

    intensities: Float[np.ndarray, " S"]
    budgets: Float[np.ndarray, " X"]
    model: Int[np.ndarray, "S X"]
    accuracy: Float[np.ndarray, "S M X"]
    models: tuple[str, ...]

    def takes_over_at(self, model: str) -> Float[np.ndarray, " S"]:
        """Return the least budget from which a model is best at every larger one; NaN where it never is.

        Args:
            model: Its name.
        """
        is_best = self.model == self.models.index(model)
        stays = np.logical_and.accumulate(is_best[:, ::-1], axis=1)[:, ::-1]
        first = np.argmax(stays, axis=1)
        return np.where(stays.any(1), self.budgets[first], np.nan)

    def critical_model(self) -> tuple[str, ...]:
        """Return, for each intensity, the model that is best at the most budgets: up to its size, growing pays first.

        Budgets should be evenly spaced in logarithms.
        """
        counts = (self.model[:, :, None] == np.arange(len(self.models))).sum(1)
        return tuple(self.models[row] for row in counts.argmax(1).tolist())


def best_models_by_intensity(
    surface: AccuracySurface,
    prices: Mapping[str, RequestPrice],
    budget: Float[np.ndarray, " X"],
    intensities: Float[np.ndarray, " S"],
    *,
    bounds: Bounds,
    margin: float = 0.0,
) -> ModelsByIntensity:
    """Find the best model at each budget when a byte displaces more or fewer FLOPs.

    Args:
        surface: Law of all models, smallest first.
        prices: Price of each by name; the peak prices FLOPs, and the intensity is replaced.
        budget: Budgets [FLOP].
        intensities: Intensities to try [FLOP/byte].
        bounds: As for `optimal_allocation`.
        margin: Accuracy by which a larger model must be better than a smaller one to be taken.

    Returns:
        The best models.

    Raises:
        ValueError: If a model has no price, or as `optimal_allocation`.

    References:
        PAPER.md section 1 (the critical size: 14B for Qwen3 on a B200), section 7, errata 2 (whose intensity).
    """
    lacking = [name for name in surface.models if name not in prices]
    if lacking:
        raise ValueError(f"every model of the surface needs a price; {', '.join(lacking)} lacks one")
    laws = [surface.of_model(name) for name in surface.models]
    changed = [
        replace(prices[name], flops_per_byte=float(intensity)) for intensity in intensities for name in surface.models
    ]
    lowest = [replace(prices[name], flops_per_byte=float(np.min(intensities))) for name in surface.models]
    require_affordable(laws[0], min(lowest, key=lambda price: cheapest_price(price, bounds)), np.max(budget), bounds)
    budgets = jnp.asarray(budget, jnp.zeros(()).dtype)
    lanes = stack(laws * len(intensities)), stack(changed), stack([bounds] * len(changed))
    optima, is_met = solve_lanes(*lanes, budgets)
    shape = (len(intensities), len(laws), len(budget))
    accuracy = np.where(np.asarray(is_met), np.asarray(optima.accuracy, dtype=float), np.nan).reshape(shape)
    model, leader = np.full(shape[::2], -1), np.full(shape[::2], -np.inf)
    for row in range(len(laws)):
        is_better = accuracy[:, row] > leader + np.where(model >= 0, margin, 0.0)
        model, leader = np.where(is_better, row, model), np.where(is_better, accuracy[:, row], leader)
    return ModelsByIntensity(
        intensities=np.asarray(intensities, dtype=float),
        budgets=np.asarray(budget, dtype=float),
        model=model,
        accuracy=accuracy,
        models=surface.models,
    )
