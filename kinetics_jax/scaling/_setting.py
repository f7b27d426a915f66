"""A point between the grid's points: how long, how many, how much is read; and what a solver needs to know of it.

`AccuracySurface` and `RequestPrice` are functions of a `Setting`, and so is whatever else `optimal_allocation` is
given: the two protocols below are all that it asks of a surface and of a price.
"""

from dataclasses import dataclass, fields
from typing import Any, Protocol, runtime_checkable

import jax


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Setting:
    """Hold one way to spend on a request, in real numbers rather than whole ones; a JAX pytree of one shape.

    Attributes:
        gen_len: Limit on the generated tokens of a trial, n [tokens].
        num_trials: Trials, N.
        budget_len: Cache entries read per step, layer and KV head, B [tokens].
        page_len: Tokens of a selected page, P; 1 where single tokens are selected [tokens].
    """

    # Any: a pytree also carries what JAX puts in place of leaves (shapes, axes, tangents).
    gen_len: Any
    num_trials: Any
    budget_len: Any
    page_len: Any

    @property
    def num_tokens(self) -> Any:
        """Tokens that all trials together may generate: trials times their limit."""
        return self.num_trials * self.gen_len


VARIABLES = tuple(field.name for field in fields(Setting))


@runtime_checkable
class Surface(Protocol):
    """Say how good a setting is: any smooth positive function of four numbers, itself a JAX pytree."""

    def accuracy(self, setting: Setting) -> Any:
        """Return the accuracy of one setting, a positive scalar."""
        ...


@runtime_checkable
class Price(Protocol):
    """Say what a setting costs: any smooth positive function of four numbers, itself a JAX pytree."""

    def __call__(self, setting: Setting) -> Any:
        """Return the price of one setting, a positive scalar [FLOP]."""
        ...


@runtime_checkable
class PartedPrice(Price, Protocol):
    """Say what a setting costs as the largest of some smooth parts: each is limited by itself, and no kink is met."""

    @property
    def part_names(self) -> tuple[str, ...]:
        """What the parts are."""
        ...

    def parts(self, setting: Setting) -> tuple[Any, ...]:
        """Return the parts, in the order of their names; the price is the largest [FLOP]."""
        ...
