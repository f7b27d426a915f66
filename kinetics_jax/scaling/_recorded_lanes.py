"""What was recorded as places to solve in: a model at a page, its law, its smooth price and its exact one.

Called by the held-out score. The law and the prices come from the trials that may be seen.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from kinetics_jax.cost import Cost, expected_cost
from kinetics_jax.specs import Dense, ModelSpec, parse_attention
from kinetics_jax.traces import TraceTable

from ._fit_surface import fit_accuracy_surface
from ._kkt import Bounds
from ._price import RequestPrice
from ._round import values_of
from ._setting import Setting
from ._surface import AccuracySurface

Strategy = Literal["long_cot", "best_of_n", "both"]
Pay = Callable[[Cost], Any]
# Steps of a fit: 150 change no choice on the recorded traces.
_NUM_STEPS = 60
_UNIT_PRICES = ("flops_per_param", "entry_flops", "entry_bytes", "page_flops", "page_bytes", "weight_bytes")


@dataclass(frozen=True, kw_only=True)
class RecordedLane:
    """Hold one model at one page: where its optimum is sought, and what whole settings cost.

    Attributes:
        model: Its name.
        law: Its law on all problems.
        smooth: Its price, every trial at its limit.
        bounds: The box of what was recorded.
        prices: By KV budget: the expected price of N trials of at most n tokens on each problem, [N, Q, n].
    """

    model: str
    law: AccuracySurface
    smooth: RequestPrice
    bounds: Bounds
    prices: Mapping[int, np.ndarray]

    def law_of(self, rows: Int[np.ndarray, " R"]) -> AccuracySurface:
        """Return the law of some problems, weighted equally."""
        weights = jnp.full(rows.size, 1 / rows.size, self.law.weights.dtype)
        return replace(self.law, difficulty=self.law.difficulty[rows], weights=weights)

    def price_of(self, rows: Int[np.ndarray, " R"], law: AccuracySurface) -> RequestPrice:
        """Return the smooth expected price on some problems, scaled to what their trials cost on average.

        The law knows when trials are right, not when they stop with a wrong answer: alone it errs on the high side.
        """
        shortest, longest = self.bounds.ends("gen_len")
        lens = sorted({max(shortest, round(longest * 2 ** (-step / 2))) for step in range(11)})
        length, budget = (np.ravel(axis)[None] for axis in np.meshgrid(lens, sorted(self.prices), indexing="ij"))
        one = np.ones_like(length, dtype=float)
        grid = Setting(
            gen_len=one * length, num_trials=one, budget_len=one * budget, page_len=one * float(self.bounds.page_len)
        )
        ratio = np.exp(np.log(self.bill(rows, grid) / values_of(self.smooth.averaged(law), grid)).mean())
        scaled = {name: getattr(self.smooth, name) * float(ratio) for name in _UNIT_PRICES}
        return replace(self.smooth, **scaled).averaged(law)

    def bill(self, rows: Int[np.ndarray, " R"], setting: Setting) -> Float[np.ndarray, "X K"]:
        """Return the exact expected price, mean over some problems: what Algorithms 1 and 2 hold to a cap."""
        names = ("gen_len", "num_trials", "budget_len")
        gen_len, num_trials, budget_len = np.broadcast_arrays(
            *(np.asarray(getattr(setting, name)).astype(int) for name in names)
        )
        lens = sorted(self.prices)
        table = np.stack([self.prices[length][:, rows].mean(1) for length in lens])
        return table[np.searchsorted(lens, budget_len), num_trials - 1, gen_len - 1]


def recorded_lanes(
    tables: Sequence[TraceTable],
    models: Mapping[str, ModelSpec],
    prices: Mapping[str, RequestPrice],
    pay: Pay,
    strategy: Strategy,
) -> list[RecordedLane]:
    """Return a lane for each page and model; each page has laws of its own, fitted with the dense trials."""
    dense = [table for table in tables if _page_of(table) is None]
    lanes = []
    for page in sorted({page for page in map(_page_of, tables) if page is not None}):
        of_page = [table for table in tables if _page_of(table) == page]
        surface = fit_accuracy_surface([*dense, *of_page], num_steps=_NUM_STEPS)
        for name in dict.fromkeys(table.model for table in of_page):
            by_budget = {_budget_of(table): table for table in of_page if table.model == name}
            lanes.append(
                RecordedLane(
                    model=name,
                    law=surface.of_model(name),
                    smooth=prices[name],
                    bounds=_recorded_bounds(list(by_budget.values()), strategy, page),
                    prices={
                        budget: _expected_prices(by_budget[budget], models[name], pay, strategy)
                        for budget in sorted(by_budget)
                    },
                )
            )
    return lanes


def _page_of(table: TraceTable) -> int | None:
    """Return the page of a sparse table, 1 where single tokens are selected; None of dense attention."""
    spec = parse_attention(table.attention)
    return None if isinstance(spec, Dense) else getattr(spec, "page_len", 1)


def _budget_of(table: TraceTable) -> int:
    spec = parse_attention(table.attention)
    assert not isinstance(spec, Dense)
    return spec.budget_len


def _expected_prices(table: TraceTable, model: ModelSpec, pay: Pay, strategy: Strategy) -> Float[np.ndarray, "N Q n"]:
    """Return the expected price of every number of trials and every limit on each problem."""
    counts = np.arange(1.0, 2.0 if strategy == "long_cot" else table.num_trials + 1)
    cost = expected_cost(
        model,
        parse_attention(table.attention),
        prompt_len=table.prompt_len[None],
        gen_lens=np.broadcast_to(table.gen_len, (counts.size, *table.gen_len.shape)),
        mask=np.broadcast_to(table.mask, (counts.size, *table.mask.shape)),
        num_trials=counts[:, None],
        max_gen_lens=np.arange(1.0, table.max_gen_len + 1),
    )
    return np.asarray(pay(cost))


def _recorded_bounds(tables: Sequence[TraceTable], strategy: Strategy, page_len: int) -> Bounds:
    """Return the box of what was recorded: lengths to the limit, trials to those there are, budgets to the largest."""
    longest, most = min(table.max_gen_len for table in tables), min(table.num_trials for table in tables)
    lens = sorted(map(_budget_of, tables))
    return Bounds(
        gen_len=float(longest) if strategy == "best_of_n" else (max(1.0, longest / 32), float(longest)),
        num_trials=1.0 if strategy == "long_cot" else (1.0, float(most)),
        budget_len=(float(lens[0]), float(lens[-1])),
        page_len=float(page_len),
    )
