"""Which lengths cost the same on which model, in FLOPs and in eFLOPs (PAPER.md Figs. 5b and 5c)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from kinetics_jax.cost import Combine, Convention, iso_cost_len, request_cost
from kinetics_jax.specs import AttentionSpec, Dense, HardwareSpec, ModelSpec

from ._labels import PointLabel, place_labels
from ._style import house_style, new_figure, save, short_names

_NAMED_COLOR, _OTHER_COLOR = "#C24A00", "#62738A"
_LEN_TICKS = tuple(4.0**power for power in range(1, 13))


@dataclass(frozen=True, kw_only=True)
class _Contours:
    """Hold one panel: what is counted, the budgets [budgets], and the lengths they afford [budgets, models]."""

    unit: str
    targets: np.ndarray
    lengths: np.ndarray


def iso_cost_contours(
    models: Sequence[ModelSpec],
    hardware: HardwareSpec,
    path: str | Path,
    *,
    attention: AttentionSpec | None = None,
    targets_eflops: Sequence[float] = (2e13, 2e14, 2e15, 2e16, 2e17),
    named_eflops: float = 2e16,
    prompt_len: int = 0,
    kv_dtype: str = "bfloat16",
    compute_dtype: str = "bfloat16",
    combine: Combine = "add",
    convention: Convention = "exact",
    svg: bool = False,
) -> tuple[Path, Path]:
    """Draw lines of equal cost over model size and generated length: in FLOPs on the left, in eFLOPs on the right.

    A line joins the lengths that one budget affords each model (`iso_cost_len`); between models it is drawn straight.
    Each eFLOPs line has its twin in FLOPs, whose budget affords the largest model the same length. How much the left
    line rises above the right one is how much FLOPs flatter the small models.

    Args:
        models: The models, of one family if the lines are to be smooth; placed by their active parameters.
        hardware: The chip whose intensity prices memory traffic.
        path: Where the PNG goes; the CSV goes beside it.
        attention: The method; None = `Dense()`.
        targets_eflops: The budgets of a whole request [FLOP].
        named_eflops: The budget whose lengths are written at the points; one of `targets_eflops`.
        prompt_len: L_in [tokens].
        kv_dtype: As in `request_cost`.
        compute_dtype: As in `eflops`.
        combine: As in `eflops`.
        convention: As in `request_cost`.
        svg: Whether an SVG goes beside them.

    Returns:
        The paths of the PNG and the CSV.

    Raises:
        ValueError: If there are fewer than two models, or the named budget is not among the others.

    References:
        PAPER.md section 5, Figs. 5b and 5c; errata 1 (the paper drew 14B with a cache of 6 GiB).
    """
    specs = sorted(models, key=lambda spec: spec.num_active_params)
    targets = np.sort(np.asarray(targets_eflops, dtype=np.float64))
    if len(specs) < 2:
        raise ValueError(f"a line of equal cost joins at least two models; got {[spec.name for spec in specs]}")
    if named_eflops not in targets:
        raise ValueError(f"named_eflops must be one of targets_eflops {targets.tolist()}; got {named_eflops}")
    attention = attention or Dense()

    def lengths(chip: HardwareSpec, targets: np.ndarray) -> np.ndarray:
        columns = [
            iso_cost_len(
                spec,
                attention,
                chip,
                targets,
                prompt_len=prompt_len,
                kv_dtype=kv_dtype,
                compute_dtype=compute_dtype,
                combine=combine,
                convention=convention,
            )
            for spec in specs
        ]
        return np.stack([np.asarray(column) for column in columns], axis=1)

    right = _Contours(unit="eFLOPs", targets=targets, lengths=lengths(hardware, targets))
    largest = request_cost(
        specs[-1],
        attention,
        prompt_len=prompt_len,
        gen_len=right.lengths[:, -1],
        kv_dtype=kv_dtype,
        convention=convention,
    )
    left_targets = np.asarray(largest.flops)
    left = _Contours(unit="FLOPs", targets=left_targets, lengths=lengths(_without_memory(hardware), left_targets))
    with house_style():
        named = int(np.flatnonzero(targets == named_eflops)[0])
        figure = _draw(left, right, specs, named, hardware.intensity(compute_dtype, kv_dtype))
        return save(figure, [row for contours in (left, right) for row in _rows(contours, specs)], path, svg=svg)


def _without_memory(hardware: HardwareSpec) -> HardwareSpec:
    """Return a chip to whom traffic is free: its eFLOPs are FLOPs."""
    sources = {**hardware.sources, "fixed_flops_per_byte": "none: traffic left out on purpose, 2026-11-22"}
    return replace(hardware, fixed_flops_per_byte=1e-30, sources=sources)


def _draw(left: _Contours, right: _Contours, specs: Sequence[ModelSpec], named: int, intensity: float) -> Figure:
    figure = new_figure(7.4, 4.9)
    panels = figure.subplots(1, 2, sharey=True).tolist()
    both = list(zip(panels, (left, right), strict=True))
    named_lens = [_draw_panel(axes, contours, specs, named) for axes, contours in both]
    _shade_beyond_context(panels, specs)
    panels[0].set_ylabel("generated tokens that the budget affords")
    panels[0].set_title("counted in FLOPs", loc="left")
    panels[1].set_title(f"counted in eFLOPs (+ {intensity:.4g} a byte)", loc="left")
    figure.supxlabel("model, placed by its active parameters", fontsize=10)
    figure.suptitle(_headline(specs, left.lengths[named], right.lengths[named]), fontsize=11)
    for (axes, contours), labels in zip(both, named_lens, strict=True):
        sizes = [label.x for label in labels]
        place_labels(axes, labels, lines=[np.stack([sizes, line], axis=1) for line in contours.lengths])
    return figure


def _draw_panel(axes: Axes, contours: _Contours, specs: Sequence[ModelSpec], named: int) -> list[PointLabel]:
    """Draw one panel; return the lengths to write into it once both panels stand."""
    sizes = np.array([spec.num_active_params for spec in specs], dtype=np.float64)
    axes.set_xscale("log")
    axes.set_yscale("log")
    for rank, (target, lengths) in enumerate(zip(contours.targets, contours.lengths, strict=True)):
        color, width = (_NAMED_COLOR, 2.6) if rank == named else (_OTHER_COLOR, 1.4)
        axes.plot(sizes, lengths, color=color, marker="o", linewidth=width, markersize=2 * width + 1)
        at = (sizes[-1], lengths[-1])
        axes.annotate(_power(target), at, xytext=(8, 0), textcoords="offset points", color=color, va="center")
    axes.set_xlim(sizes[0] / 1.6, sizes[-1] * 1.9)
    names = short_names([spec.name for spec in specs])
    axes.xaxis.set_major_locator(FixedLocator(list(sizes)))
    axes.xaxis.set_minor_locator(NullLocator())
    is_crowded = max(map(len, names.values())) > 6
    axes.set_xticklabels(
        [names[spec.name] for spec in specs], rotation=35 if is_crowded else 0, ha="right" if is_crowded else "center"
    )
    axes.yaxis.set_major_locator(FixedLocator(_LEN_TICKS))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda length, _: f"{length:,.0f}"))
    return [
        PointLabel(x=size, y=length, text=_thousands(length), color=_NAMED_COLOR, marker_size=8.0)
        for size, length in zip(sizes.tolist(), contours.lengths[named].tolist(), strict=True)
    ]


def _shade_beyond_context(panels: Sequence[Axes], specs: Sequence[ModelSpec]) -> None:
    """Shade the lengths that not every model was made for."""
    shortest = min(spec.max_len for spec in specs)
    low, high = panels[0].get_ylim()
    if shortest >= high:
        return
    for axes in panels:
        axes.axhspan(shortest, high, color="#000000", alpha=0.06, linewidth=0, zorder=0)
    panels[0].set_ylim(low, high)
    panels[-1].text(
        0.98,
        0.98,
        f"beyond a context of {shortest:,} tokens",
        transform=panels[-1].transAxes,
        ha="right",
        va="top",
    ).set_fontsize(8.5)


def _power(number: float) -> str:
    return f"{number:.1e}".replace(".0e", "e").replace("e+", "e")


def _thousands(length: float) -> str:
    return f"{length:,.0f}" if length < 1000 else f"{length / 1000:.1f}k" if length < 1e5 else f"{length / 1000:.0f}k"


def _headline(specs: Sequence[ModelSpec], flops_lens: np.ndarray, eflops_lens: np.ndarray) -> str:
    first, last = specs[0].name, specs[-1].name
    return (
        f"What buys {last} {_thousands(eflops_lens[-1])} tokens buys {first} {_thousands(flops_lens[0])} "
        f"if FLOPs are counted,\n{_thousands(eflops_lens[0])} if memory traffic is charged as well"
    )


def _rows(contours: _Contours, specs: Sequence[ModelSpec]) -> list[dict[str, Any]]:
    return [
        {
            "unit": contours.unit,
            "target": target,
            "model": spec.name,
            "num_active_params": spec.num_active_params,
            "gen_len": length,
        }
        for target, lengths in zip(contours.targets.tolist(), contours.lengths.tolist(), strict=True)
        for spec, length in zip(specs, lengths, strict=True)
    ]
