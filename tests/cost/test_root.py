"""The root finder on curves whose roots are known in closed form."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kinetics_jax.cost._root import rising_root


def cubic(x: Any, target: Any) -> Any:
    return x**3 - target


def cube_root(target: Any) -> Any:
    return rising_root(cubic, target + 1.0, target)


def test_plain_numbers_and_numpy_stay_what_they_are() -> None:
    assert isinstance(cube_root(27.0), float)
    assert abs(cube_root(27.0) - 3.0) <= 4e-16 * 3
    targets = np.array([[0.0, 1e-6], [8.0, 1e15]])
    roots = cube_root(targets)
    assert isinstance(roots, np.ndarray)
    np.testing.assert_allclose(roots, np.cbrt(targets), rtol=1e-12)


def test_three_derivatives_are_those_of_the_inverse_function() -> None:
    """x = n^(1/3): n^(-2/3) / 3, -2 n^(-5/3) / 9, 10 n^(-8/3) / 27."""
    with jax.enable_x64(True):
        first = jax.grad(cube_root)
        second = jax.grad(first)
        third = jax.jacfwd(second)
        slopes = jax.jit(jax.vmap(lambda n: (cube_root(n), first(n), second(n), third(n))))(jnp.array([0.3, 27.0, 1e6]))
        n = np.array([0.3, 27.0, 1e6])
        wanted = (n ** (1 / 3), n ** (-2 / 3) / 3, -2 * n ** (-5 / 3) / 9, 10 * n ** (-8 / 3) / 27)
    for got, value in zip(slopes, wanted, strict=True):
        np.testing.assert_allclose(got, value, rtol=1e-10)


def test_the_bracket_has_no_part_in_the_derivative() -> None:
    with jax.enable_x64(True):
        slope = jax.grad(lambda high: rising_root(cubic, high, jnp.float64(8.0)))(50.0)
    assert slope == 0.0


def test_float32_and_a_root_at_zero() -> None:
    """x + x^3 = n, which rises at zero too."""

    def root(target: Any) -> Any:
        return rising_root(lambda x, n: x + x**3 - n, target, target)

    targets = jnp.array([0.0, 2.0, 30.0, 1_000_100.0], jnp.float32)
    roots, slopes = jax.jit(jax.vmap(jax.value_and_grad(root)))(targets)
    assert roots.dtype == jnp.float32
    np.testing.assert_allclose(roots, [0.0, 1.0, 3.0, 100.0], rtol=3e-7)
    np.testing.assert_allclose(slopes, [1.0, 1 / 4, 1 / 28, 1 / 30_001], rtol=1e-6)
    assert root(0.0) == 0.0
