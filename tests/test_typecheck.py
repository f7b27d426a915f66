"""The suite's typechecker refuses what is annotated otherwise, in functions, methods and closures alike."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import pytest
from jaxtyping import Array, Float, TypeCheckError, jaxtyped

from kinetics_jax.models import Decoder, abstract_decoder
from kinetics_jax.specs import MODELS
from pallas_kernels import page_means
from tests.typecheck import check_types

checked = jaxtyped(typechecker=check_types)


@checked
def scale(values: Float[Array, "n"], factors: Float[Array, "n"], *, times: int = 1) -> Float[Array, "n"]:
    return values * factors * times


@checked
def answer(value: Any) -> int:
    return value


def make_adder(kind: type, amount: int) -> Callable[..., int]:
    def add(value: Any) -> int:
        return int(value) + amount

    add.__annotations__["value"] = kind
    return checked(add)


def test_arguments_and_results_are_checked():
    wrong: Any = "3"
    assert scale(jnp.ones(2), jnp.ones(2), times=3).tolist() == [3, 3]
    for call in (
        lambda: scale(jnp.ones(2), jnp.ones(3)),
        lambda: scale(jnp.ones((2, 1)), jnp.ones(2)),
        lambda: scale(jnp.ones(2), jnp.ones(2, jnp.int32)),
        lambda: scale(jnp.ones(2), jnp.ones(2), times=wrong),
        lambda: answer("42"),
    ):
        for _ in range(2):  # compiled, and compiled before
            with pytest.raises(TypeCheckError):
                call()
    assert answer(42) == 42


def test_closures_of_one_definition_keep_their_bodies_and_their_types():
    adders = [make_adder(kind, amount) for kind, amount in ((int, 1), (int, 2), (str, 3))]
    assert [adders[0](10), adders[1](10), adders[2]("10")] == [11, 12, 13]
    for add, wrong in ((adders[0], "10"), (adders[1], "10"), (adders[2], 10)):
        with pytest.raises(TypeCheckError):
            add(wrong)


def test_the_packages_are_checked():
    with pytest.raises(TypeCheckError):
        page_means(jnp.ones((2, 3)), jnp.ones((2, 1, 4), bool))
    with pytest.raises(TypeCheckError):
        Decoder.__call__(abstract_decoder(MODELS["Kinetics-Mini-0.1M"]), jnp.ones((1, 3)))
