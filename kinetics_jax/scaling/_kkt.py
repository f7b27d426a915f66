"""What an optimum is: a problem in logarithms, its limits, and the Karush-Kuhn-Tucker conditions as a root.

Everything is a function of the logarithms z of the free variables. `_starts` and `_climb` go to the root, `_optimum`
checks the input and names the output. The objective is a logarithm too, so that residuals are relative.
"""

from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Literal

import jax
import jax.numpy as jnp

from ._setting import VARIABLES, PartedPrice, Price, Setting, Surface

Goal = Literal["accuracy", "cost"]
"""Which of the two is as good as it can be; the other one is limited."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Limit a setting. Each variable is a number, which fixes it, or a pair (lowest, highest), which frees it.

    Attributes:
        gen_len: Length limit; its upper end is what the context leaves after the prompt [tokens].
        num_trials: Trials.
        budget_len: KV budget; never beyond the context of the price, where it has one: (16, None) leaves it to that
            [tokens].
        page_len: Page; never beyond the budget where both are free [tokens].
        cache_bytes: Memory that the caches of all trials may take (`free_cache_bytes`), or None [bytes].
        latency_s: Time that a request may take alone on the chip, or None [s].

    Example:
        >>> Bounds(gen_len=(8, 256), num_trials=1, budget_len=(16, 256)).free
        ('gen_len', 'budget_len')
    """

    gen_len: Any
    num_trials: Any
    budget_len: Any
    page_len: Any = 1.0
    cache_bytes: Any = None
    latency_s: Any = None

    @property
    def free(self) -> tuple[str, ...]:
        """The variables that are chosen, in the order of `Setting`."""
        return tuple(name for name in VARIABLES if isinstance(getattr(self, name), tuple | list))

    def ends(self, name: str) -> tuple[Any, Any]:
        """Return the lowest and the highest value of a variable."""
        given = getattr(self, name)
        return tuple(given) if name in self.free else (given, given)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Problem:
    """Hold what is maximised under which limits, for one limit.

    Attributes:
        surface: The accuracy.
        price: The cost.
        bounds: The box, memory and latency.
        log_limit: Logarithm of the largest cost, or of the smallest accuracy.
        goal: What is optimised.
    """

    surface: Surface
    price: Price
    bounds: Bounds
    log_limit: Any
    goal: Goal = field(metadata={"static": True})

    @property
    def main_names(self) -> tuple[str, ...]:
        """The limits that `log_limit` is put on: the parts of the cost, or the accuracy."""
        if self.goal == "cost":
            return ("accuracy",)
        return self.price.part_names if isinstance(self.price, PartedPrice) else ("cost",)

    @property
    def other_names(self) -> tuple[str, ...]:
        """The limits beside box and main ones."""
        free, bounds = self.bounds.free, self.bounds
        names = []
        if "budget_len" in free and hasattr(self.price, "context_len"):
            names.append("whole context")
        if "page_len" in free and "budget_len" in free:
            names.append("page in budget")
        if bounds.cache_bytes is not None:
            names.append("memory")
        if bounds.latency_s is not None:
            has_parts = hasattr(self.price, "latency_parts_s")
            names += ["compute latency", "memory latency"] if has_parts else ["latency"]
        return tuple(names)

    @property
    def limit_names(self) -> tuple[str, ...]:
        """All limits, in the order of `excess`: J of them."""
        boxes = [f"{name} at {end}" for end in ("least", "most") for name in self.bounds.free]
        return (*boxes, *self.main_names, *self.other_names)

    def setting(self, z: Any) -> Setting:
        """Return the setting at the logarithms z of the free variables."""
        free = self.bounds.free
        values = {name: jnp.exp(z[free.index(name)]) for name in free}
        fixed = {name: getattr(self.bounds, name) for name in VARIABLES if name not in free}
        return Setting(**values, **fixed)

    def log_accuracy(self, z: Any) -> Any:
        """Return the logarithm of the accuracy."""
        return jnp.log(self.surface.accuracy(self.setting(z)))

    def log_prices(self, z: Any) -> Any:
        """Return the logarithm of the cost's parts, then by how much each of `other_names` is exceeded."""
        setting = self.setting(z)
        parts = self.price.parts(setting) if isinstance(self.price, PartedPrice) else (self.price(setting),)
        others = [_OTHER_LIMITS[name](self, setting) for name in self.other_names]
        return jnp.stack([*map(jnp.log, parts), *others])

    def arrange(self, logs: Any) -> Any:
        """Turn (log accuracy, log costs, others) into (objective, main, others): a matter of signs and order."""
        if self.goal == "accuracy":
            return logs
        return jnp.concatenate([-logs[1:2], -logs[:1], logs[2:]])

    def limited(self, logs: Any) -> Any:
        """Return `arrange` with the limit put on the main ones."""
        limit = -self.log_limit if self.goal == "accuracy" else self.log_limit
        return self.arrange(logs).at[1 : 1 + len(self.main_names)].add(limit)

    def curved(self, z: Any) -> Any:
        """Return what is maximised, then by how much each limit but the box is exceeded; logarithms, [1 + J - 2 n]."""
        return self.limited(jnp.concatenate([self.log_accuracy(z)[None], self.log_prices(z)]))

    def excess(self, z: Any, curved: Any) -> Any:
        """Return by how much each limit is exceeded, in the order of `limit_names`, [J]; `curved` is that at z."""
        low, high = self.box()
        return jnp.concatenate([low - z, z - high, curved[1:]])

    def box(self) -> tuple[Any, Any]:
        """Return the logarithms of the lower and the upper bounds, [n] each."""
        pairs = [getattr(self.bounds, name) for name in self.bounds.free]
        low = jnp.stack([jnp.log(pair[0]) for pair in pairs])
        longest = Setting(**dict.fromkeys(VARIABLES, self.bounds.ends("gen_len")[1]))
        ends = [2 * self.context_len(longest) if pair[1] is None else pair[1] for pair in pairs]
        return low, jnp.stack([jnp.log(end) for end in ends])

    def context_len(self, setting: Setting) -> Any:
        """Return the longest context, of a price that has one."""
        price: Any = self.price
        return price.context_len(setting)


