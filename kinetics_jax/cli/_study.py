"""The paper's argument on a set of traces: frontiers under two prices, two laws, dense against sparse.

Called by `kinetics demo`. Everything is computed from the tables it is given; nothing here knows what to expect.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import Literal

import numpy as np

from kinetics_jax import figures
from kinetics_jax.scaling import (
    Allocation,
    Gap,
    LawComparison,
    MethodPoint,
    PairedGain,
    accuracy_by_budget,
    allocate,
    model_frontiers,
    paired_gain,
    tradeoff_table,
    widest_gap,
    wrong_law_cost,
)
from kinetics_jax.specs import MODELS, HardwareSpec
from kinetics_jax.traces import TraceTable

StrategyName = Literal["long_cot", "best_of_n"]
Price = Literal["flops", "eflops"]
STRATEGIES: dict[StrategyName, str] = {"long_cot": "Long-CoT", "best_of_n": "Best-of-N"}
PRICES: tuple[Price, ...] = ("flops", "eflops")
_TARGETS = np.arange(0.05, 1.0, 0.05)
"""Accuracies at which the laws are compared; finer steps show noise, not laws."""


@dataclass(frozen=True, kw_only=True)
class LawBand:
    """Say which model each law picks over a range of accuracies.

    Attributes:
        accuracy_from: Lowest accuracy of the range.
        accuracy_to: Highest.
        flops_model: Model that reaches it with the fewest FLOPs.
        eflops_model: Model that reaches it with the fewest eFLOPs.
        cost_ratio: Largest factor, in eFLOPs, by which the FLOPs law's model is dearer within the range.
    """

    accuracy_from: float
    accuracy_to: float
    flops_model: str
    eflops_model: str
    cost_ratio: float


@dataclass(frozen=True, kw_only=True)
class Study:
    """Hold everything the demo prints and draws.

    Attributes:
        frontiers: Allocations of dense attention by strategy, price and model.
        comparisons: What each law picks at each accuracy, by strategy.
        sparse: Allocations in eFLOPs by model and attention method, Long-CoT.
        gaps: Block top-k over dense, by model.
        methods: Accuracy of every model and attention spec at full length.
        size_gains: What each model's dense accuracy gains over the next smaller one's, paired by problem.
    """

    frontiers: Mapping[StrategyName, Mapping[Price, Mapping[str, Allocation]]]
    comparisons: Mapping[StrategyName, Sequence[LawComparison]]
    sparse: Mapping[str, Mapping[str, Allocation]]
    gaps: Mapping[str, Gap]
    methods: Sequence[MethodPoint]
    size_gains: Mapping[str, PairedGain]


def run_study(tables: Iterable[TraceTable], hardware: HardwareSpec) -> Study:
    """Price the tables and find what each law and each attention method makes of a budget."""
    tables = sorted(tables, key=lambda table: MODELS[table.model].num_params)
    dense = [table for table in tables if table.attention == "dense"]
    frontiers: dict[StrategyName, dict[Price, dict[str, Allocation]]] = {}
    for strategy in STRATEGIES:
        frontiers[strategy] = {}
        for price in PRICES:
            tradeoff = tradeoff_table(dense, models=MODELS, hardware=hardware, price=price, strategy=strategy)
            frontiers[strategy][price] = model_frontiers(tradeoff, tradeoff.budget_grid())
    whole = tradeoff_table(tables, models=MODELS, hardware=hardware, strategy="long_cot")
    sparse = {}
    for model in whole.models:
        of_model = whole.select(models=[model])
        budgets = of_model.budget_grid()
        sparse[model] = {method: allocate(of_model.select(methods=[method]), budgets) for method in of_model.methods}
    return Study(
        frontiers=frontiers,
        comparisons={
            strategy: wrong_law_cost(frontiers[strategy]["flops"], frontiers[strategy]["eflops"], _TARGETS)
            for strategy in STRATEGIES
        },
        sparse=sparse,
        gaps={model: widest_gap(curves["dense"], curves["block_topk"]) for model, curves in sparse.items()},
        methods=accuracy_by_budget(tables),
        size_gains={larger.model: paired_gain(smaller, larger) for smaller, larger in pairwise(dense)},
    )


def law_bands(comparisons: Sequence[LawComparison]) -> list[LawBand]:
    """Merge neighbouring accuracies at which both laws pick the same models; unreachable ones are left out."""
    reached = [row for row in comparisons if row.flops_model is not None and row.eflops_model is not None]
    bands = []
    for (flops_model, eflops_model), group in groupby(reached, key=lambda row: (row.flops_model, row.eflops_model)):
        rows = list(group)
        bands.append(
            LawBand(
                accuracy_from=rows[0].accuracy,
                accuracy_to=rows[-1].accuracy,
                flops_model=str(flops_model),
                eflops_model=str(eflops_model),
                cost_ratio=max(row.cost_ratio for row in rows),
            )
        )
    return bands


def draw_study(study: Study, folder: Path) -> list[Path]:
    """Write every figure of the study as PNG and CSV and return the paths of the PNGs."""
    draw = {"long_cot": figures.long_cot_frontier, "best_of_n": figures.best_of_n_frontier}
    pictures = []
    for strategy, by_price in study.frontiers.items():
        for price, frontiers in by_price.items():
            pictures.append(draw[strategy](frontiers, folder / f"{strategy}_{price}.png")[0])
        laws = folder / f"{strategy}_laws.png"
        pictures.append(figures.law_bands(by_price["flops"], by_price["eflops"], study.comparisons[strategy], laws)[0])
    pictures.append(figures.dense_vs_sparse(study.sparse, folder / "dense_vs_block_topk.png")[0])
    pictures.append(figures.methods_compared(study.methods, folder / "methods.png")[0])
    pictures.append(figures.kv_per_token(MODELS.values(), folder / "kv_per_token.png")[0])
    return pictures
