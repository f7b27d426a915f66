"""What a request is worth and costs when its first trial is followed by others, from recorded trials.

The first trial is each recorded one in turn; those that follow are drawn from the other trials of the problem, as
unbiased as Pass@k. Called by `evaluate_policy`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from kinetics_jax.accuracy import pass_at_k
from kinetics_jax.cost import eflops, request_cost
from kinetics_jax.specs import HardwareSpec, ModelSpec, parse_attention
from kinetics_jax.traces import TraceTable

Option = tuple[str, int]
"""Attention and number of trials."""


@dataclass(frozen=True, kw_only=True)
class Followups:
    """Hold value and price of every way to answer. Q problems, S states, A options, B plain options.

    Attributes:
        options: Attention and number of trials after the first; the first option is none.
        value: Chance that the first trial ends in a state and that it or one of an option's is right.
        cost: Price of the first trial and an option's, times whether the state came up, averaged.
        plain: Attention and number of trials of a request that does not wait for a first one.
        plain_value: Pass@k of those.
        plain_cost: Price of those.
    """

    options: tuple[Option, ...]
    value: Float[np.ndarray, "Q S A"]
    cost: Float[np.ndarray, "Q S A"]
    plain: tuple[Option, ...]
    plain_value: Float[np.ndarray, "Q B"]
    plain_cost: Float[np.ndarray, "Q B"]


def price_followups(
    tables: Mapping[str, TraceTable],
    first: str,
    edges: Sequence[int],
    counts: Sequence[int],
    *,
    model: ModelSpec,
    hardware: HardwareSpec,
    price: Literal["eflops", "flops"],
) -> Followups:
    """Return value and price of each option after a first trial that reached so many of the edges.

    Trial r of another table may share its random numbers with the first trial r, so it is left out as well.

    Args:
        tables: Tables by attention, all of one model on the same problems.
        first: Attention of the first trial.
        edges: Lengths, rising; a state is how many of them the first trial reached [tokens].
        counts: Numbers of trials that may follow; 0 is always possible.
        model: The geometry.
        hardware: Sets the arithmetic intensity of eFLOPs.
        price: "eflops" or "flops".

    Returns:
        The values and prices.

    Raises:
        ValueError: If a problem has too few other trials for a count.
    """
    options: list[Option] = [("", 0), *((name, count) for name in tables for count in sorted({*counts} - {0}))]
    plain: list[Option] = [(name, count) for name in tables for count in sorted({1, *counts} - {0})]
    opening = tables[first]
    first_right = opening.mask & np.isfinite(opening.solved_len)
    prices = {
        (name, count): _prices(table, count, model, hardware, price)
        for name, table in tables.items()
        for count in {1, *counts} - {0}
    }
    values, costs = [first_right.astype(float)], [prices[first, 1]]
    for name, count in options[1:]:
        table, bill = tables[name], prices[name, count]
        right = table.mask & np.isfinite(table.solved_len)
        # The others of trial r: all of the problem's but r itself, where it exists.
        others = table.mask.sum(1, keepdims=True) - table.mask
        if others[opening.mask].min() < count:
            raise ValueError(
                f"{count} trials after the first need as many others; {table.model} {name} has problems with "
                f"{others[opening.mask].min()}. Draw more trials, or use smaller counts."
            )
        others = np.maximum(others, count)  # rows of missing first trials; they weigh nothing below
        num_right = np.minimum(right.sum(1, keepdims=True) - right, others)
        solves = _pass_at_k(num_right, others, count)
        values.append(first_right + (1 - first_right) * solves)
        costs.append(prices[first, 1] + (bill.sum(1, keepdims=True) - bill) / others)
    state = (opening.gen_len[..., None] >= np.asarray(edges).reshape(1, 1, -1)).sum(-1)
    share_QRS = (state[..., None] == np.arange(len(edges) + 1).reshape(1, 1, -1)) & opening.mask[..., None]
    share_QRS = share_QRS / opening.mask.sum(1)[:, None, None]
    return Followups(
        options=tuple(options),
        value=np.einsum("qrs,aqr->qsa", share_QRS, np.stack(values)),
        cost=np.einsum("qrs,aqr->qsa", share_QRS, np.stack(costs)),
        plain=tuple(plain),
        plain_value=np.stack([_all_solve(tables[name], count) for name, count in plain], axis=1),
        plain_cost=np.stack([prices[name, k].sum(1) / tables[name].mask.sum(1) for name, k in plain], axis=1),
    )


def _prices(
    table: TraceTable, count: int, model: ModelSpec, hardware: HardwareSpec, price: Literal["eflops", "flops"]
) -> np.ndarray:
    """Return the price of `count` trials of each trial's length, [Q, R]; 0 where there is no trial."""
    cost = request_cost(
        model,
        parse_attention(table.attention),
        prompt_len=table.prompt_len[:, None].astype(float),
        gen_len=table.gen_len.astype(float),
        num_trials=count,
    )
    return np.where(table.mask, np.asarray(eflops(cost, hardware) if price == "eflops" else cost.flops), 0.0)


def _all_solve(table: TraceTable, count: int) -> np.ndarray:
    num_right = (table.mask & np.isfinite(table.solved_len)).sum(1)
    return _pass_at_k(num_right, table.mask.sum(1), count)


def _pass_at_k(num_right: np.ndarray, num_trials: np.ndarray, count: int) -> np.ndarray:
    return np.asarray(pass_at_k(num_right, num_trials, np.full(num_right.shape, count)), dtype=float)
