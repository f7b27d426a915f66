"""The list of figures that one group of tables can give: a name, and how its data is had. One line a figure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from kinetics_jax.cost import Combine, eflops, request_cost
from kinetics_jax.scaling import (
    AdaptivePolicy,
    Bounds,
    RequestPrice,
    Setting,
    accuracy_by_budget,
    allocate,
    choice_power_law,
    evaluate_policy,
    grid_optimum,
    grid_points,
    length_trials_correlation,
    optimal_allocation,
    request_price,
    wrong_law_cost,
)
from kinetics_jax.specs import MODELS, Dense, ModelSpec, PageSelection, parse_attention

from ._adaptive import adaptive_policy
from ._breakdown import cost_breakdown
from ._data import GroupData, Price, StrategyName
from ._frontiers import best_of_n_frontier, long_cot_frontier
from ._gaps import dense_vs_sparse
from ._growth import growth_with_cost
from ._iso_cost import iso_cost_contours
from ._laws import law_bands
from ._length_trials import length_vs_trials
from ._methods import methods_compared
from ._optimum import optimum_with_cost
from ._phi_by_len import phi_by_len
from ._style import METHOD_STYLES, WORTH_DRAWING
from ._surface_fit import surface_fit
from ._tangency import tangency

Paths = tuple[Path, Path]
_TITLES = {"long_cot": "Long-CoT", "best_of_n": "Best-of-N"}
_NUM_POLICY_BUDGETS = 24
_NUM_OPTIMA, _NUM_TANGENCIES = 24, 5
# Three starts missed the better of two optima at one of 24 budgets (7M, topk), which six find.
_NUM_STARTS = 6
_TARGETS = np.arange(0.05, 1.0, 0.05)
"""Accuracies at which the laws are compared; finer steps show noise, not laws."""


@dataclass(frozen=True, kw_only=True)
class Plate:
    """Name a figure and say how a group's data becomes one.

    Attributes:
        name: The file's name without its suffix.
        draw: Takes the data, the path of the PNG and `svg`; raises ValueError if the data does not support it.
    """

    name: str
    draw: Callable[..., Paths]


def _frontier(strategy: StrategyName, price: Price, combine: Combine, data: GroupData, path: Path, svg: bool) -> Paths:
    draw = {"long_cot": long_cot_frontier, "best_of_n": best_of_n_frontier}[strategy]
    return draw(data.dense_frontiers(strategy, price, combine), path, combine=combine, svg=svg)


def _laws(strategy: StrategyName, combine: Combine, data: GroupData, path: Path, svg: bool) -> Paths:
    by_flops, by_eflops = (data.dense_frontiers(strategy, price, combine) for price in ("flops", "eflops"))
    comparisons = wrong_law_cost(by_flops, by_eflops, _TARGETS)
    return law_bands(by_flops, by_eflops, comparisons, path, combine=combine, svg=svg)


def _gaps_by_model(
    strategy: StrategyName, method: str, combine: Combine, data: GroupData, path: Path, svg: bool
) -> Paths:
    panels = {spec.name: data.by_method(strategy, combine, ("dense", method), model=spec.name) for spec in data.specs}
    return dense_vs_sparse(panels, path, arrows=method, combine=combine, title=_TITLES[strategy], svg=svg)


def _gaps_by_difficulty(
    strategy: StrategyName, method: str, combine: Combine, data: GroupData, path: Path, svg: bool
) -> Paths:
    levels = sorted({int(level) for table in data.tables for level in table.difficulty})
    if len(levels) < 2:
        raise ValueError(f"all problems have the difficulty {levels[0]}; strata need two or more")
    strata = data.by_difficulty(strategy, combine, ("dense", method))
    panels = {f"difficulty {grade}": curves for grade, curves in strata.items()}
    title = f"{_TITLES[strategy]}, all models"
    return dense_vs_sparse(panels, path, arrows=method, combine=combine, title=title, svg=svg)


def _growth(strategy: StrategyName, method: str, data: GroupData, path: Path, svg: bool) -> Paths:
    curves, laws = {}, {}
    for spec in data.specs:
        tradeoff = data.tradeoff(strategy).select(models=[spec.name], methods=[method])
        whole = data.by_method(strategy, "add", (method,), model=spec.name)[method]
        # Where nothing is solved any choice is as good: the law is fitted from where the curve leaves the floor.
        caps = np.asarray(whole.budgets, dtype=np.float64)
        solving = caps[np.asarray(whole.accuracy) >= WORTH_DRAWING]
        if solving.size < 2:
            raise ValueError(f"{spec.name} solves nothing with {method}: no law can be fitted")
        budgets = jnp.asarray(np.geomspace(solving[0], solving[-1], caps.size), dtype=jnp.float32)
        curves[spec.name] = allocate(tradeoff, budgets)
        laws[spec.name] = {
            what: choice_power_law(tradeoff, budgets, what, num_resamples=data.num_resamples)
            for what in ("num_tokens", "budget_len")
        }
    title = f"{_TITLES[strategy]}, {METHOD_STYLES[method][0]}"
    return growth_with_cost(curves, laws, path, title=title, svg=svg)


def _length_trials(data: GroupData, path: Path, svg: bool) -> Paths:
    """Draw each model's dense trials at a cap midway, on the scale of logarithms, between one trial and the most."""
    tradeoff = data.tradeoff("best_of_n").select(methods=["dense"])
    panels = {}
    for spec in data.specs:
        price = np.asarray(tradeoff.select(models=[spec.name]).mean_cost).mean(0)
        dense = [table for table in data.tables if (table.model, table.attention) == (spec.name, "dense")]
        panels[spec.name] = length_trials_correlation(
            dense, float(np.sqrt(price.min() * price.max())), models=MODELS, hardware=data.hardware
        )
    return length_vs_trials(panels, path, title="dense attention, a middle cap", svg=svg)


