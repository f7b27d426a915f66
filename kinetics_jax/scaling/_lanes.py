"""Many optima by one program: laws, prices and boxes that differ in their numbers only, a lane each.

Called by the experiments and by the held-out score, whose lanes are models, grades, folds, resamples or chips.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._kkt import Bounds
from ._optimum import Optimum, minimal_cost, optimal_allocation
from ._setting import VARIABLES, Setting

# Up to two free variables the grid of starts is so fine that one start is enough.
_NUM_STARTS = {1: 1, 2: 1, 3: 3, 4: 3}
# Points of a variable where the least price is sought, by the number of free variables.
_GRID = {0: 1, 1: 16, 2: 8, 3: 5, 4: 4}


def stack(trees: Sequence[Any]) -> Any:
    """Return trees of one kind as one tree with the lanes as first axis, in the precision that JAX is set to."""
    dtype = jnp.zeros(()).dtype
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf, dtype) for leaf in leaves]), *trees)


@jax.jit
def solve_lanes(surfaces: Any, prices: Any, bounds: Bounds, budgets: Any) -> tuple[Optimum, Any]:
    """Return the optimum of each lane at each budget, leaves [lanes, X], and whether there is one.

    There is none where the budget is below the lane's least price: the setting there is the cheapest one.
    """

    def one(surface: Any, price: Any, box: Bounds) -> tuple[Optimum, Any]:
        least, where = _least_price(price, box)
        is_paid = budgets > 1.0001 * least
        # A budget below the cheapest setting has no optimum: the largest one stands in, and nobody reads it.
        optimum = optimal_allocation(
            surface,
            price,
            jnp.where(is_paid, budgets, budgets.max()),
            bounds=box,
            num_starts=_NUM_STARTS[len(box.free)],
        )
        is_met = is_paid & jnp.isfinite(optimum.accuracy)
        setting = jax.tree.map(lambda best, cheap: jnp.where(is_met, best, cheap), optimum.setting, where)
        return replace(optimum, setting=setting), is_met

    # One after the other: a further `vmap` of the solver's loops would take longer to trace than all lanes to solve.
    return jax.lax.map(lambda lane: one(*lane), (surfaces, prices, bounds))


def _least_price(price: Any, box: Bounds) -> tuple[Any, Setting]:
    """Return the least price on a grid of the box, and where it is.

    Where trials stop when they are right, that need not be the lowest corner: reading more may end a trial sooner.
    """
    free = [name for name in box.free if box.ends(name)[1] is not None]
    places = np.meshgrid(*[np.linspace(0, 1, _GRID[len(free)])] * len(free), indexing="ij")
    shares = jnp.asarray(np.stack(places, -1).reshape(-1, len(free)), jnp.zeros(()).dtype)

    def at(share: Any) -> tuple[Any, Setting]:
        values = {name: box.ends(name)[0] for name in VARIABLES}
        for name, part in zip(free, share, strict=True):
            low, high = box.ends(name)
            values[name] = low * (high / low) ** part
        setting = jax.tree.map(lambda value: jnp.asarray(value, shares.dtype), Setting(**values))
        return price(setting), setting

    costs, settings = jax.vmap(at)(shares)
    return costs.min(), jax.tree.map(lambda leaf: leaf[jnp.argmin(costs)], settings)


@jax.jit
def cheapest_lanes(surfaces: Any, prices: Any, bounds: Bounds, accuracies: Any) -> Optimum:
    """Return the cheapest setting of each lane for an accuracy of its own, leaves [lanes]; differentiable."""

    def one(surface: Any, price: Any, box: Bounds, accuracy: Any) -> Optimum:
        return minimal_cost(surface, price, accuracy, bounds=box, num_starts=_NUM_STARTS[len(box.free)])

    return jax.lax.map(lambda lane: one(*lane), (surfaces, prices, bounds, accuracies))
