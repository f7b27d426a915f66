"""Where climbs begin: the best points of a grid, which is evaluated once for all limits."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._kkt import Problem

# Points of the grid a free variable, by the number of free variables.
_GRID = {1: 64, 2: 24, 3: 10, 4: 6}
# Coarse copies of it pulled towards the corner that meets every limit first, for limits that hardly anything meets.
_COARSE, _PULLS = {1: 16, 2: 8, 3: 5, 4: 4}, (0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 1e-4)
# Starts differ in one variable at least by this share of the box.
_APART = 0.25
_BARRIER = 3e-3


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Grid:
    """Hold what is known of G points of the box before the main limit is.

    Attributes:
        unit: Place in the box, 0 to 1 in each free variable, [G, n].
        points: Logarithms, [G, n].
        score: What is maximised, with the logarithms of the slacks beside the main one added as a barrier, [G].
        main: What the limit is put on: log cost, or minus log accuracy, [G].
    """

    unit: Any
    points: Any
    score: Any
    main: Any


def make_grid(problem: Problem) -> Grid:
    """Evaluate the problem on a grid inside the box and on copies of it pulled towards the safe corner."""
    num_free = len(problem.bounds.free)
    low, high = problem.box()
    cells = np.concatenate(
        [_cells(_GRID[num_free], num_free), *(pull * _cells(_COARSE[num_free], num_free) for pull in _PULLS)]
    )
    if problem.goal == "cost":  # accuracies are reached from above
        cells = 1 - cells
    if {"page_len", "budget_len"} <= set(problem.bounds.free):  # large pages are the cheap ones
        turned = cells.copy()
        turned[:, -1] = 1 - turned[:, -1]
        cells = np.concatenate([cells, turned[-len(cells) // 2 :]])
    unit = jnp.asarray(cells, low.dtype)
    points = jax.vmap(lambda share: _place(problem, share))(unit)
    without_limit = replace(problem, log_limit=jnp.zeros((), low.dtype))
    curved = jax.vmap(without_limit.curved)(points)
    first_other = 1 + len(problem.main_names)
    slack = jnp.concatenate([points - low[None], high[None] - points, -curved[:, first_other:]], axis=1)
    barrier = jnp.log(jnp.maximum(slack, 0.0)).sum(1)  # minus infinity outside
    return Grid(unit=unit, points=points, score=curved[:, 0] + _BARRIER * barrier, main=curved[:, 1:first_other].max(1))


def _place(problem: Problem, share: Any) -> Any:
    """Return the point at a share of each variable's range; budgets end at the context, pages at the budget."""
    free = problem.bounds.free
    low, high = problem.box()
    z = low + share * (high - low)
    for name, limit, top in (
        ("budget_len", "whole context", problem.context_len),
        ("page_len", "page in budget", lambda at: at.budget_len),
    ):
        if limit in problem.other_names:
            i = free.index(name)
            end = jnp.minimum(high[i], jnp.log(top(problem.setting(z))))
            z = z.at[i].set(low[i] + share[i] * (end - low[i]))
    return z


def _cells(num_points: int, num_free: int) -> np.ndarray:
    axis = (1 - np.cos(np.pi * (np.arange(num_points) + 0.5) / num_points)) / 2  # closer at the ends: optima lie there
    return np.stack(np.meshgrid(*[axis] * num_free, indexing="ij"), -1).reshape(-1, num_free)


def pick_starts(grid: Grid, problem: Problem, num_starts: int) -> Any:
    """Return points of the grid inside all limits, near the first barrier problem's optima, [num_starts, n].

    Each is the best of those a quarter of the box away from all before it, in one variable at least: where there are
    several optima, they shall lead to different ones.
    """
    limit = problem.log_limit if problem.goal == "accuracy" else -problem.log_limit
    slack = limit - grid.main
    score = grid.score + _BARRIER * jnp.log(jnp.maximum(slack, 0.0))
    # Where nothing is inside, the nearest to being so; from there a climb may fail.
    score = jnp.where(jnp.isfinite(score), score, -1e9 - jnp.maximum(-slack, 0.0))
    starts = []
    for _ in range(num_starts):
        best = jnp.argmax(score)
        starts.append(grid.points[best])
        is_near = (jnp.abs(grid.unit - grid.unit[best][None]) <= _APART).all(-1)
        score = jnp.where(is_near, score - 1e3, score)  # near ones come before any that is outside
    return jnp.stack(starts)
