"""What `kinetics allocate` computes: the optimum on a fitted surface at each cost, and what rounding leaves of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import jax
import numpy as np

from kinetics_jax.cost import Combine
from kinetics_jax.scaling import (
    AccuracySurface,
    Bounds,
    GridOptimum,
    ModelChoice,
    RequestPrice,
    Rounded,
    Setting,
    compare_models,
    grid_optimum,
    request_bill,
    request_price,
    round_allocation,
)
from kinetics_jax.specs import Dense, HardwareSpec, ModelSpec, parse_attention
from kinetics_jax.traces import TraceTable

StrategyChoice = Literal["both", "long_cot", "best_of_n"]
# Methods whose price is smooth, the one that is taken first where there are several.
METHODS = ("block_topk", "quest", "topk", "dense")
VARIABLES = ("gen_len", "num_trials", "budget_len", "page_len")
_NUM_COSTS = 6


@dataclass(frozen=True, kw_only=True)
class Request:
    """Hold what was asked for.

    Attributes:
        method: The attention method.
        hardware: The chip.
        combine: How compute and memory are joined.
        strategy: What is free beside the KV budget: lengths, trials or both.
        batch_size: Sequences that share one read of the weights, or None.
        is_mean: Whether costs are means over requests, whose trials stop when they are right, not caps on each.
        max_trials: Most trials, or None for those that were recorded.
    """

    method: str
    hardware: HardwareSpec
    combine: Combine
    strategy: StrategyChoice
    batch_size: int | None
    is_mean: bool
    max_trials: int | None


@dataclass(frozen=True, kw_only=True)
class Optima:
    """Hold the optimum at each cost beside what can be run and the grid's. X costs.

    Attributes:
        choice: Optima of all models, and the best of them.
        rounded: The best model's optimum in whole numbers, one a cost; None where there is no optimum.
        grid: The best of the grid on the same surface, of the best model, likewise.
    """

    choice: ModelChoice
    rounded: Sequence[Rounded | None]
    grid: Sequence[GridOptimum | None]


def parse_choice(text: str) -> StrategyChoice:
    """Return the strategy of a name.

    Raises:
        ValueError: If there is none.
    """
    for known in get_args(StrategyChoice):
        if text == known:
            return known
    raise ValueError(f"strategy must be {', '.join(get_args(StrategyChoice))}; got {text!r}")


def tables_of(tables: Sequence[TraceTable], method: str | None) -> tuple[str, list[TraceTable]]:
    """Return the method and its tables with the dense ones; without a name the first of `METHODS` that was recorded.

    Raises:
        ValueError: If no such traces are there.
    """
    there = list(dict.fromkeys(table.attention.partition(":")[0] for table in tables))
    known = [name for name in METHODS if name in there]
    if method is None and not known:
        raise ValueError(f"a surface needs traces of {', '.join(METHODS)}; there are {', '.join(there)} only")
    chosen = known[0] if method is None else method
    if chosen not in known:
        raise ValueError(
            f"no traces of a method {chosen!r} with a smooth price. There are {', '.join(known) or 'none'}."
        )
    return chosen, [table for table in tables if table.attention.partition(":")[0] in ("dense", chosen)]


def bounds_of(tables: Sequence[TraceTable], request: Request) -> Bounds:
    """Return the box of what was recorded: nothing is extrapolated but trials, if the caller says how far."""
    specs = [parse_attention(table.attention) for table in tables]
    sparse = [spec for spec in specs if not isinstance(spec, Dense)]
    longest = float(min(table.max_gen_len for table in tables))
    most = request.max_trials or min(table.num_trials for table in tables)
    if most < 2 and request.strategy != "long_cot":
        raise ValueError(f"trials are free between 1 and {most}: choose --strategy long_cot, or raise --max-trials.")
    whole = float(max(table.prompt_len.mean() for table in tables)) + longest
    pages = sorted({float(getattr(spec, "page_len", 1)) for spec in sparse}) or [1.0]
    return Bounds(
        gen_len=longest if request.strategy == "best_of_n" else (max(1.0, longest / 32), longest),
        num_trials=1.0 if request.strategy == "long_cot" else (1.0, float(most)),
        budget_len=(float(min(spec.budget_len for spec in sparse)), None) if request.method != "dense" else whole,
        page_len=pages[0] if len(pages) == 1 else (pages[0], pages[-1]),
    )


def prices_of(
    surface: AccuracySurface, tables: Sequence[TraceTable], models: Mapping[str, ModelSpec], request: Request
) -> list[RequestPrice]:
    """Return the price of each model of the surface."""
    prompt_len = float(np.mean([table.prompt_len.mean() for table in tables]))
    prices = []
    for name in surface.models:
        price = request_price(
            models[name],
            request.method,
            request.hardware,
            prompt_len=prompt_len,
            combine=request.combine,
            batch_size=request.batch_size,
        )
        prices.append(price.averaged(surface.of_model(name)) if request.is_mean else price)
    return prices


def default_costs(prices: Sequence[RequestPrice], bounds: Bounds) -> list[float]:
    """Return costs from above the cheapest setting's to the dearest one's."""

    def cost_of(price: RequestPrice, end: int) -> float:
        at = {name: bounds.ends(name)[end] for name in VARIABLES}
        context_len = float(price.prompt_len) + float(at["gen_len"])
        at["budget_len"] = context_len if at["budget_len"] is None else at["budget_len"]
        return float(price(Setting(**at)))

    # The cheapest setting itself, one trial of a few tokens, solves next to nothing: the costs begin a step above.
    low, high = min(cost_of(price, 0) for price in prices), max(cost_of(price, 1) for price in prices)
    return [float(f"{cost:.2e}") for cost in np.geomspace(low, high, _NUM_COSTS + 1)[1:]]


def solve(
    surface: AccuracySurface,
    prices: Sequence[RequestPrice],
    costs: Sequence[float],
    bounds: Bounds,
    tables: Sequence[TraceTable],
    models: Mapping[str, ModelSpec],
    request: Request,
) -> Optima:
    """Return the best model's optimum at each cost, rounded, beside the best of the grid that Algorithm 1 has."""
    choice = compare_models(surface, prices, np.asarray(costs), bounds=bounds)
    lens, trials, budgets = _grid_of(bounds, tables)
    rounded: list[Rounded | None] = []
    grid: list[GridOptimum | None] = []
    for place, cost in enumerate(costs):
        if not np.isfinite(choice.optimum.accuracy[place]):  # no climb arrived
            rounded.append(None)
            grid.append(None)
            continue
        name = surface.models[int(choice.model[place])]
        law, price = surface.of_model(name), prices[int(choice.model[place])]
        bill = None
        if not request.is_mean:
            bill = request_bill(
                models[name],
                request.method,
                request.hardware,
                prompt_len=float(price.prompt_len),
                combine=request.combine,
                batch_size=request.batch_size,
            )
        one = jax.tree.map(lambda leaf, place=place: leaf[place : place + 1], choice.optimum)
        rounded.append(round_allocation(one, law, price, np.array([cost]), bounds=bounds, bill=bill))
        grid.append(
            grid_optimum(
                law,
                price,
                np.array([cost]),
                gen_lens=lens,
                num_trials=trials,
                budget_lens=budgets,
                page_lens=sorted(set(bounds.ends("page_len"))),
            )
        )
    return Optima(choice=choice, rounded=rounded, grid=grid)


def _grid_of(bounds: Bounds, tables: Sequence[TraceTable]) -> tuple[list[float], list[float], list[float]]:
    """Return half octaves of lengths, powers of two of trials and the recorded KV budgets, all within the box."""
    shortest, longest = bounds.ends("gen_len")
    most = bounds.ends("num_trials")[1]
    specs = [parse_attention(table.attention) for table in tables]
    sparse = {float(spec.budget_len) for spec in specs if not isinstance(spec, Dense)}
    lens = [round(longest * 2 ** (-step / 2)) for step in range(11)]
    return (
        sorted({float(length) for length in lens if length >= shortest}),
        [2.0**power for power in range(int(most).bit_length())],
        sorted(sparse) or [float(bounds.budget_len)],
    )


def attention_text(method: str, budget_len: float, page_len: float) -> str:
    """Return the text form of a method at a whole KV budget and page."""
    if method == "dense":
        return method
    whole, page = round(budget_len), round(page_len)
    return f"{method}:{whole}" if method == "topk" else f"{method}:{page}x{whole // page}"
