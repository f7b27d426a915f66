"""How the optimum moves, in percent for one percent: with the budget, the chip, the architecture, the prompt."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp

from ._kkt import Bounds
from ._optimum import Optimum, optimal_allocation, require_affordable
from ._price import RequestPrice
from ._setting import Price, Surface

Cause = Literal["budget", "flops_per_byte", "kv_elements_per_token", "group_size", "num_params", "prompt_len"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Elasticities:
    """Hold d log (what is chosen) / d log (cause) at each budget, leaves [X]; 0 where a bound is tight.

    Attributes:
        gen_len: Of the length limit.
        num_trials: Of the trials.
        num_tokens: Of both together: trials times limit.
        budget_len: Of the KV budget.
        page_len: Of the page.
        accuracy: d accuracy / d log (cause): not relative. By the budget it is the shadow price.
    """

    gen_len: Any
    num_trials: Any
    num_tokens: Any
    budget_len: Any
    page_len: Any
    accuracy: Any

    def per_doubling(self) -> "Elasticities":
        """Return the factors by which choices grow when the cause doubles, 2^e; accuracy: what it gains by it."""
        grown = {name: 2.0**value for name, value in vars(self).items() if name != "accuracy"}
        return Elasticities(**grown, accuracy=self.accuracy * jnp.log(2.0))


def elasticities(
    surface: Surface, price: Price, budget: Any, *, bounds: Bounds, cause: Cause = "budget"
) -> Elasticities:
    """Differentiate the optimum at each budget by the logarithm of one cause.

    Args:
        surface: As for `optimal_allocation`.
        price: As for `optimal_allocation`; a `RequestPrice` where the cause is one of its fields.
        budget: Budgets, [X] [FLOP].
        bounds: As for `optimal_allocation`.
        cause: "budget", or the field of the price that grows by one percent.

    Returns:
        The elasticities.

    Raises:
        ValueError: If the price has no such field, or as `optimal_allocation`.

    References:
        PAPER.md section 6 (tokens 1.74x and budget 1.18x per doubling of cost).
    """
    require_affordable(surface, price, budget, bounds)
    if cause != "budget" and not isinstance(price, RequestPrice):
        raise ValueError(f"the cause {cause!r} is a field of RequestPrice; got a price of another kind")
    return solve_and_differentiate(surface, price, jnp.asarray(budget, jnp.zeros(()).dtype), bounds, cause)[1]


def solve_and_differentiate(
    surface: Any, price: Any, budgets: Any, bounds: Bounds, cause: Cause = "budget", num_starts: int = 4
) -> tuple[Optimum, Elasticities]:
    """Return the optimum and its elasticities by one cause, one program for both; nothing is checked."""

    def solve(log_factor: Any) -> Optimum:
        factor = jnp.exp(log_factor)
        if cause == "budget":
            return optimal_allocation(surface, price, budgets * factor, bounds=bounds, num_starts=num_starts)
        changed = replace(price, **{cause: getattr(price, cause) * factor})
        return optimal_allocation(
            surface, changed, budgets * jnp.ones_like(factor), bounds=bounds, num_starts=num_starts
        )

    zero = jnp.zeros((), budgets.dtype)
    optimum, slope = jax.jvp(solve, (zero,), (jnp.ones_like(zero),))
    relative = jax.tree.map(lambda value, change: change / value, optimum.setting, slope.setting)
    return optimum, Elasticities(
        **vars(relative), num_tokens=relative.gen_len + relative.num_trials, accuracy=slope.accuracy
    )