def _adaptive(data: GroupData, path: Path, svg: bool) -> Paths:
    """Draw the policy that looks at a dense first trial and may add dense trials, for each model."""
    panels = {}
    for spec in data.specs:
        dense = [table for table in data.tables if (table.model, table.attention) == (spec.name, "dense")]
        if not dense:
            raise ValueError(f"{spec.name} has no traces with dense attention")
        lens = dense[0].gen_len[dense[0].mask]
        edges = sorted({int(edge) for edge in np.quantile(lens, (0.25, 0.5, 0.75)) if edge >= 1})
        policy = AdaptivePolicy(first="dense", edges=tuple(edges))
        tradeoff = data.tradeoff("best_of_n").select(models=[spec.name], methods=["dense"])
        price = np.asarray(tradeoff.mean_cost).mean(0)
        budgets = np.geomspace(price.min(), price.max(), _NUM_POLICY_BUDGETS)
        panels[spec.name] = evaluate_policy(dense, policy, budgets, models=MODELS, hardware=data.hardware)
    return adaptive_policy(panels, path, title="dense attention, by quarters of its length", svg=svg)


def _methods(data: GroupData, path: Path, svg: bool) -> Paths:
    return methods_compared(accuracy_by_budget(data.tables), path, svg=svg)


def _surface_fit(method: str, data: GroupData, path: Path, svg: bool) -> Paths:
    return surface_fit(grid_points(data.surface(method), data.of_method(method)), path, svg=svg)


def _box(method: str, data: GroupData, num_trials: int) -> tuple[Bounds, list[float]]:
    """Return what was recorded as a box, and its KV budgets; of several pages the smallest."""
    specs = [parse_attention(table.attention) for table in data.of_method(method)]
    pages = {spec: spec.page_len if isinstance(spec, PageSelection) else 1 for spec in specs}
    sparse = [spec for spec in specs if not isinstance(spec, Dense)]
    page = min(pages[spec] for spec in sparse)
    lens = sorted({float(spec.budget_len) for spec in sparse if pages[spec] == page})
    longest = float(min(table.max_gen_len for table in data.tables))
    bounds = Bounds(
        gen_len=(max(1.0, longest / 32), longest),
        num_trials=(1.0, float(num_trials)) if num_trials > 1 else 1.0,
        budget_len=(lens[0], None),
        page_len=float(page),
    )
    return bounds, lens


def _price_and_range(method: str, data: GroupData, spec: ModelSpec, bounds: Bounds) -> tuple[RequestPrice, np.ndarray]:
    """Return a model's price and budgets from above its cheapest setting to its dearest one."""
    prompt_len, longest = _mean_lens(data)
    price = request_price(spec, method, data.hardware, prompt_len=prompt_len)
    ends = []
    for end, whole in ((0, bounds.ends("budget_len")[0]), (1, float(prompt_len + longest))):
        lens, trials = bounds.ends("gen_len")[end], bounds.ends("num_trials")[end]
        ends.append(float(price(Setting(gen_len=lens, num_trials=trials, budget_len=whole, page_len=bounds.page_len))))
    return price, np.geomspace(1.05 * ends[0], ends[1], _NUM_OPTIMA)


def _optimum(method: str, data: GroupData, path: Path, svg: bool) -> Paths:
    """Draw each model's optimum over length, trials and KV budget beside the best of the recorded grid."""
    num_trials = min(table.num_trials for table in data.of_method(method))
    bounds, budget_lens = _box(method, data, num_trials)
    longest = bounds.ends("gen_len")[1]
    optima, grid = {}, {}
    for spec in data.specs:
        law = data.surface(method).of_model(spec.name)
        price, budgets = _price_and_range(method, data, spec, bounds)
        optima[spec.name] = optimal_allocation(law, price, budgets, bounds=bounds, num_starts=_NUM_STARTS)
        grid[spec.name] = grid_optimum(
            law,
            price,
            budgets,
            gen_lens=[longest * 2 ** (-step / 2) for step in range(11)],
            num_trials=[2.0**power for power in range(num_trials.bit_length())],
            budget_lens=budget_lens,
            page_lens=[bounds.page_len],
        )
    return optimum_with_cost(optima, path, grid=grid, title=METHOD_STYLES[method][0], svg=svg)


