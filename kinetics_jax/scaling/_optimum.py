"""The best setting for a limit, as a differentiable function of the limit, the surface, the price and the bounds."""

import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from kinetics_jax.cost import capacity
from kinetics_jax.specs import Dense, HardwareSpec, ModelSpec

from ._climb import climb
from ._kkt import Bounds, Goal, Problem, implicit_root
from ._setting import VARIABLES, PartedPrice, Price, Setting, Surface
from ._starts import make_grid, pick_starts


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Optimum:
    """Hold the best setting at each limit; a JAX pytree whose leaves have the shape of the limits, X.

    Attributes:
        setting: The best setting.
        accuracy: Its accuracy.
        cost: Its price [FLOP].
        shadow_price: d accuracy / d log cost: accuracy that 1% more money buys, times 100. 0 where money is left.
        multipliers: d accuracy / d log limit of each limit of `limits`, [X, J]: what loosening it by 1% buys, times
            100; 0 where it is loose.
        slack: How far each limit is from tight, in logarithms, [X, J].
        kkt_residual: Largest violation of the optimality conditions, in logarithms.
        limits: What the J limits are: each free variable at least and at most, the cost (or the accuracy), the context,
            the page, memory, latency.
    """

    setting: Setting
    accuracy: Any
    cost: Any
    shadow_price: Any
    multipliers: Any
    slack: Any
    kkt_residual: Any
    limits: tuple[str, ...] = field(metadata={"static": True})

    def tight(self, tolerance: float = 1e-6) -> list[list[str]]:
        """Return the names of the limits that are tight, a list for each element of a flat X."""
        slack = np.asarray(self.slack).reshape(-1, len(self.limits))
        return [[name for name, gap in zip(self.limits, row, strict=True) if gap < tolerance] for row in slack]


def optimal_allocation(surface: Surface, price: Price, budget: Any, *, bounds: Bounds, num_starts: int = 4) -> Optimum:
    r"""Find the setting of highest accuracy within a budget, differentiable through the optimum.

    ```
    max_x accuracy(x)   over x = log (gen_len, num_trials, budget_len, page_len), those that are free
    such that  log price(x) <= log budget,  low <= x <= high,
               budget_len <= context,  page_len <= budget_len,  caches <= memory,  latency <= its limit
    ```

    **How.** A grid, evaluated once for all budgets, gives starts that keep apart; from each a primal-dual interior
    point method goes to a root of the optimality conditions; the best root wins, and Newton's method (optimistix)
    finishes it. `kkt_residual` says how well the conditions hold: below 1e-6 in float64 (`jax.enable_x64`); in float32
    far more. Where it stays above 1e-4 (1e-2) the answer is NaN. No method is sure of the global
    optimum of what is not concave: what is guaranteed is a stationary point, and the tests demand that it beats a fine
    grid.

    **Derivatives** of every field by every leaf of `surface`, `price` and `bounds` and by `budget` come from the
    implicit function theorem at the root, by `jax.grad`, `jax.jacobian`, `jax.jvp`. Where a bound is tight the
    variable does not move (unless the bound does). **Kinks**: where a limit turns from loose to tight, and where two
    optima are equally good, the optimum has no derivative; what comes back then is one between the two sides, or NaN.

    Args:
        surface: Accuracy of a setting, a JAX pytree with the method of `Surface`.
        price: Price of a setting, a JAX pytree (`request_price`).
        budget: Largest price of a request, or mean price if the price is `averaged`; any shape X [FLOP].
        bounds: Which variables are free, between which ends; memory and latency.
        num_starts: Starts from the grid, 1 to 8.

    Returns:
        The optimum at each budget. NaN where no climb arrived: under `jit`, where a budget is below the cheapest
        setting; else rarely, where several limits leave a narrow corridor (more starts may help).

    Raises:
        ValueError: If a budget is below the cheapest setting (the message names that price), bounds contradict each
            other, nothing is free, or a number is not finite. Traced values are not checked.

    Example:
        >>> import dataclasses, jax
        >>> @jax.tree_util.register_dataclass
        ... @dataclasses.dataclass(frozen=True)
        ... class Powers:
        ...     length: float
        ...     trials: float
        ...     def accuracy(self, at):
        ...         return 1e-3 * at.gen_len**self.length * at.num_trials**self.trials
        ...     def __call__(self, at):
        ...         return at.gen_len**self.length * at.num_trials**self.trials
        >>> best = optimal_allocation(Powers(0.6, 0.2), Powers(1.0, 1.0), 1000.0,
        ...                           bounds=Bounds(gen_len=(1, 500), num_trials=(1, 100), budget_len=64))
        >>> best.tight(1e-3), round(float(best.setting.num_trials), 2)
        ([['gen_len at most', 'cost']], 2.0)

    References:
        PAPER.md section 3 (the same question on a grid); Fiacco, Introduction to Sensitivity and Stability Analysis in
        Nonlinear Programming (1983), theorem 3.2.2; Nocedal & Wright, Numerical Optimization (2006), chapter 19;
        Fischer, A special Newton-type optimization method (1992).
    """
    require_affordable(surface, price, budget, bounds, num_starts)
    return _solve(_cast(surface), _cast(price), _cast(budget), _cast(bounds), "accuracy", num_starts)


