"""`kinetics frontier`: what each budget buys, from traces, scored on trials that the choice has not seen."""

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from kinetics_jax.scaling import (
    Allocation,
    Candidate,
    allocate,
    allocate_average,
    pareto_frontier,
    tradeoff_table,
)
from kinetics_jax.specs import HARDWARE
from kinetics_jax.zoo import RECORDED_TRACES

from ._app import app
from ._loading import known_models
from ._output import print_json, print_table
from ._pricing import AsJson, CombineText, Hardware, parse_combine
from ._study import PRICES, STRATEGIES, Price, StrategyName
from ._tables import Traces, load_tables, named, one_task


@app.command()
def frontier(
    traces: Traces = RECORDED_TRACES,
    strategy: Annotated[str, typer.Option(help="long_cot: choose lengths; best_of_n: choose trials.")] = "long_cot",
    price: Annotated[str, typer.Option(help="eflops charges memory traffic, flops does not.")] = "eflops",
    combine: CombineText = "add",
    hardware: Hardware = "H100-SXM",
    model: Annotated[
        list[str] | None, typer.Option(help="Models to choose among; repeat for more.", show_default="all")
    ] = None,
    geometry: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of a model that the catalogue lacks; repeat for more.", show_default="none"),
    ] = None,
    task: Annotated[str | None, typer.Option(help="Task, where there are several.")] = None,
    average: Annotated[
        bool, typer.Option("--average", help="Budgets are means over requests, not caps on each.")
    ] = False,
    points: Annotated[int, typer.Option(help="Rows of the table at most; --json has all.", min=2)] = 12,
    as_json: AsJson = False,
) -> None:
    """Print the best accuracy at rising prices, and which model, attention and length or trials buy it."""
    how, what, paid = parse_combine(combine), _parse_strategy(strategy), _parse_price(price)
    chip, known = HARDWARE[hardware], known_models(geometry or ())
    tables = one_task(load_tables(traces, models=model or ()), traces, task)
    unknown = sorted({table.model for table in tables if table.model not in known})
    if unknown:
        raise ValueError(
            f"{traces} has traces of {', '.join(unknown)}, whose geometry the catalogue lacks, so that nothing can be "
            "priced. Give the model's folder with --geometry."
        )
    with named(traces):
        tradeoff = tradeoff_table(tables, models=known, hardware=chip, price=paid, combine=how, strategy=what)
        bought = (allocate_average if average else allocate)(tradeoff, tradeoff.budget_grid())
    content = {
        "traces": str(traces),
        "task": tables[0].task,
        "num_problems": len(tradeoff.problems),
        "num_trials": int(sum(table.mask.sum() for table in tables)),
        "num_right": int(sum(((table.solved_len <= table.max_gen_len) & table.mask).sum() for table in tables)),
        "models": list(tradeoff.models),
        "strategy": strategy,
        "price": price,
        "combine": combine,
        "hardware": hardware,
        "flops_per_byte": chip.intensity("bfloat16", "bfloat16"),
        "budgets_are": "means" if average else "caps",
        "interval": "90%, bootstrap over problems",
        "rows": _rows(bought),
    }
    if as_json:
        print_json(content)
    else:
        _print_rows(content, points)


def _parse_price(text: str) -> Price:
    for known in PRICES:
        if text == known:
            return known
    raise ValueError(f"price must be {' or '.join(PRICES)}; got {text!r}")


def _parse_strategy(text: str) -> StrategyName:
    for known in STRATEGIES:
        if text == known:
            return known
    raise ValueError(f"strategy must be {' or '.join(STRATEGIES)}; got {text!r}")


def _rows(bought: Allocation) -> list[dict[str, Any]]:
    """Return the staircase: budgets that serve half of the requests, solve something, and that no cheaper one beats."""
    low, high = bought.interval()
    serving = np.flatnonzero(bought.is_serving & (np.asarray(bought.accuracy) > 0))
    stair = serving[pareto_frontier(np.asarray(bought.spent)[serving], np.asarray(bought.accuracy)[serving])]
    return [
        {
            "budget": float(bought.budgets[place]),
            "spent": float(bought.spent[place]),
            "accuracy": float(bought.accuracy[place]),
            "low": _known(float(low[place])),
            "high": _known(float(high[place])),
            "naive_accuracy": float(bought.naive_accuracy[place]),
            "naive_bias": float(bought.bias[place]),
            "choices": _choices(np.asarray(bought.choice)[place], bought.candidates),
        }
        for place in stair.tolist()
    ]


def _known(value: float) -> float | None:
    """Return a number that JSON has: one problem says nothing of others, so that its interval has no ends."""
    return value if np.isfinite(value) else None


def _choices(choice: np.ndarray, candidates: tuple[Candidate, ...]) -> list[dict[str, Any]]:
    """Return what all trials together choose, the commonest first, with the share of problems that get it."""
    counts = Counter(choice[choice >= 0].tolist())
    return [
        {
            "model": candidates[index].model,
            "attention": candidates[index].attention,
            "gen_len": candidates[index].gen_len,
            "num_trials": candidates[index].num_trials,
            "share": count / choice.size,
        }
        for index, count in counts.most_common()
    ]


def _print_rows(content: dict[str, Any], points: int) -> None:
    """Print some rows, evenly spaced; the commonest choice stands for all, with its share of the problems."""
    rows = content["rows"]
    if not rows:
        typer.echo(f"No budget solves any of the {content['num_problems']} problems of {content['task']}.")
        if content["num_right"]:
            typer.echo(
                f"{content['num_right']:,} of {content['num_trials']:,} trials are right: too few to choose on one "
                "half of them and to score on the other."
            )
        return
    kept = np.unique(np.linspace(0, len(rows) - 1, min(points, len(rows))).round().astype(int)).tolist()
    unit = "FLOPs" if content["price"] == "flops" else "eFLOPs"
    priced = "" if content["price"] == "flops" else f" on {content['hardware']} ({content['combine']})"
    means = "mean budgets" if content["budgets_are"] == "means" else "caps per request"
    title = (
        f"{STRATEGIES[content['strategy']]} on {content['task']}: {content['num_problems']} problems, "
        f"{content['num_trials']:,} trials; {unit}{priced}, {means}.\n"
        "Accuracy: chosen and scored on different trials (90% interval). Naive: on the same (bias in points).\n"
        "Choice: the commonest, and the share of problems that get it."
    )
    print_table(
        title,
        (unit, "model", "attention", "point", "share", "accuracy", "naive (bias)"),
        [_cells(rows[place], content["strategy"]) for place in kept],
        num_labels=4,
    )


def _cells(row: dict[str, Any], strategy: str) -> tuple[str, ...]:
    point = ("none", "", "", "0%")  # a cap that each fold's choice fits and that of all trials does not
    if row["choices"]:
        first = row["choices"][0]
        count = first["gen_len"] if strategy == "long_cot" else first["num_trials"]
        unit = "token" if strategy == "long_cot" else "trial"
        share = f"{100 * first['share']:.0f}%"
        point = (first["model"], first["attention"], f"{count:,} {unit}{'' if count == 1 else 's'}", share)
    interval = "" if row["low"] is None else f" ({row['low']:.3f} to {row['high']:.3f})"
    return (
        f"{row['spent']:.2e}",
        *point,
        f"{row['accuracy']:.3f}{interval}",
        f"{row['naive_accuracy']:.3f} ({round(100 * row['naive_bias'], 1) + 0.0:+.1f})",
    )
