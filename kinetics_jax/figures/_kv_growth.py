"""KV cache per token against weights: why a bigger model is the cheaper way to think (PAPER.md Fig. 5a)."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter

from kinetics_jax.scaling import PowerLaw, fit_power_law
from kinetics_jax.specs import DTYPES, ModelSpec

from ._labels import PointLabel, place_labels
from ._style import finite_or_blank, house_style, name_powers, new_figure, save

# Colour, marker, size. Distilled models share the geometry of their base: a ring around its marker.
_FAMILY_STYLES: Mapping[str, tuple[str, str, float]] = {
    "Qwen3": ("#0072B2", "o", 7.0),
    "Qwen3-MoE": ("#56B4E9", "P", 8.0),
    "Qwen2.5": ("#009E73", "s", 6.0),
    "DeepSeek-R1-Distill-Qwen": ("#005C43", "ring", 11.0),
    "Llama-3": ("#D55E00", "^", 7.0),
    "DeepSeek-R1-Distill-Llama": ("#8F3F00", "ring", 12.0),
    "OPT": ("#CC79A7", "D", 6.0),
    "Kinetics-Mini": ("#000000", "v", 7.0),
}
_SPARE_STYLES = (("#E69F00", "X", 7.0), ("#666666", "<", 7.0), ("#8C5A13", ">", 7.0))


def kv_per_token(
    models: Iterable[ModelSpec],
    path: str | Path,
    *,
    kv_dtype: str = "bfloat16",
    weight_dtype: str = "bfloat16",
    svg: bool = False,
) -> tuple[Path, Path]:
    """Draw KV bytes per token against the bytes of the weights, log-log, with a power law fitted to each family.

    The weights are those that memory holds: every expert of a mixture, a tied embedding once. Points that have no room
    for their name are named in the CSV.

    Args:
        models: The models; families of two or more sizes get a fit.
        path: Where the PNG goes; the CSV goes beside it.
        kv_dtype: Dtype of the cache, a key of `DTYPES`; scales count.
        weight_dtype: Dtype of the weights, a key of `DTYPES`.
        svg: Whether an SVG goes beside them.

    Returns:
        The paths of the PNG and the CSV.

    Raises:
        ValueError: If there is no model, a dtype is unknown, or more unknown families than spare styles.

    References:
        PAPER.md section 5, Fig. 5a; errata 1 (Qwen3-14B) and 13 (unique parameters).
    """
    specs = sorted(models, key=lambda spec: spec.num_params)
    if not specs:
        raise ValueError("a figure of KV growth needs at least one model; got none")
    kv_bytes = {spec.name: _kv_bytes(spec, kv_dtype) for spec in specs}
    weight_bytes = {spec.name: spec.num_params * DTYPES[weight_dtype].element_bytes for spec in specs}
    by_family: dict[str, list[ModelSpec]] = {}
    for spec in specs:
        by_family.setdefault(spec.family, []).append(spec)
    laws = {family: _fit(family_specs, weight_bytes, kv_bytes) for family, family_specs in by_family.items()}
    styles = _styles(by_family)
    has_experts = any(spec.num_experts for spec in specs)
    with house_style():
        figure = new_figure(7.0, 5.4)
        axes = figure.subplots()
        axes.set_xscale("log")
        axes.set_yscale("log")
        lines = []
        for family in sorted(by_family, key=lambda family: -max(kv_bytes[spec.name] for spec in by_family[family])):
            at = np.array([(weight_bytes[spec.name], kv_bytes[spec.name]) for spec in by_family[family]])
            lines += _draw_family(axes, at, laws[family], family, styles[family])
        axes.margins(0.05, 0.07)
        for axis in (axes.xaxis, axes.yaxis):
            name_powers(axis, EngFormatter(unit="B"))
        axes.set_xlabel(f"weights in memory [bytes, {weight_dtype}{'; all experts' if has_experts else ''}]")
        axes.set_ylabel(f"KV cache per token [bytes, {kv_dtype}]")
        axes.set_title(_title(laws), loc="left")
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, title="family: exponent", loc="outside lower center", ncols=3, columnspacing=1.2)
        place_labels(axes, _names(specs, weight_bytes, kv_bytes, styles), lines=lines)
        rows = [_row(spec, weight_bytes[spec.name], kv_bytes[spec.name], laws[spec.family]) for spec in specs]
        return save(figure, rows, path, svg=svg)


def _kv_bytes(spec: ModelSpec, kv_dtype: str) -> float:
    return spec.kv_elements_per_token / spec.head_dim * DTYPES[kv_dtype].vector_bytes(spec.head_dim)


def _fit(specs: list[ModelSpec], weight_bytes: Mapping[str, float], kv_bytes: Mapping[str, float]) -> PowerLaw | None:
    x = np.array([weight_bytes[spec.name] for spec in specs])
    return fit_power_law(x, np.array([kv_bytes[spec.name] for spec in specs])) if np.unique(x).size > 1 else None


def _styles(families: Iterable[str]) -> dict[str, tuple[str, str, float]]:
    unknown = [family for family in families if family not in _FAMILY_STYLES]
    if len(unknown) > len(_SPARE_STYLES):
        raise ValueError(f"the figure has styles for {len(_SPARE_STYLES)} more families; got {unknown}. Draw fewer.")
    return {**_FAMILY_STYLES, **dict(zip(unknown, _SPARE_STYLES, strict=False))}


def _draw_family(
    axes: Axes, at: np.ndarray, law: PowerLaw | None, family: str, style: tuple[str, str, float]
) -> list[np.ndarray]:
    """Draw the points and the fit of one family; return the fit's ends [2, 2], if any."""
    color, marker, size = style
    look: dict[str, Any] = {"marker": marker}
    if marker == "ring":
        look = {"marker": "o", "markerfacecolor": "none", "markeredgewidth": 1.4}
    label = f"{family}: {law.exponent:.2f}" if law else f"{family}: one size"
    axes.plot(*at.T, color=color, linestyle="none", label=label, markersize=size, **look)
    if law is None:
        return []
    ends = at[[0, -1], 0]
    axes.plot(ends, law(ends), color=color, linestyle="--", linewidth=1.1, zorder=1.5)
    return [np.stack([ends, law(ends)], axis=1)]


