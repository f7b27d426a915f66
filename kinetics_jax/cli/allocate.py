"""`kinetics allocate`: the best use of a cost between the grid's points, with what one more percent of it is worth."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import typer
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from kinetics_jax.scaling import GridOptimum, Rounded, fit_accuracy_surface, score_optima, tradeoff_table
from kinetics_jax.scaling import allocate as allocate_on_grid
from kinetics_jax.specs import HARDWARE, ModelSpec
from kinetics_jax.traces import TraceTable
from kinetics_jax.zoo import RECORDED_TRACES

from ._app import app, console
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
# Steps of the fit: on the recorded block_topk the log likelihood is -55,231 after these and -55,223 after 300.
_NUM_STEPS = 150


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
    how, choice = parse_combine(combine), parse_choice(strategy)
    _require_costs(cost or ())
    if held_out:
        _require_beside(choice, batch_size=batch_size, max_trials=max_trials, is_mean=average)
    tables = one_task(load_tables(traces, models=model or ()), traces, task)
    unknown = sorted({table.model for table in tables if table.model not in known})
    if unknown:
        raise ValueError(
            f"{traces} has traces of {', '.join(unknown)}, whose geometry the catalogue lacks, so that nothing can be "
            "priced. Give the model's folder with --geometry."
        )
    with named(traces), _stages() as say:
        chosen, tables = tables_of(sorted(tables, key=lambda table: known[table.model].num_params), method)
        request = Request(
            method=chosen,
            hardware=chip,
            combine=how,
            strategy=choice,
            batch_size=batch_size,
            is_mean=average,
            max_trials=max_trials,
        )
        compute = _held_out if held_out else _optima
        found = compute(tables, known, request, cost or (), say)
    content = {
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
        **found,
    }
    if as_json:
        print_json(content)
    elif held_out:
        _print_held_out(content)
    else:
        _print_optima(content)


def _require_costs(costs: Sequence[float]) -> None:
    wrong = [cost for cost in costs if not (np.isfinite(cost) and cost > 0)]
    if wrong:
        raise ValueError(f"a cost must be a positive number of eFLOPs, such as 1e17; got {wrong[0]:g}")


def _require_beside(strategy: str, *, batch_size: int | None, max_trials: int | None, is_mean: bool) -> None:
    """Raise ValueError for what Algorithms 1 and 2 on recorded trials do not know."""
    if strategy == "both":
        raise ValueError("--held-out stands beside Algorithm 1 or 2: choose --strategy long_cot or best_of_n.")
    for option, is_given, why in (
        ("--batch-size", batch_size is not None, "prices endless batches"),
        ("--max-trials", max_trials is not None, "has the recorded trials only"),
        ("--average", is_mean, "caps the expected price, as Algorithms 1 and 2 do"),
    ):
        if is_given:
            raise ValueError(f"--held-out {why}. Leave {option} out.")


@contextmanager
def _stages() -> Iterator[Callable[[str], None]]:
    """Show on a terminal what is being done and since when; give the function that says it."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        row = bar.add_task("", total=None)
        yield lambda text: bar.update(row, description=text)


