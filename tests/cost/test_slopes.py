"""Slopes of the price at random points: equal to central differences in double precision, away from kinks."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kinetics_jax.cost import eflops, prefill_cost, request_cost
from kinetics_jax.specs import HARDWARE, MODELS, AttentionSpec, Local, Quest, TopK

EXPERTS, B200 = MODELS["Qwen3-30B-A3B"], HARDWARE["PAPER_B200"]
QUEST = Quest(page_len=12, num_pages=12, dense_layers=2)
SPECS = [TopK(budget_len=150, dense_layers=1), Local(window_len=120, sink_len=30), QUEST]
LOWEST, HIGHEST = [0.0, 1.0, 1.0, 1.0], [300.0, 300.0, 20.0, 50.0]
STEP = 1e-4


def request(spec: AttentionSpec) -> Callable[..., Any]:
    def price(prompt_len: Any, gen_len: Any, num_trials: Any, batch_size: Any) -> Any:
        cost = request_cost(
            EXPERTS,
            spec,
            prompt_len=prompt_len,
            gen_len=gen_len,
            num_trials=num_trials,
            batch_size=batch_size,
            kv_dtype="int8",
        )
        return eflops(cost, B200, combine=2.0)

    return price


def prompt(prompt_len: Any, chunk_len: Any, batch_size: Any) -> Any:
    cost = prefill_cost(EXPERTS, QUEST, prompt_len=prompt_len, chunk_len=chunk_len, batch_size=batch_size)
    return eflops(cost, B200)


def share_of_right_slopes(price: Callable[..., Any], points: np.ndarray) -> float:
    """Compare all partial derivatives at [points, axes]; return the share of points compared.

    Left out are kinks, where the differences to the left and to the right disagree and no derivative is right, and
    bends that are too sharp for the step.
    """
    axes = tuple(range(points.shape[1]))
    with jax.enable_x64(True):
        slopes = jax.jit(jax.vmap(jax.grad(price, axes)))(*points.T)
    level, compared = price(*points.T), []
    for axis, slope in enumerate(slopes):
        step = STEP * np.eye(len(axes))[axis]
        above, below = (price(*(points + sign * step).T) for sign in (1, -1))
        wanted = (above - below) / (2 * STEP)
        tolerance = 1e-5 * (np.abs(wanted) + level / points[:, axis].clip(1.0))
        smooth = np.abs((above - level) - (level - below)) / STEP <= tolerance
        assert (np.abs(np.asarray(slope) - wanted) <= tolerance)[smooth].all(), axis
        compared.append(smooth)
    return float(np.mean(compared))


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_slopes_of_a_request_are_central_differences(spec: AttentionSpec) -> None:
    points = np.random.default_rng(0).uniform(LOWEST, HIGHEST, (300, 4)) + STEP
    assert share_of_right_slopes(request(spec), points) > 0.9


def test_slopes_of_a_prefill_are_central_differences() -> None:
    points = np.random.default_rng(0).uniform([0.0, 10.0, 1.0], [300.0, 90.0, 50.0], (300, 3)) + STEP
    # A last chunk of few tokens meets experts fast: sharp bends.
    assert share_of_right_slopes(prompt, points) > 0.8


def test_slopes_at_the_edges_are_finite() -> None:
    """Nothing generated, an empty prompt, a budget of exactly the context, a prompt that ends with a chunk."""
    prompts, lengths = (grid.ravel() for grid in np.meshgrid([0.0, 1.0, 138.0, 144.0], [0.0, 1.0, 6.0, 144.0]))

    def slopes(prompts: Any, lengths: Any) -> Any:
        ones = jnp.ones_like(prompts)
        of_request = jax.vmap(jax.grad(request(QUEST), (0, 1, 2, 3)))(prompts, lengths, ones, ones)
        return of_request, jax.vmap(jax.grad(prompt, (0, 1, 2)))(prompts, jnp.maximum(lengths, 1.0), ones)

    for slope in jax.tree.leaves(jax.jit(slopes)(prompts, lengths)):
        assert slope.shape == (16,)
        assert np.isfinite(slope).all()
