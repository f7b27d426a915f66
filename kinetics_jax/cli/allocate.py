"""`kinetics allocate`: the best use of a cost between the grid's points, with what one more percent of it is worth."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import typer

from kinetics_jax.scaling import GridComparison, fit_accuracy_surface, score_optima, tradeoff_table
from kinetics_jax.scaling import allocate as allocate_on_grid
from kinetics_jax.specs import HARDWARE, ModelSpec
from kinetics_jax.traces import TraceTable
from kinetics_jax.zoo import RECORDED_TRACES

from ._app import app
from ._loading import known_models
from ._optima import (
    Optima,
    Request,
    attention_text,
    bounds_of,
    default_costs,
    parse_choice,
    prices_of,
    solve,
    tables_of,
)
from ._output import print_json, print_table
from ._pricing import AsJson, CombineText, Hardware, parse_combine
from ._study import STRATEGIES
from ._tables import Traces, load_tables, named, one_task

_NUM_CAPS = 16


@app.command()
def allocate(
    traces: Traces = RECORDED_TRACES,
    cost: Annotated[
        list[float] | None,
        typer.Option(help="eFLOPs of a request, such as 1e17; repeat for more.", show_default="six over the range"),
    ] = None,
    hardware: Hardware = "H100-SXM",
    method: Annotated[
        str | None, typer.Option(help="block_topk, quest, topk or dense.", show_default="the first recorded")
    ] = None,
    strategy: Annotated[
        str, typer.Option(help="What is free: both, long_cot (lengths) or best_of_n (trials).")
    ] = "both",
    model: Annotated[
        list[str] | None, typer.Option(help="Models to choose among; repeat for more.", show_default="all")
    ] = None,
    task: Annotated[str | None, typer.Option(help="Task, where there are several.")] = None,
    geometry: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of a model that the catalogue lacks; repeat for more.", show_default="none"),
    ] = None,
    combine: CombineText = "add",
    batch_size: Annotated[
        int | None, typer.Option(help="Sequences that share one read of the weights; endless by default.", min=1)
    ] = None,
    max_trials: Annotated[int | None, typer.Option(help="Most trials.", show_default="those recorded", min=1)] = None,
    average: Annotated[
        bool, typer.Option("--average", help="Costs are means over requests that stop when right, not caps on each.")
    ] = False,
    held_out: Annotated[
        bool, typer.Option("--held-out", help="Score rounded optima beside Algorithm 1 or 2 on unseen trials instead.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Fit accuracy to traces, and print the best length, trials and KV budget that each cost buys."""
    chip, known = HARDWARE[hardware], known_models(geometry or ())
    request = Request(
        method=method or "",
        hardware=chip,
        combine=parse_combine(combine),
        strategy=parse_choice(strategy),
        batch_size=batch_size,
        is_mean=average,
        max_trials=max_trials,
    )
    _require_costs(cost or ())
    tables = one_task(load_tables(traces, models=model or ()), traces, task)
    unknown = sorted({table.model for table in tables if table.model not in known})
    if unknown:
        raise ValueError(
            f"{traces} has traces of {', '.join(unknown)}, whose geometry the catalogue lacks, so that nothing can be "
            "priced. Give the model's folder with --geometry."
        )
    with named(traces):
        chosen, tables = tables_of(sorted(tables, key=lambda table: known[table.model].num_params), method)
        request = replace(request, method=chosen)
        head = {
            "traces": str(traces),
            "task": tables[0].task,
            "num_problems": tables[0].num_problems,
            "num_trials": int(sum(table.mask.sum() for table in tables)),
            "models": list(dict.fromkeys(table.model for table in tables)),
            "method": chosen,
            "strategy": strategy,
            "hardware": hardware,
            "flops_per_byte": chip.intensity("bfloat16", "bfloat16"),
            "combine": combine,
            "batch_size": batch_size,
        }
        if held_out:
            _show_held_out(head, tables, known, request, cost, as_json)
        else:
            _show_optima(head, tables, known, request, cost, as_json)


def _require_costs(costs: Sequence[float]) -> None:
    wrong = [cost for cost in costs if not (np.isfinite(cost) and cost > 0)]
    if wrong:
        raise ValueError(f"a cost must be a positive number of eFLOPs, such as 1e17; got {wrong[0]:g}")


def _show_optima(
    head: dict[str, Any],
    tables: Sequence[TraceTable],
    models: Mapping[str, ModelSpec],
    request: Request,
    cost: Sequence[float] | None,
    as_json: bool,
) -> None:
    # In single precision the optimality conditions hold to three digits only.
    with jax.enable_x64(True):
        surface = fit_accuracy_surface(tables)
        prices, bounds = prices_of(surface, tables, models, request), bounds_of(tables, request)
        costs = sorted(cost or default_costs(prices, bounds))
        optima = solve(surface, prices, costs, bounds, tables, models, request)
        rows = [_row(optima, place, float(paid), request.method) for place, paid in enumerate(costs)]
    content = {**head, "costs_are": "means" if request.is_mean else "caps", "rows": rows}
    if as_json:
        print_json(content)
    else:
        _print_optima(content)


def _row(optima: Optima, place: int, cost: float, method: str) -> dict[str, Any]:
    choice, rounded, grid = optima.choice, optima.rounded[place], optima.grid[place]
    best, growth = (jax.tree.map(lambda leaf: leaf[place], tree) for tree in (choice.optimum, choice.growth))
    per_doubling = {name: float(value) for name, value in vars(growth.per_doubling()).items()}
    return {
        "cost": cost,
        "model": choice.models[int(choice.model[place])],
        **{name: float(value) for name, value in vars(best.setting).items()},
        "accuracy": float(best.accuracy),
        "spent": float(best.cost),
        "shadow_price": float(best.shadow_price),
        "tight": [name for name in best.tight(1e-5)[0] if name != "cost"],
        "kkt_residual": float(best.kkt_residual),
        "growth_per_doubling": per_doubling,
        "accuracy_by_model": {
            name: _known(value) for name, value in zip(choice.models, choice.each.accuracy[:, place], strict=True)
        },
        "rounded": _whole(rounded, method),
        "grid": _whole(grid, method),
    }


