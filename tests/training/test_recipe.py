"""Recipes: what cannot be trained is refused before a step is taken."""

from typing import Any

import pytest

from kinetics_jax.training import Recipe


def test_a_recipe_needs_its_steps_only():
    recipe = Recipe(num_steps=1000)
    assert recipe == Recipe(num_steps=1000, seed=0)
    assert hash(recipe) == hash(Recipe(num_steps=1000))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_steps": 0}, "num_steps must be at least 1; got 0"),
        ({"batch_size": -1}, "batch_size must be at least 1; got -1"),
        ({"warmup_steps": 1000}, r"warmup_steps must lie in \[0, num_steps\); got 1000 of 1000 steps"),
        ({"warmup_steps": -1}, r"warmup_steps must lie in \[0, num_steps\); got -1"),
        ({"learning_rate": 0.0}, "learning_rate and max_grad_norm must be positive"),
        ({"learning_rate": float("nan")}, "learning_rate and max_grad_norm must be positive"),
        ({"weight_decay": -0.1}, "weight_decay not negative; got 0.001, 1.0 and -0.1"),
        ({"max_grad_norm": 0.0}, "learning_rate and max_grad_norm must be positive"),
        ({"depth_weights": (1.0, 1.0)}, r"depth_weights must be 5 numbers, one for each depth of \(4, 5, 6, 7, 8\)"),
        ({"depth_weights": (1.0, 1.0, 1.0, 1.0, -1.0)}, "none negative"),
        ({"depth_weights": (0.0,) * 5}, "not all zero"),
    ],
)
def test_impossible_settings_are_named(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        Recipe(**{"num_steps": 1000, **changes})
