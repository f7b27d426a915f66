"""The recipes of the embedded family: what `kinetics train` runs by name, and what the shipped weights came from."""

from dataclasses import replace

from ._recipe import Recipe

MINI_RECIPES: dict[str, Recipe] = {
    "Kinetics-Mini-0.1M": Recipe(num_steps=12_000, learning_rate=5e-3),
    "Kinetics-Mini-0.6M": Recipe(num_steps=12_000, learning_rate=3e-3),
    "Kinetics-Mini-1.7M": Recipe(num_steps=8_300, learning_rate=2e-3),
    "Kinetics-Mini-7M": Recipe(num_steps=12_000, learning_rate=1e-3),
}
"""Recipe by model name; each was run on one NVIDIA H200."""


def mini_recipe(name: str, *, num_steps: int | None = None, seed: int | None = None) -> Recipe:
    """Return the recipe of an embedded model, shortened or reseeded if asked.

    Args:
        name: A key of `MINI_RECIPES`.
        num_steps: Another number of steps; the warm-up then takes at most a tenth of them. None keeps the recipe's.
        seed: Another seed of the initial weights; None keeps the recipe's.

    Raises:
        ValueError: If there is no recipe of that name; lists the known ones. Also as `Recipe`.

    Example:
        >>> mini_recipe("Kinetics-Mini-7M").num_steps, mini_recipe("Kinetics-Mini-7M", num_steps=100).warmup_steps
        (12000, 10)
    """
    if name not in MINI_RECIPES:
        raise ValueError(f"no recipe for model {name!r}. Known: {', '.join(MINI_RECIPES)}")
    recipe = MINI_RECIPES[name]
    if num_steps is not None and num_steps != recipe.num_steps:
        warmup_steps = min(recipe.warmup_steps, max(num_steps, 0) // 10)
        recipe = replace(recipe, num_steps=num_steps, warmup_steps=warmup_steps)
    return recipe if seed is None else replace(recipe, seed=seed)