def _tangency(method: str, data: GroupData, path: Path, svg: bool) -> Paths:
    """Draw the largest model's length and KV budget for single trials."""
    bounds, _ = _box(method, data, 1)
    spec = data.specs[-1]
    law = data.surface(method).of_model(spec.name)
    price, budgets = _price_and_range(method, data, spec, bounds)
    some = budgets[np.linspace(2, _NUM_OPTIMA - 3, _NUM_TANGENCIES).round().astype(int)]
    optima = optimal_allocation(law, price, some, bounds=bounds)
    return tangency(law, price, optima, path, bounds=bounds, title=f"{spec.name}, {METHOD_STYLES[method][0]}", svg=svg)


def _mean_lens(data: GroupData) -> tuple[int, int]:
    """Return the mean prompt and the longest generation of the tables [tokens]."""
    return round(float(np.mean(data.tables[0].prompt_len))), max(table.max_gen_len for table in data.tables)


def _iso_cost(data: GroupData, path: Path, svg: bool) -> Paths:
    prompt_len, gen_len = _mean_lens(data)
    largest = request_cost(data.specs[-1], Dense(), prompt_len=prompt_len, gen_len=gen_len)
    named = float(f"{eflops(largest, data.hardware):.0e}")
    targets = tuple(float(f"{named * 10.0**power:.0e}") for power in (-2, -1, 0, 1))
    return iso_cost_contours(
        data.specs, data.hardware, path, targets_eflops=targets, named_eflops=named, prompt_len=prompt_len, svg=svg
    )


def _phi(data: GroupData, path: Path, svg: bool) -> Paths:
    prompt_len, gen_len = _mean_lens(data)
    return phi_by_len(data.specs, data.hardware, path, prompt_len=prompt_len, longest_len=gen_len, svg=svg)


def _breakdown(data: GroupData, path: Path, svg: bool) -> Paths:
    """Draw the bill of dense attention and of each sparse method at its middle budget."""
    prompt_len, gen_len = _mean_lens(data)
    texts = dict.fromkeys(table.attention for table in data.tables)
    attentions = []
    for method in sorted(data.methods, key=lambda name: name != "dense"):
        specs = [parse_attention(text) for text in texts if text.partition(",")[0].partition(":")[0] == method]
        ordered = sorted(specs, key=lambda spec: 0 if isinstance(spec, Dense) else spec.budget_len)
        attentions.append(ordered[len(ordered) // 2])
    return cost_breakdown(data.specs, attentions, data.hardware, path, prompt_len=prompt_len, gen_len=gen_len, svg=svg)


_PRICES: Sequence[tuple[str, Price, Combine]] = (
    ("flops", "flops", "add"),
    ("eflops", "eflops", "add"),
    ("eflops_max", "eflops", "max"),
)
_COMBINES: Sequence[tuple[str, Combine]] = (("", "add"), ("_max", "max"))
_STRATEGIES: Sequence[StrategyName] = ("long_cot", "best_of_n")
_SPARSE = ("topk", "block_topk")

GROUP_PLATES: tuple[Plate, ...] = (
    *(
        Plate(name=f"{strategy}_{unit}", draw=partial(_frontier, strategy, price, combine))
        for strategy in _STRATEGIES
        for unit, price, combine in _PRICES
    ),
    *(
        Plate(name=f"laws_{strategy}{suffix}", draw=partial(_laws, strategy, combine))
        for strategy in _STRATEGIES
        for suffix, combine in _COMBINES
    ),
    *(
        Plate(name=f"dense_vs_{method}_{strategy}{suffix}", draw=partial(_gaps_by_model, strategy, method, combine))
        for method in _SPARSE
        for strategy in _STRATEGIES
        for suffix, combine in _COMBINES
    ),
    *(
        Plate(
            name=f"dense_vs_{method}_{strategy}_by_difficulty{suffix}",
            draw=partial(_gaps_by_difficulty, strategy, method, combine),
        )
        for method in _SPARSE
        for strategy in _STRATEGIES
        for suffix, combine in _COMBINES
    ),
    *(
        Plate(name=f"growth_{strategy}_{method}", draw=partial(_growth, strategy, method))
        for strategy in _STRATEGIES
        for method in _SPARSE
    ),
    Plate(name="length_vs_trials", draw=_length_trials),
    Plate(name="adaptive_policy", draw=_adaptive),
    Plate(name="methods", draw=_methods),
    Plate(name="iso_cost", draw=_iso_cost),
    Plate(name="phi_by_len", draw=_phi),
    Plate(name="cost_breakdown", draw=_breakdown),
    *(Plate(name=f"surface_fit_{method}", draw=partial(_surface_fit, method)) for method in _SPARSE),
    *(Plate(name=f"optimum_{method}", draw=partial(_optimum, method)) for method in _SPARSE),
    *(Plate(name=f"tangency_{method}", draw=partial(_tangency, method)) for method in _SPARSE),
)
