"""jit, vmap, grad, jvp, float32 and float64: same numbers, right slopes, no NaN at the edges."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kinetics_jax.cost import (
    Cost,
    eflops,
    entries_read,
    entries_searched,
    expected_cost,
    iso_cost_len,
    phi,
    request_cost,
)
from kinetics_jax.specs import HARDWARE, MODELS, AttentionSpec, BlockTopK, Dense, Local, Quest, TopK

MODEL, B200 = MODELS["Qwen3-1.7B"], HARDWARE["PAPER_B200"]
SPECS = [
    Dense(),
    TopK(budget_len=64),
    Local(window_len=60, sink_len=4, dense_layers=1),
    BlockTopK(page_len=16, num_pages=4, num_sink_pages=1),
    Quest(page_len=16, num_pages=4, dense_layers=2),
]
every_spec = pytest.mark.parametrize("spec", SPECS, ids=str)
CONVENTIONS: tuple[Literal["exact", "paper"], ...] = ("exact", "paper")
TERMS = [term.name for term in fields(Cost)]


@contextmanager
def float64() -> Iterator[None]:
    """Switch on 64 bit for one test."""
    with jax.enable_x64(True):
        yield


def total(spec: AttentionSpec, convention: Any, combine: Any = "add") -> Callable[..., Any]:
    """Return eFLOPs as a function of (prompt_len, gen_len, num_trials)."""

    def price(prompt_len: Any, gen_len: Any, num_trials: Any) -> Any:
        cost = request_cost(
            MODEL,
            spec,
            prompt_len=prompt_len,
            gen_len=gen_len,
            num_trials=num_trials,
            batch_size=4,
            convention=convention,
        )
        return eflops(cost, B200, combine=combine)

    return price


@every_spec
def test_numpy_jit_and_vmap_give_the_scalar_numbers(spec: AttentionSpec) -> None:
    prompt_lens, gen_lens, trials = np.array([[0], [63], [200]]), np.array([0, 1, 64, 300]), 5
    num_compiled = 0

    def bills(prompt_len: Any, gen_len: Any) -> tuple[Cost, ...]:
        return tuple(
            request_cost(
                MODEL, spec, prompt_len=prompt_len, gen_len=gen_len, num_trials=trials, batch_size=2, convention=name
            )
            for name in CONVENTIONS
        )

    @jax.jit
    def both(prompt_lens: Any, gen_lens: Any) -> tuple[tuple[Cost, ...], ...]:
        nonlocal num_compiled
        num_compiled += 1
        by_vmap = jax.vmap(jax.vmap(bills, (None, 0)), (0, None))(prompt_lens[:, 0], gen_lens)
        return bills(prompt_lens, gen_lens), by_vmap

    with float64():
        by_jax = both(prompt_lens, gen_lens)
        both(prompt_lens + 1, gen_lens + 1)
        assert num_compiled == 1  # Traced once: other values compile nothing.
    by_numpy = bills(prompt_lens, gen_lens)
    for row, column in np.ndindex(3, 4):
        scalars = bills(int(prompt_lens[row, 0]), int(gen_lens[column]))
        for convention, scalar in enumerate(scalars):
            for term in TERMS:
                wanted = getattr(scalar, term)
                assert isinstance(wanted, float)
                for cost in (by_numpy, *by_jax):
                    got = getattr(cost[convention], term)
                    assert (got.shape, got.dtype) == ((3, 4), np.float64)
                    np.testing.assert_allclose(got[row, column], wanted, rtol=1e-12, err_msg=term)


def test_numpy_arrays_stay_numpy_and_one_jax_array_decides() -> None:
    lengths = np.array([3, 5])
    for given, kind in ((lengths, np.ndarray), (jnp.asarray(lengths), jax.Array)):
        cost = request_cost(MODEL, Dense(), prompt_len=lengths, gen_len=given)
        assert all(isinstance(leaf, kind) for leaf in jax.tree.leaves(cost))
        assert isinstance(eflops(cost, B200), kind)


@every_spec
def test_gradients_are_central_differences(spec: AttentionSpec) -> None:
    """Points off the kinks: budget reached, page filled, streaming given up. Differences in NumPy, which is exact."""
    points = [(30.3, 17.4, 3.1), (100.3, 57.4, 3.1), (10.7, 210.2, 1.3), (64.2, 5.3, 20.4), (20.6, 33.7, 2.9)]
    smooth = [total(spec, "exact"), total(spec, "exact", 3.0)]
    kinked = total(spec, "paper", "max")

    @jax.jit
    def slopes_of(points: Any) -> Any:
        reverse = jax.vmap(jax.jacrev(lambda *point: [price(*point) for price in smooth], (0, 1, 2)))(*points.T)
        return [*reverse, jax.vmap(jax.jacfwd(kinked, (0, 1, 2)))(*points.T)]

    with float64():
        slopes = slopes_of(jnp.array(points))
    for price, slope_axes in zip([*smooth, kinked], slopes, strict=True):
        level = price(*np.array(points).T)
        for axis, slope in enumerate(slope_axes):
            step = np.eye(3)[axis] * 1e-4
            above, below = (price(*(np.array(points) + sign * step).T) for sign in (1, -1))
            wanted = (above - below) / 2e-4
            assert (np.abs(np.asarray(slope) - wanted) <= 1e-5 * (np.abs(wanted) + level)).all(), axis


def test_gradient_in_the_batch_of_a_mixture_of_experts() -> None:
    """More sequences touch more experts: the price of the weights falls more slowly than 1 / batch."""
    model = MODELS["Qwen3-30B-A3B"]

    def price(batch_size: Any) -> Any:
        return request_cost(model, Dense(), prompt_len=9, gen_len=5, batch_size=batch_size, kv_dtype="int8").bytes

    sizes = np.array([1.0, 2.0, 30.0, 1000.0])
    with float64():
        slopes = np.asarray(jax.jit(jax.vmap(jax.grad(price)))(jnp.asarray(sizes)))
    differences = (price(sizes * (1 + 1e-5)) - price(np.maximum(sizes * (1 - 1e-5), 1.0))) / (
        sizes * (1 + 1e-5) - np.maximum(sizes * (1 - 1e-5), 1.0)
    )
    np.testing.assert_allclose(slopes[1:], differences[1:], rtol=1e-5)
    assert (slopes < 0).all()
    assert (np.diff(price(sizes) * sizes) > 0).all()


@every_spec
def test_no_nan_at_the_edges(spec: AttentionSpec) -> None:
    edges = jnp.array(
        [[p, g, n] for p in (0.0, 48.0, 63.0, 64.0, 65.0) for g in (0.0, 1.0, 16.0, 64.0) for n in (1.0, 8.0)]
    )
    prices = [total(spec, "exact", 2.5), total(spec, "paper", "max")]
    both = jax.jit(lambda edges: [jax.vmap(jax.value_and_grad(price, (0, 1, 2)))(*edges.T) for price in prices])
    for value, gradient in both(edges):
        assert value.dtype == jnp.float32
        for array in (value, *gradient):
            assert np.isfinite(array).all()
        assert (np.asarray(gradient[1]) > 0).all()


@every_spec
def test_float32_agrees_with_float64(spec: AttentionSpec) -> None:
    lengths = jnp.array([0, 5, 1000, 32_768], jnp.int32)
    price = total(spec, "exact")
    single = jax.jit(price)(lengths[:, None], lengths[None], 7)
    double = price(np.asarray(lengths)[:, None], np.asarray(lengths)[None], 7)
    assert (single.dtype, double.dtype) == (np.float32, np.float64)
    np.testing.assert_allclose(single, double, rtol=1e-5)


def test_half_precision_and_mixed_arrays_are_widened() -> None:
    with float64():
        cost = request_cost(
            MODEL,
            Dense(),
            prompt_len=jnp.array([7, 9], jnp.int8),
            gen_len=jnp.array([[300.0], [5.0]], jnp.bfloat16),
            num_trials=jnp.float32(2.0),
        )
        assert cost.flops.dtype == jnp.float64
        assert cost.flops.shape == (2, 2)
    half = jax.jit(lambda gen_len: entries_read(Dense(), prompt_len=0, gen_len=gen_len))(jnp.bfloat16(256.0))
    assert half == 256 * 257 / 2


@every_spec
def test_expected_cost_has_finite_gradients_where_masked(spec: AttentionSpec) -> None:
    mask = jnp.array([[True, False], [False, False]])

    def price(gen_lens: Any) -> Any:
        return jnp.nansum(eflops(expected_cost(MODEL, spec, prompt_len=9, gen_lens=gen_lens, mask=mask), B200))

    gen_lens = jnp.array([[70.0, jnp.nan], [3.0, -5.0]])
    value, gradient = jax.jit(jax.value_and_grad(price))(gen_lens)
    by_numpy = expected_cost(MODEL, spec, prompt_len=9, gen_lens=np.asarray(gen_lens), mask=np.asarray(mask))
    assert isinstance(by_numpy.bytes, np.ndarray)
    np.testing.assert_allclose(value, np.nansum(eflops(by_numpy, B200)), rtol=1e-6)
    np.testing.assert_array_equal(np.isfinite(gradient), True)
    np.testing.assert_array_equal(np.asarray(gradient) > 0, [[True, False], [False, False]])


def test_cost_is_a_pytree_with_arithmetic() -> None:
    price = lambda gen_len: request_cost(MODEL, Dense(), prompt_len=3, gen_len=gen_len)  # noqa: E731
    once, twice = price(10), 2 * price(10)
    assert (once + once) == twice == once * 2
    assert len(jax.tree.leaves(once)) == 7
    shapes = jax.eval_shape(price, jax.ShapeDtypeStruct((4, 2), jnp.float32))
    assert {leaf.shape for leaf in jax.tree.leaves(shapes)} == {(4, 2)}
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(price(jnp.float32(n)) for n in (1, 2)))
    np.testing.assert_allclose((stacked * jnp.array([1.0, 3.0])).flops, stacked.flops * jnp.array([1.0, 3.0]))


@pytest.mark.parametrize(("spec", "combine"), [(SPECS[1], 2.0), (SPECS[3], "add")], ids=str)
def test_iso_cost_len_inverts_the_price(spec: AttentionSpec, combine: Any) -> None:
    """The implicit slopes come from central differences of the price in NumPy."""
    price = total(spec, "exact", combine)

    def length(target: Any, prompt_len: Any, num_trials: Any) -> Any:
        return iso_cost_len(
            MODEL, spec, B200, target, prompt_len=prompt_len, num_trials=num_trials, batch_size=4, combine=combine
        )

    targets, prompts, trials = np.array([0.0, 1e9, 1e13, 1e13, 1e16]), np.array([0.0, 50.3, 50.3, 900.7, 0.7]), 3.3
    with float64():
        solve = jax.jit(jax.vmap(jax.value_and_grad(length, argnums=(0, 1, 2))))
        lengths, slopes = solve(targets, prompts, np.full(5, trials))
        assert bool(jnp.isfinite(jnp.stack(slopes)).all())
    point = [prompts, np.asarray(lengths), np.full(5, trials)]
    np.testing.assert_allclose(price(*point), targets, rtol=1e-9)

    def partial(axis: int) -> np.ndarray:
        shifted = [[x + sign * 1e-4 * (i == axis) for i, x in enumerate(point)] for sign in (1, -1)]
        return (price(*shifted[0]) - price(*shifted[1])) / 2e-4

    inner = slice(1, None)  # At a target of 0 the length cannot shrink.
    wanted = (1 / partial(1), -partial(0) / partial(1), -partial(2) / partial(1))
    for slope, implicit in zip(slopes, wanted, strict=True):
        np.testing.assert_allclose(slope[inner], implicit[inner], rtol=1e-5)


def test_iso_cost_len_has_the_second_derivative() -> None:
    """T = sqrt((P / a)^2 + C / a) - P / a: d2T/dC2 = -1 / (4 a^2 ((P / a)^2 + C / a)^(3/2))."""

    def length(target: Any) -> Any:
        return iso_cost_len(MODEL, Dense(), B200, target, prompt_len=0, convention="paper")

    with float64():
        quadratic, linear, target = (2 + 562.5) * MODEL.kv_elements_per_token, MODEL.num_stored_params, 2e16
        root = (linear / quadratic) ** 2 + target / quadratic
        second = jax.jit(jax.grad(jax.grad(length)))(target)
        np.testing.assert_allclose(second, -1 / (4 * quadratic**2 * root**1.5), rtol=1e-8)


def test_iso_cost_len_in_float32() -> None:
    targets = jnp.array([1e12, 1e15, 1e17])
    lengths = jax.jit(lambda target: iso_cost_len(MODEL, TopK(budget_len=256), B200, target, prompt_len=100))(targets)
    assert lengths.dtype == jnp.float32
    cost = request_cost(MODEL, TopK(budget_len=256), prompt_len=100, gen_len=np.asarray(lengths))
    np.testing.assert_allclose(eflops(cost, B200), targets, rtol=1e-5)


def test_phi_of_arrays() -> None:
    by_array = jax.jit(lambda n: phi(MODEL, B200, gen_len=n, prompt_len=10))(jnp.array([0.0, 50.0, 4000.0]))
    wanted = np.array([phi(MODEL, B200, gen_len=n, prompt_len=10) for n in (0, 50, 4000)])
    np.testing.assert_allclose(by_array, wanted, rtol=1e-6)


@every_spec
def test_bad_values_in_arrays_give_nan_in_their_own_element(spec: AttentionSpec) -> None:
    bad, good = jnp.array([5.0, -1.0, jnp.inf, jnp.nan]), [True, False, False, False]

    def numbers(bad: Any) -> tuple[Any, ...]:
        bills = (
            request_cost(MODEL, spec, prompt_len=bad, gen_len=9),
            request_cost(MODEL, spec, prompt_len=9, gen_len=bad),
            request_cost(MODEL, spec, prompt_len=9, gen_len=9, num_trials=bad),
            request_cost(MODEL, spec, prompt_len=9, gen_len=9, batch_size=bad),
        )
        return (
            *(cost.flops for cost in bills),
            *(cost.bytes for cost in bills),
            entries_read(spec, prompt_len=bad, gen_len=9),
            entries_searched(spec, prompt_len=9, gen_len=bad),
            phi(MODEL, B200, gen_len=bad),
        )

    for number in (*jax.jit(numbers)(bad), *numbers(np.asarray(bad))):
        np.testing.assert_array_equal(np.isfinite(number), good)


def test_iso_cost_len_of_bad_values_is_nan_in_their_own_element() -> None:
    solve = jax.jit(lambda bad: iso_cost_len(MODEL, Dense(), B200, 1e12, prompt_len=bad))
    lengths = solve(jnp.array([5.0, -1.0, jnp.inf, jnp.nan]))
    np.testing.assert_array_equal(np.isfinite(lengths), [True, False, False, False])
