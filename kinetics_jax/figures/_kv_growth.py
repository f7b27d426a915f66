"""KV cache per token against parameters: why a bigger model is the cheaper way to think (PAPER.md Fig. 5a)."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from kinetics_jax.scaling import fit_power_law
from kinetics_jax.specs import DTYPES, ModelSpec

from ._style import house_style, new_figure, save

_FAMILY_STYLES = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#000000", "v"))


def kv_per_token(models: Iterable[ModelSpec], path: str | Path, *, kv_dtype: str = "bfloat16") -> tuple[Path, Path]:
    """Draw KV bytes per token against parameters, log-log, with a power law fitted to each family.

    Args:
        models: The models; families of two or more sizes get a fit.
        path: Where the PNG goes; the CSV goes beside it.
        kv_dtype: Dtype of the cache.

    Returns:
        The paths of the PNG and the CSV.

    Raises:
        ValueError: If there are more families than styles.

    References:
        PAPER.md section 5, Fig. 5a. Parameters are unique ones (errata 13).
    """
    specs = sorted(models, key=lambda spec: spec.num_params)
    families = list(dict.fromkeys(spec.family for spec in specs))
    if len(families) > len(_FAMILY_STYLES):
        raise ValueError(f"the figure shows at most {len(_FAMILY_STYLES)} families; got {len(families)}")
    rows = []
    with house_style():
        figure = new_figure(6.4, 4.4)
        axes = figure.subplots()
        for family, (color, marker) in zip(families, _FAMILY_STYLES, strict=False):
            members = [spec for spec in specs if spec.family == family]
            params = np.array([spec.num_params for spec in members], dtype=np.float64)
            kv_bytes = np.array(
                [spec.kv_elements_per_token * DTYPES[kv_dtype].element_bytes for spec in members], dtype=float
            )
            label, exponent = family, ""
            if np.unique(params).size > 1:
                law = fit_power_law(params, kv_bytes)
                ends = params[[0, -1]]
                axes.plot(ends, law(ends), color=color, linestyle="--", linewidth=1.2)
                label, exponent = f"{family}: KV ~ params^{law.exponent:.2f}", law.exponent
            axes.plot(params, kv_bytes, color=color, marker=marker, linestyle="none", label=label, markersize=6)
            for spec, x, y in zip(members, params, kv_bytes, strict=True):
                name = spec.name.removeprefix(f"{family}-")
                axes.annotate(name, (x, y), xytext=(0, 7), textcoords="offset points", ha="center", fontsize=8)
                row = {"model": spec.name, "family": family, "num_params": spec.num_params, "kv_bytes_per_token": y}
                rows.append({**row, "family_exponent": exponent})
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.margins(0.08, 0.12)
        axes.set_xlabel("parameters")
        axes.set_ylabel(f"KV cache per token [bytes, {kv_dtype}]")
        axes.set_title("KV cache grows more slowly than the model", loc="left")
        handles, labels = axes.get_legend_handles_labels()
        axes.legend(handles[::-1], labels[::-1], loc="upper left")  # the largest family runs highest
        return save(figure, rows, path)