def _whole(found: Any, method: str) -> dict[str, Any] | None:
    """Return a whole setting as what an engine is told, or None where none is affordable."""
    length, trials, budget, page = (np.ravel(value)[0] for value in vars(found.setting).values())
    if not np.isfinite(length):
        return None
    return {
        "gen_len": round(length),
        "num_trials": round(trials),
        "attention": attention_text(method, budget, page),
        "accuracy": float(np.ravel(found.accuracy)[0]),
        "spent": float(np.ravel(found.cost)[0]),
    }


def _known(value: Any) -> float | None:
    """Return a number that JSON has: None for a model whose cheapest setting is above the cost."""
    return float(value) if np.isfinite(value) else None


def _print_optima(content: dict[str, Any]) -> None:
    means = "mean costs" if content["costs_are"] == "means" else "caps per request"
    title = (
        f"{content['method']} on {content['task']}: {content['num_problems']} problems, {content['num_trials']:,} "
        f"trials; eFLOPs on {content['hardware']} ({content['combine']}), {means}.\n"
        "Accuracy: of the fitted law, not of held-out trials (--held-out). Worth: points that 1% more buys.\n"
        "To run: whole tokens x trials, attention, accuracy of the law. Grid: the best of Algorithm 1's candidates."
    )
    columns = ("eFLOPs", "model", "tokens x trials", "KV budget", "held by", "accuracy", "worth", "to run", "grid")
    print_table(title, columns, [_cells(row) for row in content["rows"]], num_labels=1)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    def whole(found: dict[str, Any] | None) -> str:
        if found is None:
            return "none"
        return f"{found['gen_len']:,} x {found['num_trials']:,}, {found['attention']}: {found['accuracy']:.3f}"

    page = "" if row["page_len"] == 1 else f" in pages of {row['page_len']:.1f}"
    return (
        f"{row['cost']:.2e}",
        row["model"],
        f"{row['gen_len']:,.1f} x {row['num_trials']:,.1f}",
        f"{row['budget_len']:,.1f}{page}",
        ", ".join(row["tight"]) or "the cost alone",
        f"{row['accuracy']:.3f}",
        f"{row['shadow_price']:.3f}",
        whole(row["rounded"]),
        "none" if row["grid"] is None else f"{row['grid']['accuracy']:.3f}",
    )


def _show_held_out(
    head: dict[str, Any],
    tables: Sequence[TraceTable],
    models: Mapping[str, ModelSpec],
    request: Request,
    cost: Sequence[float] | None,
    as_json: bool,
) -> None:
    strategy = request.strategy
    if strategy == "both":
        raise ValueError("--held-out stands beside Algorithm 1 or 2: choose --strategy best_of_n or long_cot.")
    if request.batch_size is not None:
        raise ValueError("--held-out prices endless batches, as Algorithms 1 and 2 do. Leave --batch-size out.")
    sparse = [table for table in tables if table.attention != "dense"]
    if not sparse:
        raise ValueError("--held-out chooses a KV budget; the traces are dense only. Run a sparse method at some.")
    tradeoff = tradeoff_table(
        sparse, models=models, hardware=request.hardware, combine=request.combine, strategy=strategy
    )
    caps = np.asarray(sorted(cost or np.asarray(tradeoff.budget_grid(_NUM_CAPS), dtype=float).tolist()))
    scored = score_optima(
        tables, models=models, hardware=request.hardware, budgets=caps, strategy=strategy, combine=request.combine
    )
    beside = scored.beside(allocate_on_grid(tradeoff, jnp.asarray(caps, jnp.float32)))
    rows = [
        {name: float(values[place]) for name, values in vars(beside).items()} | {"cost": float(caps[place])}
        for place in range(caps.size)
    ]
    content = {**head, "costs_are": "caps on the expected price", "rows": rows}
    if as_json:
        print_json(content)
    else:
        _print_held_out(content, beside)


def _print_held_out(content: dict[str, Any], beside: GridComparison) -> None:
    num_within = int((beside.gain >= -beside.grid_stderr).sum())
    title = (
        f"Rounded optima beside {STRATEGIES[content['strategy']]} on a grid, {content['method']} on {content['task']}; "
        f"caps on the expected price in eFLOPs on {content['hardware']} ({content['combine']}).\n"
        "Both choose on one half of the trials and are scored on the other; gains in points (standard error, problems "
        f"paired).\nWithin one standard error of the grid's accuracy, or better: {num_within} of {len(beside.gain)}."
    )
    columns = ("cap", "grid", "spent", "optimum", "spent", "gain", "gain at equal spending")
    cells = [
        (
            f"{row['cost']:.2e}",
            f"{row['grid_accuracy']:.3f} ({row['grid_stderr']:.3f})",
            f"{row['grid_spent']:.2e}",
            f"{row['accuracy']:.3f}",
            f"{row['spent']:.2e}",
            _points(row["gain"], row["gain_stderr"]),
            _points(row["gain_at_spent"], row["gain_at_spent_stderr"]),
        )
        for row in content["rows"]
    ]
    print_table(title, columns, cells, num_labels=0)


def _points(gain: float, stderr: float) -> str:
    return f"{round(100 * gain, 1) + 0.0:+.1f} ({100 * stderr:.1f})"
