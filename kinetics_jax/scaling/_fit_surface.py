"""Fit `AccuracySurface` to traces by maximum likelihood, and say how sure its parameters are."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from kinetics_jax.traces import TraceTable

from ._outcomes import Outcomes, count_outcomes
from ._setting import Setting
from ._surface import AccuracySurface

# Standard deviations of the normal priors: wide, so that they speak only where the trials are silent (a problem that
# nobody solves, the slope in a budget that did not vary).
_DIFFICULTY_SPREAD, _RAW_SPREAD = 2.0, 3.0
_TINY = 1e-12
# Largest element of the gradient of the mean log likelihood at which a fit ends.
_FLAT = 1e-6
Raw = dict[str, Any]


def fit_accuracy_surface(
    tables: Iterable[TraceTable], *, limits: Sequence[float] | None = None, num_steps: int = 300
) -> AccuracySurface:
    """Fit one law a model to what became of every trial, by maximum likelihood with weak priors.

    With F the law's `solved` at the rising limits n_1 .. n_I, a trial contributes

        log(F(n_i) - F(n_i-1))    if its answer stands within n_i but not within n_i-1,
        log(1 - F(n_I))           if it is not right within the last limit: wrong, or cut off there.

    This is a chain of binomials, one an interval, given that the trial is unsolved so far; no trial counts twice.
    Normal priors (standard deviation 2 for difficulties, 3 for the other parameters before they are made positive)
    keep finite what the trials leave open: the difficulty of a problem that nobody solves. All models are
    fitted at once (`vmap`), each with difficulties of its own, by L-BFGS, in double precision; what comes back has the
    precision that JAX is set to.

    Args:
        tables: One table a (model, attention) on the same problems: one method at several KV budgets, and dense.
        limits: Rising length limits that cut the intervals [tokens]; None = half octaves.
        num_steps: Steps of L-BFGS at most; it stops where the gradient of the mean log likelihood is below 1e-6.

    Returns:
        The surface of all models, in the order of the tables. Where the budget never varied, the slopes in it are
        the priors': hold `budget_len` fixed then.

    Raises:
        ValueError: If the tables mix tasks, problems or methods, a limit is out of range, or all trials lie at one
            point, which has no slope.

    References:
        PAPER.md section 3; Liu & Nocedal, On the limited memory BFGS method (1989).
    """
    outcomes = count_outcomes(tables, limits)
    require_many_points(outcomes)
    return fit_outcomes(outcomes, num_steps=num_steps)


def require_many_points(outcomes: Outcomes) -> None:
    """Raise ValueError where all trials lie at one point of length and budget."""
    if len(outcomes.limits) < 2:
        raise ValueError(
            f"a surface needs two lengths or more; got the one limit {outcomes.limits.tolist()}. A single point has "
            "no slope: name more limits."
        )
    if not (outcomes.solved.sum((1, 2)) > 0).any(axis=-1).all():
        silent = [name for name, solved in zip(outcomes.models, outcomes.solved, strict=True) if not solved.any()]
        raise ValueError(f"no trial of {', '.join(silent)} is solved: there is nothing to fit. Leave such models out.")


def fit_outcomes(outcomes: Outcomes, *, num_steps: int = 300) -> AccuracySurface:
    """Fit counted outcomes; see `fit_accuracy_surface`."""
    dtype = jnp.zeros(()).dtype
    # In single precision the line search stops short of the optimum, by up to 8% of the log likelihood, without a
    # word. Standard promotion: in double precision optax adds int32 to int64.
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        counts = [jnp.asarray(array, jnp.float64) for array in (outcomes.solved, outcomes.unsolved)]
        shared = [
            jnp.asarray(array, jnp.float64) for array in (outcomes.budget_len, outcomes.page_len, outcomes.limits)
        ]
        fitted = jax.tree.map(np.asarray, jax.vmap(_surface_of)(_fit_lanes(*counts, *shared, num_steps)))
    surface = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), fitted)
    method = {text.partition(":")[0] for text in outcomes.attentions} - {"dense"}
    return AccuracySurface(
        **{name: getattr(surface, name) for name in _LEAVES},
        models=outcomes.models,
        problems=outcomes.problems,
        method=method.pop() if method else "dense",
    )


def bootstrap_surface(
    tables: Iterable[TraceTable],
    *,
    num_resamples: int = 20,
    limits: Sequence[float] | None = None,
    num_steps: int = 60,
    seed: int = 0,
) -> AccuracySurface:
    """Fit anew to resampled trials: the spread of a parameter, or of anything computed from the surface.

    The trials of each problem are drawn with replacement, the same draw for every model and attention, since trial r
    shares random numbers across them. Problems are not resampled: their difficulties are parameters. All fits are one
    compiled program.

    Args:
        tables: As for `fit_accuracy_surface`.
        num_resamples: Draws, S.
        limits: As for `fit_accuracy_surface`.
        num_steps: Steps of L-BFGS of each; fewer than the spread needs digits.
        seed: Seed of the draws.

    Returns:
        A surface whose leaves have a first axis S before the models: `jax.vmap` over it.

    Raises:
        ValueError: As `fit_accuracy_surface`, or if there is no resample.
    """
    tables = list(tables)
    if num_resamples < 2:
        raise ValueError(f"a spread needs two resamples or more; got num_resamples={num_resamples}")
    require_many_points(count_outcomes(tables, limits))
    num_problems, num_trials = tables[0].mask.shape
    widest = max(table.num_trials for table in tables)
    rng, drawn = np.random.default_rng(seed), []
    for _ in range(num_resamples):
        weights = rng.multinomial(num_trials, np.full(widest, 1 / widest), size=num_problems)
        drawn.append(
            [
                count_outcomes([table], limits, weights[:, : table.num_trials].astype(float))
                for table in tables  # tables may differ in their trials, not in their problems
            ]
        )
    whole = count_outcomes(tables, limits)
    lanes = [_join(whole, draw) for draw in drawn]
    joined = Outcomes(
        solved=np.concatenate([lane[0] for lane in lanes]),
        unsolved=np.concatenate([lane[1] for lane in lanes]),
        budget_len=whole.budget_len,
        page_len=whole.page_len,
        limits=whole.limits,
        attentions=whole.attentions,
        models=whole.models,
        problems=whole.problems,
    )
    fitted = fit_outcomes(joined, num_steps=num_steps)
    return jax.tree.map(lambda leaf: leaf.reshape(num_resamples, len(whole.models), *leaf.shape[1:]), fitted)


def _join(whole: Outcomes, parts: Sequence[Outcomes]) -> tuple[np.ndarray, np.ndarray]:
    """Put the outcomes of single tables where they stand among all."""
    solved, unsolved = np.zeros_like(whole.solved), np.zeros_like(whole.unsolved)
    for part in parts:
        at = whole.models.index(part.models[0]), whole.attentions.index(part.attentions[0])
        solved[at], unsolved[at] = part.solved[0, 0], part.unsolved[0, 0]
    return solved, unsolved


_LEAVES = (
    "log_rate",
    "difficulty",
    "length_slope",
    "keep_slope",
    "keep_log_len",
    "loss_slope",
    "loss_log_len",
    "page_slope",
    "ceiling",
    "weights",
)
_SLOPES = ("length_slope", "keep_slope", "loss_slope", "page_slope")


def _surface_of(raw: Raw) -> AccuracySurface:
    """Make slopes positive and the ceiling a share; one model."""
    leaves: Raw = {name: jax.nn.softplus(value) if name in _SLOPES else value for name, value in raw.items()}
    num_problems = raw["difficulty"].shape[0]
    leaves["ceiling"] = jax.nn.sigmoid(raw["ceiling"])
    leaves["weights"] = jnp.full(num_problems, 1 / num_problems, raw["difficulty"].dtype)
    return AccuracySurface(**leaves)


def _start(num_problems: int, log_budget_C: Any) -> Raw:
    """Start where all slopes are about one and half of the smallest budget's rate is lost."""
    low, dtype = log_budget_C.min(), log_budget_C.dtype
    one = jnp.ones((), dtype)
    return {
        "log_rate": -1.5 * one,
        "difficulty": jnp.zeros(num_problems, dtype),
        "length_slope": 0.5 * one,
        "keep_slope": 0.5 * one,
        "keep_log_len": low,
        "loss_slope": 0.5 * one,
        "loss_log_len": low - 1.0,
        "page_slope": -1.0 * one,
        "ceiling": 2.0 * one,
    }


