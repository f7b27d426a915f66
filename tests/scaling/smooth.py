"""Surfaces and prices whose best settings are known in closed form, and a small law that looks like a fitted one."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from kinetics_jax.scaling import AccuracySurface, Setting


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Powers:
    """Cobb and Douglas: accuracy = scale n^a N^b B^c."""

    scale: Any
    length: Any
    trials: Any
    budget: Any

    def accuracy(self, setting: Setting) -> Any:
        powers = (setting.gen_len**self.length) * (setting.num_trials**self.trials)
        return self.scale * powers * setting.budget_len**self.budget


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class PowersAndParts(Powers):
    """Powers, and two parts that fill up: + share (1 - u exp(-n / s) - v exp(-N / t)).

    One class for both, so that all closed forms share a compiled program.
    """

    share: Any = 0.0
    u: Any = 0.5
    s: Any = 40.0
    v: Any = 0.4
    t: Any = 6.0

    def accuracy(self, setting: Setting) -> Any:
        filled = 1 - self.u * jnp.exp(-setting.gen_len / self.s) - self.v * jnp.exp(-setting.num_trials / self.t)
        return super().accuracy(setting) + self.share * filled


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Linear:
    """Price = p n + q N + r B."""

    p: Any
    q: Any
    r: Any

    def __call__(self, setting: Setting) -> Any:
        return self.p * setting.gen_len + self.q * setting.num_trials + self.r * setting.budget_len


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Housed(Linear):
    """Price = max(p n + q N + r B, a n, b N), as three parts; a request needs n N bytes and n milliseconds."""

    a: Any = 1e-6
    b: Any = 1e-6

    @property
    def part_names(self) -> tuple[str, ...]:
        return ("cost", "length", "trials")

    def parts(self, setting: Setting) -> tuple[Any, ...]:
        return super().__call__(setting), self.a * setting.gen_len, self.b * setting.num_trials

    def __call__(self, setting: Setting) -> Any:
        cost, length, trials = self.parts(setting)
        return jnp.maximum(cost, jnp.maximum(length, trials))

    def cache_bytes(self, setting: Setting) -> Any:
        return setting.gen_len * setting.num_trials

    def latency_s(self, setting: Setting) -> Any:
        return 1e-3 * setting.gen_len


def small_law(**changes: Any) -> AccuracySurface:
    """Return a law of six problems that looks like a fitted one."""
    values: dict[str, Any] = {
        "log_rate": -1.8,
        "difficulty": jnp.asarray([-2.0, -1.0, 0.0, 0.5, 1.5, 2.5], jnp.zeros(()).dtype),
        "length_slope": 1.2,
        "keep_slope": 1.1,
        "keep_log_len": 3.4,
        "loss_slope": 1.5,
        "loss_log_len": 2.4,
        "page_slope": 0.3,
        "ceiling": 0.95,
        "weights": jnp.full(6, 1 / 6, jnp.zeros(()).dtype),
    }
    return AccuracySurface(**{**values, **changes})
