"""The way from a start to a stationary point: a primal-dual interior point method, one climb a lane of `vmap`."""

from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp

from ._kkt import Problem, violation

_NUM_STEPS = 32
# First mean product of multiplier and slack; the smallest slack that a climb starts with.
_BARRIER, _LEAST_SLACK = 3e-2, 1e-5
# A step changes no logarithm by more, and no direction counts as flatter.
_LONGEST_STEP, _FLATTEST = 0.7, 1e-13
_SHARES = (1.0, 0.5, 0.2, 0.05)
# Products stay within this factor of what a step aims at: a multiplier that runs away takes long to come back.
_SPREAD, _CLOSE = 1e4, 10.0
# Slacks are corrected to what a limit leaves if that is at least this share of them.
_LIKE = 0.5


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Climber:
    """Hold where a climb stands.

    Attributes:
        z: Logarithms of the free variables, [n].
        slack: Room below each limit, positive; on the way it may differ from what z leaves, [J].
        multiplier: Multipliers of the limits, positive, [J].
        error: Largest violation of the conditions where the last step began.
        score: The objective there, less what the violation may have gained.
        count: Steps taken.
    """

    z: Any
    slack: Any
    multiplier: Any
    error: Any
    score: Any
    count: Any
    aim: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class _View:
    """Hold what is known at a point: the objective, its slope along the Lagrangian, excess and slopes of the limits."""

    objective: Any
    uphill: Any  # [n]
    excess: Any  # [J]
    limits: Any  # [J, n]
    hessian: Any  # of the Lagrangian, [n, n]


def climb(problem: Problem, start: Any) -> Climber:
    """Go from a start to a stationary point.

    Every step aims at a tenth of the present mean product of multiplier and slack, or less when that is small, and
    stops short of any wall; of some shares of it the one with the least merit is taken. Where the Hessian of the
    Lagrangian would lead to a saddle its eigenvalues are turned round, so that steps go uphill; near the root they are
    Newton's.
    """
    slack = jnp.maximum(-problem.excess(start, problem.curved(start)), _LEAST_SLACK)
    begin = Climber(
        z=start,
        slack=slack,
        multiplier=_BARRIER / slack,
        error=jnp.full((), jnp.inf, start.dtype),
        score=jnp.zeros((), start.dtype),
        count=jnp.zeros((), jnp.int32),
        aim=jnp.full((), _BARRIER, start.dtype),
    )

    def is_on_the_way(at: Climber) -> Any:
        return (at.count < _NUM_STEPS) & (at.error > _arrived(start))

    return jax.lax.while_loop(is_on_the_way, lambda at: _step(problem, at), begin)


def _arrived(z: Any) -> float:
    """Return the violation at which a climb ends: 4e-10 in double precision."""
    return float(jnp.finfo(z.dtype).eps) ** 0.6


def _step(problem: Problem, at: Climber) -> Climber:
    view = _look(problem, at)
    at = replace(at, slack=_room(at.slack, view.excess))
    offs = [jnp.abs(off).max() for off in (view.uphill, view.excess + at.slack, at.multiplier * at.slack - at.aim)]
    is_close = reduce(jnp.maximum, offs) < _CLOSE * at.aim
    lower = jnp.maximum(jnp.minimum(0.2 * at.aim, at.aim**1.5), jnp.finfo(at.z.dtype).eps)
    aim = jnp.where(is_close, lower, at.aim)
    to_z, to_slack, to_multiplier = _direction(view, at, aim)
    # Never more than 95% of the way to a wall, and all but the last of it near the end.
    near = jnp.maximum(0.95, 1 - aim)
    along, along_multiplier = _to_wall(at.slack, to_slack, near), _to_wall(at.multiplier, to_multiplier, near)
    along = along * _best_share(problem, at, along * to_z, along * to_slack, aim)
    error = violation(view.uphill, view.excess, at.multiplier)
    # At a root the equations are at the mercy of rounding: whoever has arrived stays.
    is_sound = (error > _arrived(at.z)) & jnp.isfinite(to_z).all() & jnp.isfinite(to_multiplier).all()

    def moved(value: Any, share: Any, change: Any) -> Any:
        return value + jnp.where(is_sound, share * change, 0.0)

    slack = moved(at.slack, along, to_slack)
    multiplier = moved(at.multiplier, along_multiplier, to_multiplier)
    # Products below rounding would stop every later step at the wall.
    slack = jnp.maximum(slack, jnp.finfo(slack.dtype).eps ** 1.25)
    multiplier = jnp.clip(multiplier, aim / _SPREAD / slack, aim * _SPREAD / slack)
    gained = (1 + at.multiplier.sum()) * jnp.where(jnp.isnan(error), jnp.inf, error)
    return Climber(
        z=moved(at.z, along, to_z),
        slack=slack,
        multiplier=jnp.where(is_sound, multiplier, at.multiplier),
        error=error,
        score=view.objective - gained,
        count=at.count + 1,
        aim=aim,
    )


