"""Attention over weights against length: where the cache becomes the larger half of the bill."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from kinetics_jax.cost import Convention, phi
from kinetics_jax.specs import HardwareSpec, ModelSpec

from ._labels import PointLabel, name_ends, place_labels
from ._style import finite_or_blank, house_style, new_figure, save, short_names, size_styles, write_lens

_NUM_POINTS = 49
_SHORTEST = 16


def phi_by_len(
    models: Sequence[ModelSpec],
    hardware: HardwareSpec,
    path: str | Path,
    *,
    longest_len: int = 32_768,
    prompt_len: int = 0,
    kv_dtype: str = "bfloat16",
    compute_dtype: str = "bfloat16",
    convention: Convention = "exact",
    svg: bool = False,
) -> tuple[Path, Path]:
    """Draw Phi, the eFLOPs of dense attention over the FLOPs of the weights, against length, with where it passes 1.

    Args:
        models: The models, at most six, smallest first.
        hardware: The chip whose intensity prices memory traffic.
        path: Where the PNG goes; the CSV goes beside it.
        longest_len: Where the axis of generated lengths ends [tokens].
        prompt_len: L_in, shared by endless trials as in the paper: attended, but fetched for free [tokens].
        kv_dtype: As in `phi`.
        compute_dtype: As in `phi`.
        convention: As in `phi`.
        svg: Whether an SVG goes beside them.

    Returns:
        The paths of the PNG and the CSV; a crossing is blank where attention outweighs the weights from the start.

    Raises:
        ValueError: If there is no model or too many, or `longest_len` is too short to draw.

    References:
        PAPER.md section 2, Phi; errata 6 ("10 to 1000x" does not hold for large models).
    """
    if not models:
        raise ValueError("a figure of Phi needs at least one model; got none")
    if longest_len <= _SHORTEST:
        raise ValueError(f"longest_len must be above {_SHORTEST} tokens; got {longest_len}")
    lengths = np.geomspace(_SHORTEST, longest_len, _NUM_POINTS)

    def ratio(spec: ModelSpec, gen_len: float | np.ndarray) -> Any:
        return phi(
            spec,
            hardware,
            gen_len=gen_len,
            prompt_len=prompt_len,
            kv_dtype=kv_dtype,
            compute_dtype=compute_dtype,
            convention=convention,
        )

    curves = {spec.name: np.asarray(ratio(spec, lengths)) for spec in models}
    crossings = {spec.name: _crossing(ratio(spec, 0.0), ratio(spec, 1.0)) for spec in models}
    with house_style():
        figure = new_figure(7.0, 4.8)
        axes = figure.subplots()
        _draw(axes, lengths, curves, crossings)
        axes.set_ylabel("Phi = attention [eFLOPs] / weights [FLOPs]")
        axes.set_xlabel(f"generated tokens{f' after a prompt of {prompt_len:,}' if prompt_len else ''}")
        axes.set_title(_title(curves, lengths, hardware.intensity(compute_dtype, kv_dtype)), loc="left")
        styles, names = size_styles(list(curves)), short_names(curves)
        name_ends(
            axes,
            [
                PointLabel(x=lengths[-1], y=curve[-1], text=names[name], color=styles[name][0])
                for name, curve in curves.items()
            ],
        )
        place_labels(
            axes,
            [
                PointLabel(x=length, y=1.0, text=f"{length:,.0f}", color=styles[name][0])
                for name, length in crossings.items()
                if lengths[0] <= length <= lengths[-1]
            ],
            lines=[np.stack([lengths, curve], axis=1) for curve in (*curves.values(), np.ones_like(lengths))],
            fontsize=9.0,
        )
        rows = [
            {"model": name, "gen_len": length, "phi": value, "crossing_len": finite_or_blank(crossings[name])}
            for name, curve in curves.items()
            for length, value in zip(lengths.tolist(), curve.tolist(), strict=True)
        ]
        return save(figure, rows, path, svg=svg)


def _crossing(at_zero: float, at_one: float) -> float:
    """Return the length at which Phi is 1: Phi is a straight line in T. NaN if it starts above."""
    return (1.0 - at_zero) / (at_one - at_zero) if at_zero < 1 else float("nan")


def _draw(axes: Axes, lengths: np.ndarray, curves: dict[str, np.ndarray], crossings: dict[str, float]) -> None:
    styles = size_styles(list(curves))
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.axhline(1.0, color="#000000", linewidth=1.2)
    for name, curve in curves.items():
        color, marker = styles[name]
        axes.plot(lengths, curve, color=color)
        axes.plot(crossings[name], 1.0, color=color, marker=marker, markersize=7, linestyle="none", zorder=5)
    axes.set_xlim(lengths[0], lengths[-1])
    write_lens(axes.xaxis)
    axes.yaxis.set_major_formatter("{x:,g}")
    # Curves rise to the right: the upper left corner is free.
    corner = "above 1 attention costs more,\nbelow the weights do"
    axes.text(0.02, 0.98, corner, transform=axes.transAxes, va="top", color="#444444")


def _title(curves: dict[str, np.ndarray], lengths: np.ndarray, intensity: float) -> str:
    ends = {name: curve[-1] for name, curve in curves.items()}
    high, low = max(ends, key=ends.__getitem__), min(ends, key=ends.__getitem__)
    others = f", {ends[low]:.0f} times for {low}" if high != low else ""
    return (
        f"At {lengths[-1]:,.0f} tokens and {intensity:.4g} FLOPs a byte, attention costs {ends[high]:.0f} times\n"
        f"what the weights cost for {high}{others}"
    )
