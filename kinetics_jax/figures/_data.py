"""What the figures of one group of tables share: prices and allocations, each computed once, when a figure asks."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal

from kinetics_jax.cost import Combine
from kinetics_jax.scaling import (
    AccuracySurface,
    Allocation,
    Tradeoff,
    allocate,
    by_difficulty,
    fit_accuracy_surface,
    model_frontiers,
    tradeoff_table,
)
from kinetics_jax.specs import MODELS, HardwareSpec, ModelSpec

StrategyName = Literal["long_cot", "best_of_n"]
Price = Literal["flops", "eflops"]
_NUM_STEPS = 150
"""Steps of a fit: more move no line of a figure."""


class GroupData:
    """Compute trade-offs and allocations from tables of one task and one family of models, and keep them.

    Args:
        tables: Trace tables (`traces.TraceTable`), one a (model, attention).
        hardware: The chip whose intensity prices memory traffic.
        num_budgets: Caps of a curve.
        num_resamples: Bootstrap draws of a power law.

    Raises:
        ValueError: If a model is unknown.
    """

    def __init__(self, tables: Sequence[Any], hardware: HardwareSpec, *, num_budgets: int, num_resamples: int):
        self.tables = sorted(tables, key=lambda table: MODELS[table.model].num_params)
        self.hardware = hardware
        self.num_resamples = num_resamples
        self._num_budgets = num_budgets
        self._kept: dict[Hashable, Any] = {}

    @property
    def specs(self) -> list[ModelSpec]:
        """The models of the tables, smallest first."""
        return [MODELS[name] for name in dict.fromkeys(table.model for table in self.tables)]

    @property
    def methods(self) -> list[str]:
        """The attention methods of the tables."""
        return list(dict.fromkeys(_method(table.attention) for table in self.tables))

    def tradeoff(self, strategy: StrategyName, price: Price = "eflops", combine: Combine = "add") -> Tradeoff:
        """Return the trade-off of all tables."""
        key = (strategy, price, combine)
        if key not in self._kept:
            self._kept[key] = tradeoff_table(
                self.tables, models=MODELS, hardware=self.hardware, price=price, combine=combine, strategy=strategy
            )
        return self._kept[key]

    def dense_frontiers(self, strategy: StrategyName, price: Price, combine: Combine) -> Mapping[str, Allocation]:
        """Return the frontier of each model with dense attention, over shared caps."""
        key = ("dense", strategy, price, combine)
        if key not in self._kept:
            dense = self.tradeoff(strategy, price, combine).select(methods=["dense"])
            self._kept[key] = model_frontiers(dense, dense.budget_grid(self._num_budgets))
        return self._kept[key]

    def by_method(
        self, strategy: StrategyName, combine: Combine, methods: Sequence[str], model: str
    ) -> dict[str, Allocation]:
        """Return the frontier of each attention method of one model, in eFLOPs, over shared caps."""
        of_model = self.tradeoff(strategy, "eflops", combine).select(models=[model])
        curves = {}
        for method in methods:
            key = (strategy, combine, method, model)
            if key not in self._kept:
                self._kept[key] = allocate(of_model.select(methods=[method]), of_model.budget_grid(self._num_budgets))
            curves[method] = self._kept[key]
        return curves

    def by_difficulty(
        self, strategy: StrategyName, combine: Combine, methods: Sequence[str]
    ) -> dict[str, dict[str, Allocation]]:
        """Return the frontiers of attention methods over all models, in eFLOPs, by grade of difficulty."""
        tradeoff = self.tradeoff(strategy, "eflops", combine)
        budgets = tradeoff.budget_grid(self._num_budgets)
        panels: dict[str, dict[str, Allocation]] = {}
        for method in methods:
            key = (strategy, combine, method, "by difficulty")
            if key not in self._kept:
                self._kept[key] = by_difficulty(tradeoff.select(methods=[method]), budgets)
            for grade, curve in self._kept[key].items():
                panels.setdefault(grade, {})[method] = curve
        return panels

    def of_method(self, method: str) -> list[Any]:
        """Return the tables of one attention method, and the dense ones that a surface of it is fitted to as well.

        Raises:
            ValueError: If the method was not run.
        """
        if method not in self.methods:
            raise ValueError(f"no traces of {method!r}. There are {', '.join(self.methods)}.")
        return [table for table in self.tables if _method(table.attention) in ("dense", method)]

    def surface(self, method: str) -> AccuracySurface:
        """Return the law of all models under one attention method."""
        key = ("surface", method)
        if key not in self._kept:
            self._kept[key] = fit_accuracy_surface(self.of_method(method), num_steps=_NUM_STEPS)
        return self._kept[key]


def _method(attention: str) -> str:
    return attention.partition(",")[0].partition(":")[0]
