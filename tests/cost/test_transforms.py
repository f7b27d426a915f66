"""jit, vmap, grad, jvp, float32 and float64: same numbers, right slopes, no NaN at the edges."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

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
from kinetics_jax.specs import HARDWARE, MODELS, AttentionSpec, BlockTopK, Dense, Local, TopK

MODEL, B200 = MODELS["Qwen3-1.7B"], HARDWARE["PAPER_B200"]
SPECS = [Dense(), TopK(budget_len=64), Local(window_len=64), BlockTopK(page_len=16, num_pages=4, num_sink_pages=1)]
every_spec = pytest.mark.parametrize("spec", SPECS, ids=str)
every_convention = pytest.mark.parametrize("convention", ["exact", "paper"])
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
@every_convention
def test_arrays_jit_and_vmap_give_the_scalar_numbers(spec: AttentionSpec, convention: Any) -> None:
    prompt_lens, gen_lens, trials = np.array([[0], [63], [200]]), np.array([0, 1, 64, 300]), 5
    num_compiled = 0

    def price(prompt_len: Any, gen_len: Any) -> Cost:
        nonlocal num_compiled
        num_compiled += 1
        return request_cost(
            MODEL, spec, prompt_len=prompt_len, gen_len=gen_len, num_trials=trials, batch_size=2, convention=convention
        )

    with float64():
        jitted = jax.jit(price)
        by_broadcast = jitted(prompt_lens, gen_lens)
        jitted(prompt_lens + 1, gen_lens + 1)
        assert num_compiled == 1  # Traced once: other values compile nothing.
        by_vmap = jax.jit(jax.vmap(jax.vmap(price, (None, 0)), (0, None)))(
            jnp.asarray(prompt_lens[:, 0]), jnp.asarray(gen_lens)
        )
        for row, column in np.ndindex(3, 4):
            scalar = price(int(prompt_lens[row, 0]), int(gen_lens[column]))
            for term in TERMS:
                wanted = getattr(scalar, term)
                assert isinstance(wanted, float)
                for cost in (by_broadcast, by_vmap):
                    got = getattr(cost, term)
                    assert (got.shape, got.dtype) == ((3, 4), jnp.float64)
                    np.testing.assert_allclose(got[row, column], wanted, rtol=1e-12, err_msg=term)


@every_spec
@pytest.mark.parametrize(("convention", "combine"), [("exact", "add"), ("exact", 3.0), ("paper", "max")])
def test_gradients_are_central_differences(spec: AttentionSpec, convention: Any, combine: Any) -> None:
    """Points off the kinks: budget reached, page filled, streaming given up."""
    points = [(30.3, 17.4, 3.1), (100.3, 57.4, 3.1), (10.7, 210.2, 1.3), (64.2, 5.3, 20.4), (20.6, 33.7, 2.9)]
    with float64():
        price = jax.jit(total(spec, convention, combine))
        gradient = jax.jit(jax.jacfwd(price, argnums=(0, 1, 2)) if combine == "max" else jax.grad(price, (0, 1, 2)))
        for point in points:
            for axis, slope in enumerate(gradient(*point)):
                step = np.eye(3)[axis] * 1e-4
                above, below = (float(price(*(np.array(point) + sign * step))) for sign in (1, -1))
                np.testing.assert_allclose(slope, (above - below) / 2e-4, rtol=1e-5, atol=1e-5 * float(price(*point)))


@every_spec
@pytest.mark.parametrize(("convention", "combine"), [("exact", 2.5), ("paper", "max")])
def test_no_nan_at_the_edges(spec: AttentionSpec, convention: Any, combine: Any) -> None:
    edges = jnp.array(
        [[p, g, n] for p in (0.0, 48.0, 63.0, 64.0, 65.0) for g in (0.0, 1.0, 16.0, 64.0) for n in (1.0, 8.0)]
    )
    price = total(spec, convention, combine)
    value, gradient = jax.jit(jax.vmap(jax.value_and_grad(price, argnums=(0, 1, 2))))(*edges.T)
    assert value.dtype == jnp.float32
    for array in (value, *gradient):
        assert bool(jnp.isfinite(array).all())
    assert bool((gradient[1] > 0).all())


@every_spec
def test_float32_agrees_with_float64(spec: AttentionSpec) -> None:
    lengths = jnp.array([0, 5, 1000, 32_768], jnp.int32)
    price = total(spec, "exact")
    single = jax.jit(price)(lengths[:, None], lengths[None], 7)
    with float64():
        double = jax.jit(price)(np.asarray(lengths)[:, None], np.asarray(lengths)[None], 7)
        assert double.dtype == jnp.float64
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

    gradient = jax.jit(jax.grad(price))(jnp.array([[70.0, jnp.nan], [3.0, -5.0]]))
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
    price = total(spec, "exact", combine)

    def length(target: Any, prompt_len: Any, num_trials: Any) -> Any:
        return iso_cost_len(
            MODEL, spec, B200, target, prompt_len=prompt_len, num_trials=num_trials, batch_size=4, combine=combine
        )

    @jax.jit
    @jax.vmap
    def check(target: Any, prompt_len: Any, num_trials: Any) -> Any:
        gen_len, slopes = jax.value_and_grad(length, argnums=(0, 1, 2))(target, prompt_len, num_trials)
        spent, partial = jax.value_and_grad(price, argnums=(0, 1, 2))(prompt_len, gen_len, num_trials)
        return spent, slopes, (1 / partial[1], -partial[0] / partial[1], -partial[2] / partial[1])

    with float64():
        targets = jnp.array([0.0, 1e9, 1e13, 1e13, 1e16])
        spent, slopes, implicit = check(targets, jnp.array([0.0, 50.3, 50.3, 900.7, 0.7]), jnp.full(5, 3.3))
        np.testing.assert_allclose(spent, targets, rtol=1e-9)
        np.testing.assert_allclose(slopes, implicit, rtol=1e-6)
        assert bool(jnp.isfinite(jnp.stack(slopes)).all())


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
    cost = request_cost(MODEL, TopK(budget_len=256), prompt_len=100, gen_len=lengths)
    np.testing.assert_allclose(eflops(cost, B200), targets, rtol=1e-5)


def test_phi_of_arrays() -> None:
    by_array = jax.jit(lambda n: phi(MODEL, B200, gen_len=n, prompt_len=10))(jnp.array([0.0, 50.0, 4000.0]))
    wanted = np.array([phi(MODEL, B200, gen_len=n, prompt_len=10) for n in (0, 50, 4000)])
    np.testing.assert_allclose(by_array, wanted, rtol=1e-6)


@every_spec
def test_bad_values_in_arrays_give_nan_in_their_own_element(spec: AttentionSpec) -> None:
    bad, good = jnp.array([5.0, -1.0, jnp.inf, jnp.nan]), [True, False, False, False]

    @jax.jit
    def bills(bad: Any) -> tuple[Cost, ...]:
        return (
            request_cost(MODEL, spec, prompt_len=bad, gen_len=9),
            request_cost(MODEL, spec, prompt_len=9, gen_len=bad),
            request_cost(MODEL, spec, prompt_len=9, gen_len=9, num_trials=bad),
            request_cost(MODEL, spec, prompt_len=9, gen_len=9, batch_size=bad),
        )

    @jax.jit
    def numbers(bad: Any) -> tuple[Any, ...]:
        return (
            entries_read(spec, prompt_len=bad, gen_len=9),
            entries_searched(spec, prompt_len=9, gen_len=bad),
            iso_cost_len(MODEL, spec, B200, 1e12, prompt_len=bad),
            phi(MODEL, B200, gen_len=bad),
        )

    for cost in bills(bad):
        np.testing.assert_array_equal(np.isfinite(cost.flops), good)
        np.testing.assert_array_equal(np.isfinite(cost.bytes), good)
    for number in numbers(bad):
        np.testing.assert_array_equal(np.isfinite(number), good)