def log_likelihood(surface: AccuracySurface, solved: Any, unsolved: Any, budget: Any, page: Any, limits: Any) -> Any:
    """Return the log likelihood of one model's outcomes, [C, Q, I] and [C, Q], under the law."""

    def at(budget_len: Any, page_len: Any, limit: Any) -> Any:
        return surface.solved(Setting(gen_len=limit, num_trials=1.0, budget_len=budget_len, page_len=page_len))

    within = jax.vmap(lambda b, p: jax.vmap(lambda n: at(b, p, n), out_axes=-1)(limits))(budget, page)
    steps = jnp.diff(within, axis=-1, prepend=jnp.zeros((*within.shape[:2], 1), within.dtype))
    return (solved * jnp.log(steps + _TINY)).sum() + (unsolved * jnp.log1p(_TINY - within[..., -1])).sum()


@partial(jax.jit, static_argnums=5)
def _fit_lanes(solved: Any, unsolved: Any, budget: Any, page: Any, limits: Any, num_steps: int) -> Raw:
    start = _start(solved.shape[2], jnp.log(budget))

    def fit(solved: Any, unsolved: Any) -> Raw:
        num_trials = jnp.maximum(solved.sum() + unsolved.sum(), 1.0)

        def loss(raw: Raw) -> Any:
            prior = 0.5 * ((raw["difficulty"] / _DIFFICULTY_SPREAD) ** 2).sum()
            for name in start:
                if name != "difficulty":
                    prior = prior + 0.5 * ((raw[name] - start[name]) / _RAW_SPREAD) ** 2
            likely = log_likelihood(_surface_of(raw), solved, unsolved, budget, page, limits)
            return (prior - likely) / num_trials

        return _descend(loss, start, num_steps)

    return jax.vmap(fit)(solved, unsolved)


