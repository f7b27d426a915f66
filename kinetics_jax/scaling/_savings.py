"""What a smaller cache and reading less of it are worth at equal accuracy: two gradients of the least cost."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ._kkt import Bounds
from ._lanes import cheapest_lanes, stack
from ._optimum import Optimum, require_reachable
from ._price import RequestPrice
from ._setting import Setting
from ._surface import AccuracySurface


@dataclass(frozen=True, kw_only=True)
class CacheBalance:
    """Hold how the least cost of an accuracy depends on the shape of a model. K shapes.

    Attributes:
        kv_per_param: Cache elements a token per parameter, D / P.
        cost: Least cost of the accuracy [FLOP].
        slope: d log cost / d log (D / P) with P D held: positive where a smaller cache is cheaper.
        cost_by_cache: d log cost / d log D, P held.
        cost_by_params: d log cost / d log P, D held.
        best_kv_per_param: Where `slope` turns positive; NaN if that is beyond the shapes.
    """

    kv_per_param: Float[np.ndarray, " K"]
    cost: Float[np.ndarray, " K"]
    slope: Float[np.ndarray, " K"]
    cost_by_cache: Float[np.ndarray, " K"]
    cost_by_params: Float[np.ndarray, " K"]
    best_kv_per_param: float


def balance_cache(
    surface: AccuracySurface,
    price: RequestPrice,
    accuracy: float,
    *,
    bounds: Bounds,
    factors: Float[np.ndarray, " K"] | None = None,
) -> CacheBalance:
    """Find the cache per parameter that makes an accuracy cheapest, by the gradient of the least cost.

    By the envelope theorem the gradient is that of the price with the setting held: the setting is optimal, so that
    its own change costs nothing to first order. At a fixed surface both a smaller cache and fewer parameters are
    cheaper: the two derivatives `cost_by_...` are positive everywhere, and without a trade there is no optimum but
    zero. The trade assumed here is that a model keeps its accuracy when its cache shrinks by as many percent as its
    parameters grow (P D fixed). Then cost is least where both derivatives are equal: where a percent of cache costs as
    much as a percent of parameters.

    Args:
        surface: Law of one model.
        price: Its price.
        accuracy: The accuracy to reach.
        bounds: As for `minimal_cost`.
        factors: D / P to try, as multiples of the model's own, rising; None = 2^-6 .. 2^6.

    Returns:
        The costs, slopes and the best shape.

    Raises:
        ValueError: As `minimal_cost`.

    References:
        PAPER.md section 2 (Phi, the ratio of attention to parameter cost), Fig. 5a.
    """
    factors = 2.0 ** np.linspace(-6, 6, 25) if factors is None else np.asarray(factors, dtype=float)
    require_reachable(surface, price, accuracy, bounds)
    shapes = [
        replace(
            price,
            kv_elements_per_token=price.kv_elements_per_token * float(factor) ** 0.5,
            num_params=price.num_params * float(factor) ** -0.5,
        )
        for factor in factors
    ]
    num_shapes, stacked = len(shapes), stack(shapes)
    accuracies = jnp.full(num_shapes, accuracy, jnp.zeros(()).dtype)
    optima = cheapest_lanes(stack([surface] * num_shapes), stacked, stack([bounds] * num_shapes), accuracies)
    by_cache, by_params = (
        np.asarray(price_elasticity(stacked, optima.setting, cause), dtype=float)
        for cause in ("kv_elements_per_token", "num_params")
    )
    slope = (by_cache - by_params) / 2
    own = float(price.kv_elements_per_token) / float(price.num_params)
    turns, best = np.flatnonzero((slope[:-1] <= 0) & (slope[1:] > 0)), np.nan
    if turns.size:
        at = turns[0]
        share = -slope[at] / (slope[at + 1] - slope[at])
        best = own * float(np.exp((1 - share) * np.log(factors[at]) + share * np.log(factors[at + 1])))
    return CacheBalance(
        kv_per_param=own * factors,
        cost=np.asarray(optima.cost, dtype=float),
        slope=slope,
        cost_by_cache=by_cache,
        cost_by_params=by_params,
        best_kv_per_param=best,
    )


@partial(jax.jit, static_argnames="cause")
def price_elasticity(prices: RequestPrice, settings: Setting, cause: str) -> Any:
    """Return d log price / d log cause at given settings, lanes [L]: by the envelope theorem that of the least cost.

    Args:
        prices: Prices, leaves [L].
        settings: Settings, leaves [L].
        cause: The field of the price that grows.
    """

    def one(price: RequestPrice, setting: Setting) -> Any:
        def log_price(log_factor: Any) -> Any:
            return jnp.log(replace(price, **{cause: getattr(price, cause) * jnp.exp(log_factor)})(setting))

        return jax.grad(log_price)(jnp.zeros_like(price.flops_per_byte))

    return jax.vmap(one)(prices, settings)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class SparsitySaving:
    """Hold what reading less of the cache saves at equal accuracy, leaves [X].

    Attributes:
        log_saving: log (least dense cost / least sparse cost); e to it is how many times cheaper sparse is.
        by_intensity: d log_saving / d log (FLOPs a byte displaces).
        dense: The dense optimum.
        sparse: The sparse one.
    """

    log_saving: Any
    by_intensity: Any
    dense: Optimum
    sparse: Optimum


def sparsity_saving(
    surface: AccuracySurface,
    dense: RequestPrice,
    sparse: RequestPrice,
    accuracy: Any,
    *,
    bounds: Bounds,
    whole_len: int | float,
) -> SparsitySaving:
    """Price what sparse attention saves at equal accuracy; differentiable by all that it is given.

    `by_intensity` is the envelope theorem's: the dense optimum's share of memory in its price, less the sparse one's
    (where compute and memory are added). `jax.grad` of `log_saving` by `flops_per_byte` of both prices is the same.

    Args:
        surface: Law of one model.
        dense: Its price with dense attention.
        sparse: Its price with the surface's method, on the same chip.
        accuracy: Accuracies to reach, [X].
        bounds: Bounds of the sparse choice; the dense one has the same but for the KV budget.
        whole_len: Budget that stands for dense attention on the surface: the longest context of the traces [tokens].

    Returns:
        The savings.

    Raises:
        ValueError: As `minimal_cost`; traced values are not checked.

    References:
        PAPER.md section 1 (5 to 10 times cheaper at equal accuracy) and section 6.
    """
    whole = replace(bounds, budget_len=float(whole_len), page_len=1.0)
    accuracies = jnp.asarray(accuracy, jnp.zeros(()).dtype)
    optima, slopes = [], []
    for price, box in ((dense, whole), (sparse, bounds)):
        require_reachable(surface, price, accuracies, box, num_starts=1)
        laws, prices, boxes = (stack([tree] * accuracies.size) for tree in (surface, price, box))
        optima.append(cheapest_lanes(laws, prices, boxes, accuracies))
        slopes.append(price_elasticity(prices, optima[-1].setting, "flops_per_byte"))
    return SparsitySaving(
        log_saving=jnp.log(optima[0].cost / optima[1].cost),
        by_intensity=slopes[0] - slopes[1],
        dense=optima[0],
        sparse=optima[1],
    )