def minimal_cost(surface: Surface, price: Price, accuracy: Any, *, bounds: Bounds, num_starts: int = 4) -> Optimum:
    """Find the cheapest setting that reaches an accuracy: the dual of `optimal_allocation`, by the same method.

    Differences of log `cost` between two prices are what one of them saves at equal accuracy, differentiably.

    Args:
        surface: As for `optimal_allocation`.
        price: As for `optimal_allocation`.
        accuracy: Accuracy to reach, any shape X.
        bounds: As for `optimal_allocation`.
        num_starts: As for `optimal_allocation`.

    Returns:
        The optimum at each accuracy. Under `jit`, NaN where an accuracy is out of reach.

    Raises:
        ValueError: If an accuracy is beyond that of the upper bounds, prices combine by "max", or as
            `optimal_allocation`.

    References:
        PAPER.md section 1 ("cheaper at equal accuracy").
    """
    if isinstance(price, PartedPrice) and len(price.part_names) > 1:
        raise ValueError(
            f"the least of a maximum ({' and '.join(price.part_names)}) has a kink. Use a p-norm: combine=16.0 is "
            'within 5% of "max".'
        )
    require_reachable(surface, price, accuracy, bounds, num_starts)
    return _solve(_cast(surface), _cast(price), _cast(accuracy), _cast(bounds), "cost", num_starts)


def free_cache_bytes(
    model: ModelSpec, hardware: HardwareSpec, *, num_devices: int = 1, memory_share: float = 0.9
) -> float:
    """Return the memory that the weights leave for caches, as `cost.capacity` counts it [bytes].

    Args:
        model: The geometry.
        hardware: The chip.
        num_devices: Chips.
        memory_share: As in `capacity`.

    Returns:
        Bytes for `Bounds.cache_bytes`.

    Raises:
        ValueError: If the weights do not fit.
    """
    room = capacity(model, Dense(), hardware, context_len=1, num_devices=num_devices, memory_share=memory_share)
    return room.usable_bytes - room.weight_bytes


@partial(jax.jit, static_argnums=(4, 5))
def _solve(surface: Any, price: Any, limit: Any, bounds: Bounds, goal: Goal, num_starts: int) -> Optimum:
    whole = Problem(surface=surface, price=price, bounds=bounds, log_limit=jnp.zeros_like(limit, shape=()), goal=goal)
    still, log_limits = jax.lax.stop_gradient((whole, jnp.log(limit.reshape(-1))))
    grid = make_grid(still)
    starts = jax.vmap(lambda log_limit: pick_starts(grid, replace(still, log_limit=log_limit), num_starts))(log_limits)
    # All climbs are one axis: a loop within two of them takes three times as long to trace.
    lanes = jnp.repeat(log_limits, num_starts), starts.reshape(-1, starts.shape[-1])
    ends = jax.vmap(lambda log_limit, start: climb(replace(still, log_limit=log_limit), start))(*lanes)
    scores = ends.score.reshape(-1, num_starts)
    best = jnp.arange(len(scores)) * num_starts + jnp.argmax(scores, axis=1)

    def finish(log_limit: Any, z: Any, multiplier: Any, error: Any) -> Optimum:
        problem = replace(whole, log_limit=log_limit)
        return _read(problem, *implicit_root(problem, z, multiplier, error))

    found = (leaf[best] for leaf in (ends.z, ends.multiplier, ends.error))
    flat = jax.vmap(finish)(jnp.log(limit.reshape(-1)), *found)
    return jax.tree.map(lambda leaf: leaf.reshape(*limit.shape, *leaf.shape[1:]), flat)


def _read(problem: Problem, z: Any, multiplier: Any, error: Any) -> Optimum:
    worst = 1e-4 if z.dtype == jnp.float64 else 1e-2
    z = jnp.where(error < worst, z, jnp.nan)  # no answer rather than a wrong one
    setting = problem.setting(z)
    accuracy, cost = problem.surface.accuracy(setting), problem.price(setting)
    first_main = 2 * len(problem.bounds.free)
    main = multiplier[first_main : first_main + len(problem.main_names)].sum()
    if problem.goal == "accuracy":
        shadow_price, multipliers = accuracy * main, accuracy * multiplier
    else:  # d log cost / d log accuracy, turned around
        shadow_price, multipliers = accuracy / main, accuracy * multiplier / main
    return Optimum(
        setting=jax.tree.map(lambda leaf: jnp.asarray(leaf, z.dtype), setting),
        accuracy=accuracy,
        cost=cost,
        shadow_price=shadow_price,
        multipliers=multipliers,
        slack=-problem.excess(z, problem.curved(z)),
        kkt_residual=error,
        limits=problem.limit_names,
    )