def _descend(loss: Any, start: Raw, num_steps: int) -> Raw:
    """Go down by L-BFGS until the gradient is small or the steps are spent."""
    flat, unflatten = ravel_pytree(start)  # one vector: leaf by leaf the program takes three times as long to compile
    search = optax.scale_by_backtracking_linesearch(max_backtracking_steps=20, store_grad=True)
    solver = optax.lbfgs(linesearch=search)

    def loss_of(flat: Any) -> Any:
        return loss(unflatten(flat))

    value_and_grad = optax.value_and_grad_from_state(loss_of)

    def step(carry: tuple[Any, Any, Any, Any]) -> tuple[Any, Any, Any, Any]:
        flat, state, _, count = carry
        value, grad = value_and_grad(flat, state=state)
        largest = jnp.abs(jnp.asarray(grad)).max()
        updates, state = solver.update(grad, state, flat, value=value, grad=grad, value_fn=loss_of)
        return optax.apply_updates(flat, updates), state, largest, count + 1

    def is_going(carry: tuple[Any, Any, Any, Any]) -> Any:
        _, _, slope, count = carry
        return (count < num_steps) & (slope > _FLAT)

    slope = jnp.full((), jnp.inf, flat.dtype)
    return unflatten(jax.lax.while_loop(is_going, step, (flat, solver.init(flat), slope, 0))[0])