def _direction(view: _View, at: Climber, aim: Any) -> tuple[Any, Any, Any]:
    """Solve Newton's equations for slope 0, excess + slack 0 and multiplier slack = aim; limits become walls."""
    mismatch = view.excess + at.slack
    stiffness = at.multiplier / at.slack
    push = aim / at.slack - at.multiplier + stiffness * mismatch
    walls = (view.limits.T * stiffness[None]) @ view.limits
    values, vectors = jnp.linalg.eigh(walls - (view.hessian + view.hessian.T) / 2)
    to_z = vectors @ (((view.uphill - push @ view.limits) @ vectors) / jnp.maximum(jnp.abs(values), _FLATTEST))
    # A factor of two in length or trials at most: far from the path the quadratic model says little.
    to_z = to_z * jnp.minimum(1.0, _LONGEST_STEP / jnp.maximum(jnp.abs(to_z).max(), _FLATTEST))
    towards = view.limits @ to_z
    return to_z, -mismatch - towards, push + stiffness * towards


def _best_share(problem: Problem, at: Climber, to_z: Any, to_slack: Any, aim: Any) -> Any:
    """Return the share of a step with the least merit: objective, barrier, and limits that do not match their slack."""
    steepness = 2 * at.multiplier.max() + aim

    def merit(share: Any) -> Any:
        z, slack = at.z + share * to_z, at.slack + share * to_slack
        curved = problem.curved(z)
        excess = problem.excess(z, curved)
        slack = _room(slack, excess)
        mismatch = jnp.abs(excess + slack).sum()
        merit = steepness * mismatch - curved[0] - aim * jnp.log(slack).sum()
        return jnp.where(jnp.isfinite(merit), merit, jnp.inf)

    shares = jnp.asarray(_SHARES, at.z.dtype)
    return shares[jnp.argmin(jax.vmap(merit)(shares))]


def _room(slack: Any, excess: Any) -> Any:
    """Return the slacks that the limits leave, where those are not much smaller than believed.

    Else the curvature of limits that nothing comes near, the cost of one who has money to spare, would shorten steps.
    """
    return jnp.where(-excess > _LIKE * slack, -excess, slack)


def _to_wall(value: Any, change: Any, near: Any) -> Any:
    """Return the share of a change, at most 1, that keeps every value positive by the part `near` leaves."""
    return jnp.minimum(1.0, (near / jnp.maximum(-change / value, 1e-9)).min())


def _look(problem: Problem, at: Climber) -> _View:
    """Return values, slopes and curvature at a point, traced once."""
    z, multiplier, first_curved = at.z, at.multiplier, 2 * at.z.size
    unit = jnp.eye(z.size, dtype=z.dtype)

    def slopes(z: Any) -> tuple[Any, Any]:
        # Apart from each other: the sums over problems are in the surface, and only one row needs them.
        accuracy, back = jax.vjp(problem.log_accuracy, z)
        prices, rows = jax.vjp(problem.log_prices, z)
        each = jnp.eye(prices.size, dtype=z.dtype)
        by_z = jnp.concatenate([back(jnp.ones_like(accuracy))[0][None], jax.vmap(lambda row: rows(row)[0])(each)])
        return jnp.concatenate([accuracy[None], prices]), problem.arrange(by_z)

    def along(direction: Any) -> tuple[Any, Any, Any]:
        (value, first), (_, second) = jax.jvp(slopes, (z,), (direction,))
        return value, first, second

    logs, first, second = jax.vmap(along, out_axes=(None, None, -1))(unit)
    curved = problem.limited(logs)
    limits = jnp.concatenate([-unit, unit, first[1:]])
    return _View(
        objective=curved[0],
        uphill=first[0] - multiplier @ limits,
        excess=problem.excess(z, curved),
        limits=limits,
        hessian=second[0] - jnp.tensordot(multiplier[first_curved:], second[1:], 1),
    )