def _cast(tree: Any) -> Any:
    """Give all leaves the precision that JAX is set to."""
    dtype = jnp.zeros(()).dtype
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree)


def _is_traced(*trees: Any) -> bool:
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(trees))


def _require_sound(surface: Any, price: Any, limit: Any, bounds: Bounds, num_starts: int = 4) -> None:
    if not bounds.free:
        raise ValueError("nothing is free to be chosen. Give one variable a pair (lowest, highest) in Bounds.")
    if not 1 <= num_starts <= 8:
        raise ValueError(f"num_starts must lie in 1..8; got {num_starts}")
    for name in VARIABLES:
        given = getattr(bounds, name)
        if name in bounds.free and len(given) != 2:
            raise ValueError(f"{name} must be a number or a pair (lowest, highest); got {given}")
        low, high = bounds.ends(name)
        if _is_traced(low, high):
            continue
        to_context = name == "budget_len" and high is None and hasattr(price, "context_len")
        high = math.inf if to_context else high
        if low is None or high is None or not (np.isfinite(low) and (np.isfinite(high) or to_context)):
            raise ValueError(f"{name} must be a finite number or a pair of them; got {given}")
        if not low > 0:
            raise ValueError(f"{name} must be positive; got {given}")
        if name in bounds.free and not low < high:
            raise ValueError(
                f"the bounds of {name} contradict each other: at least {low:g}, at most {high:g}. Swap them, or give "
                "one number to hold it fixed."
            )
    for what, tree in (("surface", surface), ("price", price), ("limit", limit)):
        bad = [leaf for leaf in jax.tree.leaves(tree) if not isinstance(leaf, Tracer) and not np.isfinite(leaf).all()]
        if bad:
            raise ValueError(f"every number of the {what} must be finite; got {np.ravel(bad[0])[:3].tolist()} in it.")


def _corners(price: Any, bounds: Bounds, end: int) -> list[Setting]:
    """Return the corner of the box at one end, with the page at either of its own."""
    at = {name: bounds.ends(name)[end] for name in VARIABLES}
    if hasattr(price, "context_len") and end == 1 and "budget_len" in bounds.free:
        context_len = float(price.context_len(Setting(**at)))
        at["budget_len"] = context_len if at["budget_len"] is None else min(at["budget_len"], context_len)
    corner = Setting(**at)
    return [replace(corner, page_len=min(page, at["budget_len"])) for page in dict.fromkeys(bounds.ends("page_len"))]


def cheapest_price(price: Any, bounds: Bounds) -> float:
    """Return the price of the cheapest setting within the bounds [FLOP]."""
    return min(float(price(corner)) for corner in _corners(price, bounds, 0))


def require_affordable(surface: Any, price: Any, budget: Any, bounds: Bounds, num_starts: int = 4) -> None:
    """Raise ValueError where bounds contradict each other, a number is not finite, or a budget is too small.

    Traced numbers are not checked.
    """
    _require_sound(surface, price, budget, bounds, num_starts)
    if _is_traced(price, budget, bounds):
        return
    cheapest, lowest = cheapest_price(price, bounds), _corners(price, bounds, 0)[0]
    if not (np.asarray(budget) > cheapest).all():
        raise ValueError(
            f"a budget must be above the cheapest setting's price, {cheapest:.4g}; got {float(np.min(budget)):.4g}. "
            "Raise it, or lower the bounds."
        )
    for name, limit, unit in (
        ("cache_bytes", bounds.cache_bytes, "bytes of cache"),
        ("latency_s", bounds.latency_s, "seconds"),
    ):
        if limit is None:
            continue
        if not hasattr(price, name):
            raise ValueError(f"a price that does not tell its {unit} cannot be limited by them. Use request_price.")
        needed = float(getattr(price, name)(lowest))
        if not needed < float(limit):
            raise ValueError(
                f"the bounds contradict each other: the smallest setting needs {needed:.4g} {unit}, allowed are "
                f"{float(limit):.4g}. Allow more, or lower the bounds."
            )


def require_reachable(surface: Any, price: Any, accuracy: Any, bounds: Bounds, num_starts: int = 4) -> None:
    """Raise ValueError as `require_affordable`, where an accuracy is beyond the upper bounds."""
    _require_sound(surface, price, accuracy, bounds, num_starts)
    if _is_traced(surface, price, accuracy, bounds):
        return
    highest = max(float(surface.accuracy(corner)) for corner in _corners(price, bounds, 1))
    if not (np.asarray(accuracy) < highest).all():
        raise ValueError(
            f"accuracy must be below what the upper bounds reach, {highest:.4f}; got {float(np.max(accuracy)):.4f}. "
            "Ask for less, or widen the bounds."
        )
