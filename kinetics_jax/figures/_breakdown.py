"""What a request's price is made of, a bar for each model and attention method."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from kinetics_jax.cost import Convention, Cost, request_cost
from kinetics_jax.specs import AttentionSpec, HardwareSpec, ModelSpec

from ._style import house_style, is_light, new_figure, save

# Term to (label, colour): arithmetic in blues, the cache's traffic in reds, weights in grey. Search is both, in green.
_TERMS: Mapping[str, tuple[str, str]] = {
    "linear_flops": ("linear", "#0B3C5D"),
    "attention_flops": ("attention", "#56B4E9"),
    "search": ("search", "#009E73"),
    "kv_read_bytes": ("KV read", "#D55E00"),
    "kv_write_bytes": ("KV write", "#F3C99F"),
    "param_bytes": ("weights read", "#8A8A8A"),
}
_BAR_INCHES, _GAP = 0.33, 0.75
_SMALLEST_NAMED = 0.055


def cost_breakdown(
    models: Sequence[ModelSpec],
    attentions: Sequence[AttentionSpec],
    hardware: HardwareSpec,
    path: str | Path,
    *,
    prompt_len: int,
    gen_len: int,
    num_trials: int = 1,
    kv_dtype: str = "bfloat16",
    weight_dtype: str = "bfloat16",
    batch_size: int | float | None = None,
    compute_dtype: str = "bfloat16",
    convention: Convention = "exact",
    svg: bool = False,
) -> tuple[Path, Path]:
    """Draw each term's share of the eFLOPs ("add"), a bar for each attention method in a group for each model.

    Beside a bar stand its total and how many times cheaper that is than the first method of the group. The search
    is its arithmetic and its traffic together.

    Args:
        models: The models, one group each.
        attentions: The methods, the one to compare with first.
        hardware: The chip whose intensity prices memory traffic.
        path: Where the PNG goes; the CSV goes beside it.
        prompt_len: L_in [tokens].
        gen_len: T [tokens].
        num_trials: As in `request_cost`.
        kv_dtype: As in `request_cost`.
        weight_dtype: As in `request_cost`.
        batch_size: As in `request_cost`; None = weights are free.
        compute_dtype: As in `eflops`.
        convention: As in `request_cost`.
        svg: Whether an SVG goes beside them.

    Returns:
        The paths of the PNG and the CSV.

    Raises:
        ValueError: If there is no model or no method, or a request costs nothing.

    References:
        PAPER.md section 2 and errata 7; the terms are those of `cost.Cost`.
    """
    if not models or not attentions:
        raise ValueError(
            f"a breakdown needs a model and a method; got {len(models)} models and {len(attentions)} methods"
        )
    if gen_len <= 0:
        raise ValueError(f"gen_len must be positive, since shares of nothing cannot be drawn; got {gen_len}")
    intensity = hardware.intensity(compute_dtype, kv_dtype)
    bills = {
        (spec.name, str(attention)): _eflops_by_term(
            request_cost(
                spec,
                attention,
                prompt_len=prompt_len,
                gen_len=gen_len,
                num_trials=num_trials,
                kv_dtype=kv_dtype,
                weight_dtype=weight_dtype,
                batch_size=batch_size,
                convention=convention,
            ),
            intensity,
        )
        for spec in models
        for attention in attentions
    }
    with house_style():
        num_bars, num_groups = len(bills), len(models)
        figure = new_figure(7.4, 1.25 + _BAR_INCHES * (num_bars + _GAP * num_groups))
        axes = figure.subplots()
        _draw(axes, bills)
        batch = "endless batch (weights free)" if batch_size is None else f"batch of {batch_size:g}"
        trials = f"{num_trials} x " if num_trials > 1 else ""
        axes.set_title(
            f"{trials}{gen_len:,} tokens after {prompt_len:,}, {batch}, {intensity:.4g} FLOPs a byte", loc="left"
        )
        axes.set_xlabel("share of the request's eFLOPs [%]")
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside lower center", ncols=len(labels), columnspacing=1.0, handlelength=1.0
        )
        return save(figure, _rows(bills), path, svg=svg)


def _eflops_by_term(cost: Cost, intensity: float) -> dict[str, float]:
    return {
        "linear_flops": cost.linear_flops,
        "attention_flops": cost.attention_flops,
        "search": cost.search_flops + intensity * cost.search_bytes,
        "kv_read_bytes": intensity * cost.kv_read_bytes,
        "kv_write_bytes": intensity * cost.kv_write_bytes,
        "param_bytes": intensity * cost.param_bytes,
    }


def _draw(axes: Axes, bills: Mapping[tuple[str, str], Mapping[str, float]]) -> None:
    heights: dict[tuple[str, str], float] = {}
    height, last_model, reference = 0.0, "", 0.0
    for model, attention in bills:
        total = sum(bills[model, attention].values())
        if model != last_model:
            height -= _GAP
            axes.text(101, height + 0.5, "" if last_model else "eFLOPs", weight="bold", va="bottom")
            axes.text(0, height + 0.5, model, weight="bold", va="bottom")
            last_model, reference = model, total
        heights[model, attention] = height
        ratio = reference / total
        saving = "" if ratio == 1 else f"  ({ratio:.1f}x less)" if ratio > 1 else f"  ({1 / ratio:.1f}x more)"
        beside = f"{total:.1e}".replace("e+", "e") + saving
        axes.text(101, height, beside, va="center")
        height -= 1.0
    for term, (label, color) in _TERMS.items():
        shares = {bar: 100 * bill[term] / sum(bill.values()) for bar, bill in bills.items()}
        if not any(shares.values()):
            continue
        starts = {bar: 100 * _before(bill, term) / sum(bill.values()) for bar, bill in bills.items()}
        axes.barh(
            list(heights.values()),
            list(shares.values()),
            left=list(starts.values()),
            height=0.78,
            color=color,
            edgecolor="white",
            linewidth=0.6,
            label=label,
        )
        for bar, share in shares.items():
            if share > 100 * _SMALLEST_NAMED:
                ink = "black" if is_light(color) else "white"
                axes.text(starts[bar] + share / 2, heights[bar], f"{share:.0f}", ha="center", va="center", color=ink)
    axes.set_xlim(0, 100)
    axes.set_ylim(height + 0.4, 0.5)
    names = [attention.replace(",", "\n", 1) for _, attention in heights]
    axes.set_yticks(list(heights.values()), names, fontsize=9, linespacing=0.95)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")


def _before(bill: Mapping[str, float], term: str) -> float:
    """Return what is stacked to the left of a term."""
    names = list(_TERMS)
    return sum((bill[name] for name in names[: names.index(term)]), start=0.0)


def _rows(bills: Mapping[tuple[str, str], Mapping[str, float]]) -> list[dict[str, Any]]:
    return [
        {"model": model, "attention": attention, "term": term, "eflops": amount, "share": amount / sum(bill.values())}
        for (model, attention), bill in bills.items()
        for term, amount in bill.items()
    ]