def _title(laws: Mapping[str, PowerLaw | None]) -> str:
    exponents = [law.exponent for law in laws.values() if law]
    if not exponents:
        return "KV cache per token against weights"
    low, high = min(exponents), max(exponents)
    growth = f"{low:.2f}" if len(exponents) == 1 else f"{low:.2f} to {high:.2f}, by family"
    return f"KV cache per token grows as a power of the weights:\nexponent {growth} (1 = as fast as the model)"


def _names(
    specs: list[ModelSpec],
    weight_bytes: Mapping[str, float],
    kv_bytes: Mapping[str, float],
    styles: Mapping[str, tuple[str, str, float]],
) -> list[PointLabel]:
    """Name each point by its size, once where a distilled model stands on its base."""
    labels: dict[tuple[int, float], PointLabel] = {}
    for spec in sorted(specs, key=lambda spec: styles[spec.family][1] == "ring"):
        x, y = weight_bytes[spec.name], kv_bytes[spec.name]
        size = re.search(r"\d[\d.]*[BM](-A\d+B)?", spec.name)
        text = size.group() if size else spec.name
        color, _, marker_size = styles[spec.family]
        here = (round(20 * np.log(x)), y)
        if here in labels:
            labels[here] = replace(labels[here], marker_size=max(marker_size, labels[here].marker_size))
        else:
            labels[here] = PointLabel(x=x, y=y, text=text, color=color, marker_size=marker_size)
    return list(labels.values())


def _row(spec: ModelSpec, weight_bytes: float, kv_bytes: float, law: PowerLaw | None) -> dict[str, Any]:
    return {
        "model": spec.name,
        "family": spec.family,
        "num_params": spec.num_params,
        "num_active_params": spec.num_active_params,
        "weight_bytes": weight_bytes,
        "kv_bytes_per_token": kv_bytes,
        "family_exponent": law.exponent if law else "",
        "family_exponent_stderr": finite_or_blank(law.exponent_stderr) if law else "",
    }
