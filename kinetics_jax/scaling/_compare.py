"""Which model at which budget: the optimum of each beside the others', and the mixture that a mean budget allows."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from ._elasticities import Elasticities, solve_and_differentiate
from ._hull import hull_vertices
from ._kkt import Bounds
from ._lanes import stack
from ._optimum import Optimum, cheapest_price, require_affordable
from ._price import RequestPrice
from ._surface import AccuracySurface

# Budgets are few here, and of two optima that are nearly as good three starts may miss one.
_NUM_STARTS = 6


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """Hold the optimum of M models at X budgets, and the best of them.

    Attributes:
        each: Optima of every model, leaves [M, X]; NaN where a model's cheapest setting is above the budget.
        model: Row of the best model at each budget, [X].
        optimum: Its optimum, leaves [X].
        growth: Its elasticities by the budget, leaves [X].
        models: What the M rows are.
    """

    each: Optimum
    model: Any
    optimum: Optimum
    growth: Elasticities
    models: tuple[str, ...] = field(metadata={"static": True})


def compare_models(
    surface: AccuracySurface, prices: Sequence[RequestPrice], budget: Any, *, bounds: Bounds
) -> ModelChoice:
    """Solve for every model at every budget, and take the best model at each; one program, with its derivatives.

    Derivatives are those of the best model's optimum: at a budget where two models are equally good there is a kink.

    Args:
        surface: Law of M models.
        prices: Price of each, in the order of `surface.models`.
        budget: Budgets, [X] [FLOP].
        bounds: As for `optimal_allocation`, the same for all models.

    Returns:
        The optima.

    Raises:
        ValueError: If there are not as many prices as models, a budget is below the cheapest setting of every model, or
            as `optimal_allocation`.
    """
    if len(prices) != len(surface.models):
        raise ValueError(f"every model needs a price; got {len(prices)} for {', '.join(surface.models)}")
    cheapest = min(prices, key=lambda price: cheapest_price(price, bounds))
    require_affordable(surface, cheapest, budget, bounds)
    budgets, stacked = jnp.asarray(budget, jnp.zeros(()).dtype), stack(prices)
    leaves, bounds = jax.tree.map(lambda leaf: jnp.asarray(leaf, budgets.dtype), (surface, bounds))
    each, growth = _solve_models(replace(leaves, models=(), problems=()), stacked, bounds, budgets)
    is_met = (each.kkt_residual < 1e-3) & (each.cost <= budgets[None] * (1 + 1e-3))

    def where_met(leaf: Any) -> Any:
        return jnp.where(is_met.reshape(is_met.shape + (1,) * (leaf.ndim - 2)), leaf, jnp.nan)

    each, growth = jax.tree.map(where_met, (each, growth))
    best = jnp.argmax(jnp.where(is_met, each.accuracy, -jnp.inf), axis=0)
    optimum, best_growth = jax.tree.map(lambda leaf: leaf[best, jnp.arange(best.size)], (each, growth))
    return ModelChoice(each=each, model=best, optimum=optimum, growth=best_growth, models=surface.models)


@jax.jit
def _solve_models(
    surfaces: AccuracySurface, prices: RequestPrice, bounds: Bounds, budgets: Any
) -> tuple[Optimum, Elasticities]:
    def one(lane: tuple[AccuracySurface, RequestPrice]) -> tuple[Optimum, Elasticities]:
        surface, price = lane
        return solve_and_differentiate(surface, price, budgets, bounds, num_starts=_NUM_STARTS)

    # One after the other, as in `solve_lanes`; without names, so that any models share the program.
    return jax.lax.map(one, (surfaces, prices))


@dataclass(frozen=True, kw_only=True)
class ModelMixture:
    """Hold how a mean budget is spread over models: at most two settings at each budget. X budgets, M models.

    Attributes:
        budgets: Mean prices [FLOP].
        accuracy: Accuracy of the mixture.
        weights: Share of the requests that goes to each model; the rest gets no answer.
    """

    budgets: Float[np.ndarray, " X"]
    accuracy: Float[np.ndarray, " X"]
    weights: Float[np.ndarray, "X M"]


def mix_models(choice: ModelChoice, budget: Float[np.ndarray, " X"]) -> ModelMixture:
    """Spread a mean budget over models (a simplex): the concave hull of all their optima, two points at each budget.

    Exact for mixtures of the optima in `choice`; solve it at a fine range of budgets.

    Args:
        choice: Optima of every model at a range of budgets.
        budget: Mean budgets [FLOP].

    Returns:
        The mixture.

    References:
        PAPER.md section 1 (the best model as bands of cost); Lagrangian duality of the knapsack.
    """
    num_models, num_budgets = np.shape(choice.each.accuracy)
    cost, accuracy = (np.asarray(array, dtype=float).ravel() for array in (choice.each.cost, choice.each.accuracy))
    model = np.repeat(np.arange(num_models), num_budgets)
    is_met = np.isfinite(cost) & np.isfinite(accuracy)
    cost, accuracy, model = cost[is_met], accuracy[is_met], model[is_met]
    vertices: Int[np.ndarray, " V"] = hull_vertices(cost[None], accuracy[None])[0]
    vertices = vertices[vertices >= 0]
    at_cost, at_accuracy = np.append(0.0, cost[vertices]), np.append(0.0, accuracy[vertices])
    shares = np.vstack([np.zeros(num_models), np.eye(num_models)[model[vertices]]])
    weights = np.stack([np.interp(budget, at_cost, shares[:, m]) for m in range(num_models)], axis=1)
    return ModelMixture(budgets=np.asarray(budget), accuracy=np.interp(budget, at_cost, at_accuracy), weights=weights)