def _optima(
    tables: Sequence[TraceTable],
    models: Mapping[str, ModelSpec],
    request: Request,
    cost: Sequence[float],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Return a row a cost: the optimum on the fitted surface, what one may run, the best of the grid."""
    bounds = bounds_of(tables, request)
    say("Fitting a law of accuracy to the trials")
    surface = fit_accuracy_surface(tables, num_steps=_NUM_STEPS)
    # In single precision the optimality conditions hold to three digits only; to a fit that is enough.
    with jax.enable_x64(True):
        surface = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), surface)
        prices = prices_of(surface, tables, models, request)
        costs = sorted(cost or default_costs(prices, bounds))
        say(f"Solving for {len(surface.models)} models at {len(costs)} costs; most of it is compilation")
        optima = solve(surface, prices, costs, bounds, tables, models, request)
        rows = [_row(optima, place, float(paid), request.method) for place, paid in enumerate(costs)]
    return {"costs_are": "means" if request.is_mean else "caps", "rows": rows}


def _row(optima: Optima, place: int, cost: float, method: str) -> dict[str, Any]:
    choice, grid = optima.choice, optima.grid[place]
    best, growth = (jax.tree.map(lambda leaf: leaf[place], tree) for tree in (choice.optimum, choice.growth))
    per_doubling = {name: _known(value) for name, value in vars(growth.per_doubling()).items()}
    return {
        "cost": cost,
        "model": choice.models[int(choice.model[place])],
        **{name: _known(value) for name, value in vars(best.setting).items()},
        "accuracy": _known(best.accuracy),
        "spent": _known(best.cost),
        "shadow_price": _known(best.shadow_price),
        "tight": [name for name in best.tight(1e-5)[0] if name != "cost"],
        "kkt_residual": _known(best.kkt_residual),
        "growth_per_doubling": per_doubling,
        "accuracy_by_model": {
            name: _known(value) for name, value in zip(choice.models, choice.each.accuracy[:, place], strict=True)
        },
        "rounded": _whole(optima.rounded[place], method),
        "grid": _whole(grid, method),
    }


def _whole(found: Rounded | GridOptimum | None, method: str) -> dict[str, Any] | None:
    """Return a whole setting as what an engine is told, or None where none is affordable."""
    if found is None:
        return None
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
    family = {name.rpartition("-")[0] for name in content["models"]}
    title = (
        f"{content['method']} on {content['task']}: {content['num_problems']} problems, {content['num_trials']:,} "
        f"trials{' of ' + family.copy().pop() if len(family) == 1 else ''}; eFLOPs on {content['hardware']} "
        f"({content['combine']}), {means}.\n"
        "Accuracy is that of the fitted law, not of held-out trials (--held-out). * a bound holds it. Worth: points "
        "that 1% more buys.\n"
        "To run: the best whole setting beside the optimum by its exact bill, and its accuracy. Grid: the best of "
        "Algorithm 1's candidates."
    )
    page = " / page" if any(row["page_len"] not in (1, None) for row in content["rows"]) else ""
    columns = ("eFLOPs", "model", "tokens x trials", f"KV budget{page}", "accuracy", "worth", "to run", "grid")
    print_table(title, columns, [_cells(row, len(family) == 1) for row in content["rows"]], num_labels=2)


def _cells(row: dict[str, Any], is_family: bool) -> tuple[str, ...]:
    if row["accuracy"] is None:
        return (f"{row['cost']:.2e}", *["none"] * 7)

    def at(name: str) -> str:
        ends = {"budget_len": ("whole context",), "page_len": ("page in budget",)}.get(name, ())
        is_held = any(limit in (f"{name} at least", f"{name} at most", *ends) for limit in row["tight"])
        return f"{row[name]:,.1f}{'*' if is_held else ''}"

    def whole(found: dict[str, Any] | None) -> str:
        if found is None:
            return "none"
        reads = found["attention"].partition(":")[2] or "dense"
        return f"{found['gen_len']:,} x {found['num_trials']:,}, {reads}: {found['accuracy']:.3f}"

    left = "" if row["spent"] > 0.999 * row["cost"] else f" ({row['spent']:.2e} spent)"
    return (
        f"{row['cost']:.2e}{left}",
        row["model"].rpartition("-")[2] if is_family else row["model"],
        f"{at('gen_len')} x {at('num_trials')}",
        at("budget_len") + ("" if row["page_len"] == 1 else f" / {at('page_len')}"),
        f"{row['accuracy']:.3f}",
        f"{row['shadow_price']:.3f}",
        whole(row["rounded"]),
        "none" if row["grid"] is None else f"{row['grid']['accuracy']:.3f}",
    )


def _held_out(
    tables: Sequence[TraceTable],
    models: Mapping[str, ModelSpec],
    request: Request,
    cost: Sequence[float],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Return a row a cap: what rounded optima and Algorithm 1 or 2 reach on trials that neither has seen."""
    assert request.strategy != "both"
    sparse = [table for table in tables if table.attention != "dense"]
    if not sparse:
        raise ValueError("--held-out chooses a KV budget; the traces are dense only. Run a sparse method at some.")
    say(f"{STRATEGIES[request.strategy]} on the grid")
    tradeoff = tradeoff_table(
        sparse, models=models, hardware=request.hardware, combine=request.combine, strategy=request.strategy
    )
    caps = np.asarray(sorted(cost or np.asarray(tradeoff.budget_grid(_NUM_CAPS), dtype=float).tolist()))
    bought = allocate_on_grid(tradeoff, jnp.asarray(caps, jnp.float32))
    say("Optima of one half of the trials; most of it is compilation")
    scored = score_optima(
        tables,
        models=models,
        hardware=request.hardware,
        budgets=caps,
        strategy=request.strategy,
        combine=request.combine,
        on_progress=lambda done, total: say(f"Optima by half of the trials and grade of difficulty: {done} of {total}"),
    )
    columns = {name: values for name, values in vars(scored.beside(bought)).items() if name != "budgets"}
    rows = [
        {"cost": float(cap), **{name: float(values[place]) for name, values in columns.items()}}
        for place, cap in enumerate(caps)
    ]
    return {"costs_are": "caps on the expected price", "rows": rows}


def _print_held_out(content: dict[str, Any]) -> None:
    rows = content["rows"]
    num_within = sum(row["gain"] >= -row["grid_stderr"] for row in rows)
    title = (
        f"Rounded optima beside {STRATEGIES[content['strategy']]} on a grid, {content['method']} on {content['task']}; "
        f"caps on the expected price in eFLOPs on {content['hardware']} ({content['combine']}).\n"
        "Both choose on one half of the trials and are scored on the other; gains in points (standard error, problems "
        f"paired).\nWithin one standard error of the grid's accuracy, or better: {num_within} of {len(rows)}."
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
        for row in rows
    ]
    print_table(title, columns, cells, num_labels=0)


def _points(gain: float, stderr: float) -> str:
    return f"{round(100 * gain, 1) + 0.0:+.1f} ({100 * stderr:.1f})"