_OTHER_LIMITS: dict[str, Any] = {
    "whole context": lambda p, setting: jnp.log(setting.budget_len / p.context_len(setting)),
    "page in budget": lambda p, setting: jnp.log(setting.page_len / setting.budget_len),
    "memory": lambda p, setting: jnp.log(p.price.cache_bytes(setting) / p.bounds.cache_bytes),
    "latency": lambda p, setting: jnp.log(p.price.latency_s(setting) / p.bounds.latency_s),
    "compute latency": lambda p, setting: jnp.log(p.price.latency_parts_s(setting)[0] / p.bounds.latency_s),
    "memory latency": lambda p, setting: jnp.log(p.price.latency_parts_s(setting)[1] / p.bounds.latency_s),
}


def violation(uphill: Any, excess: Any, multiplier: Any) -> Any:
    """Return the largest violation of the conditions: slope of the Lagrangian, limits, signs, products."""
    parts = [uphill, jnp.maximum(excess, 0.0), jnp.maximum(-multiplier, 0.0), multiplier * excess]
    return reduce(jnp.maximum, [jnp.abs(part).max() for part in parts])


def stationarity(problem: Problem, z: Any, multiplier: Any) -> tuple[Any, Any]:
    """Return the slope of the Lagrangian, [n], and by how much each limit is exceeded, [J]."""
    curved, back = jax.vjp(problem.curved, z)
    (pull,) = back(jnp.concatenate([jnp.ones_like(z[:1]), -multiplier[2 * z.size :]]))
    uphill = pull + multiplier[: z.size] - multiplier[z.size : 2 * z.size]
    return uphill, problem.excess(z, curved)


def implicit_root(problem: Problem, z: Any, multiplier: Any, error: Any) -> tuple[Any, Any, Any]:
    """Finish at the root of the conditions, with the derivatives of the implicit function theorem.

        d objective / dz = sum_j multiplier_j d excess_j / dz
        multiplier_j + slack_j = sqrt(multiplier_j^2 + slack_j^2 + 2 eps)        slack = -excess

    The second line (Fischer and Burmeister) says that both are positive and that their product is eps. With eps at
    rounding level that is the optimum itself, whose active set need not be known: where a limit is tight the line reads
    excess = 0, where it is loose, multiplier = 0. The derivatives are dy/dp = -(dR/dy)^-1 dR/dp with R both lines,
    y = (z, multiplier) and p whatever the problem depends on.

    Args:
        problem: The problem.
        z: Where a climb ended, [n].
        multiplier: Its multipliers, [J].
        error: Its violation of the conditions; no root that is worse is taken.

    Returns:
        z, the multipliers, and the violation of the exact conditions.
    """
    import optimistix  # half of this room's time to load

    eps, num_free = float(jnp.finfo(z.dtype).eps), z.size

    def residual(y: Any, problem: Problem) -> Any:
        multiplier = y[num_free:]
        uphill, excess = stationarity(problem, y[:num_free], multiplier)
        return jnp.concatenate([uphill, multiplier - excess - jnp.sqrt(multiplier**2 + excess**2 + 2 * eps)])

    still, start = jax.lax.stop_gradient((problem, jnp.concatenate([z, multiplier])))
    # Where the accuracy is flat the equations hardly determine a root: it is sought near where the climb ended.
    near = 1e-4 * (1 + jnp.abs(start))
    ends = {"lower": start - near, "upper": start + near}
    newton = optimistix.Newton(rtol=eps**0.6, atol=eps**0.6)
    root = optimistix.root_find(residual, newton, start, still, options=ends, max_steps=6, throw=False).value
    after = violation(*stationarity(still, root[:num_free], root[num_free:]), root[num_free:])
    is_root = after <= jnp.maximum(error, eps**0.5)
    y = jnp.where(is_root, root, start)
    # One more Newton step, of which only the residual depends on p: no change of value, and the derivative above.
    # Optimistix would give the same, but stops the program where one lane of many has no solution; here it is NaN.
    step = jnp.linalg.solve(jax.jacfwd(residual)(y, still), residual(y, problem))
    y = y - (step - jax.lax.stop_gradient(step))
    return y[:num_free], y[num_free:], jnp.where(is_root, after, error)
