"""`kinetics demo`: the paper's argument, end to end and offline, on models small enough for a laptop."""

import json
import os
import platform
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import typer
from rich.console import Console

import kinetics_jax
from kinetics_jax.collect import Collector
from kinetics_jax.specs import HARDWARE, BestOfN, parse_attention
from kinetics_jax.tasks import Pathfind, Problem
from kinetics_jax.traces import TraceTable, read_tables, read_traces
from kinetics_jax.zoo import RECORDED_TRACES, load_zoo_model

from ._app import app, console
from ._output import print_json, print_table, write_whole
from ._sampling import collect_with_bars
from ._study import STRATEGIES, Study, draw_study, law_bands, run_study

_LIVE_MODELS = ("Kinetics-Mini-0.1M", "Kinetics-Mini-0.6M")
_LIVE_ATTENTION = ("dense", "block_topk:4x64")
_LIVE_SEED = 1
"""Another seed than the recorded traces have, so that the live trials are new ones."""


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for figures, tables and report.")] = Path("out/demo"),
    problems: Annotated[int, typer.Option(help="Problems sampled live.", min=1)] = 10,
    trials: Annotated[int, typer.Option(help="Trials of each.", min=1)] = 4,
    hardware: Annotated[str, typer.Option(help="Whose arithmetic intensity prices memory traffic.")] = "PAPER_B200",
    quick: Annotated[bool, typer.Option("--quick", help="Sample two problems only.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report instead of tables.")] = False,
) -> None:
    """Sample live, check, join the recorded traces, price everything, and see which model each law picks."""
    started = time.perf_counter()
    chip = HARDWARE[hardware]
    task = Pathfind()
    questions = task.problems(2 if quick else problems)
    shards = _fresh_folder(out)

    collectors = _collectors(task, num_slots=len(questions) * trials)
    console.print(f"Sampling {len(questions)} problems live, {trials} trials each; answers are checked edge by edge.")
    strategy = BestOfN(num_trials=trials, max_gen_len=task.max_gen_len)
    reports = collect_with_bars(collectors, questions, strategy, shards)
    rates = {report.run: report.num_tokens / report.seconds for report in reports if report.num_written}
    live = _live_rows(shards, rates)
    example = _example(task, questions, shards)

    console.print("Pricing live and recorded traces ...")
    tables = read_tables([RECORDED_TRACES, shards])
    study = run_study(tables, chip)
    pictures = draw_study(study, out)
    report = _report(study, tables, live, example, hardware, pictures, time.perf_counter() - started)
    write_whole(out / "report.json", json.dumps(report, indent=2) + "\n")
    if as_json:
        print_json(report)
    else:
        _print_report(report)


def _fresh_folder(out: Path) -> Path:
    """Return the folder for live shards; results of a finished demo make way, an interrupted one goes on."""
    shards = out / "traces"
    if (out / "report.json").exists():
        (out / "report.json").unlink()
        shutil.rmtree(shards, ignore_errors=True)
    shards.mkdir(parents=True, exist_ok=True)
    return shards


def _collectors(task: Pathfind, *, num_slots: int) -> list[Collector]:
    return [
        Collector(
            model=loaded.model,
            model_name=name,
            weights_hash=loaded.weights_hash,
            task=task,
            attention=parse_attention(text),
            seed=_LIVE_SEED,
            num_slots=num_slots,
            num_steps=64,  # few calls: here a thought ends by itself or after 256 tokens
        )
        for name, loaded in zip(_LIVE_MODELS, map(load_zoo_model, _LIVE_MODELS), strict=True)
        for text in _LIVE_ATTENTION
    ]


def _live_rows(shards: Path, rates: dict[str, float]) -> list[dict[str, Any]]:
    """Set the live accuracy beside that of the recorded trials of the same problems."""
    recorded = {(table.model, table.attention): table for table in read_tables(RECORDED_TRACES)}
    rows = []
    for table in read_tables(shards):
        twin = recorded[table.model, table.attention].restrict(problems=table.problems)
        rate = [value for run, value in rates.items() if f"/{table.model}/{table.attention}/" in run]
        rows.append(
            {
                "model": table.model,
                "attention": table.attention,
                "num_trials": int(table.mask.sum()),
                "accuracy": _accuracy(table),
                "recorded_accuracy": _accuracy(twin),
                "mean_gen_len": float(table.gen_len[table.mask].mean()),
                "tokens_per_s": rate[0] if rate else None,
            }
        )
    return rows


def _accuracy(table: TraceTable) -> float:
    return float(np.isfinite(table.solved_len)[table.mask].mean())


def _example(task: Pathfind, questions: Sequence[Problem], shards: Path) -> dict[str, Any]:
    """Return the shortest right thought of the live slice, as text; the shortest of all if none is right."""
    best = min(read_traces(shards), key=lambda trace: (trace.score != 1.0, trace.gen_len))
    words = task.vocabulary
    question = next(problem for problem in questions if problem.id == best.problem)
    return {
        "model": best.model,
        "attention": best.attention,
        "problem": best.problem,
        "question": " ".join(words[token] for token in question.prompt_ids[-5:]),
        "thought": " ".join(words[token] for token in best.output_ids or ()),
        "answer": best.answer,
        "right": best.score == 1.0,
    }


def _report(
    study: Study,
    tables: Sequence[TraceTable],
    live: list[dict[str, Any]],
    example: dict[str, Any],
    hardware: str,
    pictures: Sequence[Path],
    seconds: float,
) -> dict[str, Any]:
    return {
        "note": "Measured on Kinetics-Mini, models of 0.1 to 7 million parameters on a synthetic task: "
        "small models, real measurements, no claim about large ones.",
        "versions": {"kinetics_jax": kinetics_jax.__version__, "jax": jax.__version__},
        "machine": {
            "device": jax.devices()[0].device_kind,
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
        },
        "hardware_priced": hardware,
        "seconds": round(seconds, 1),
        "num_trials": int(sum(table.mask.sum() for table in tables)),
        "live": live,
        "example": example,
        "laws": {strategy: [asdict(band) for band in law_bands(rows)] for strategy, rows in study.comparisons.items()},
        "dense_full_length": [
            {
                "model": point.model,
                "accuracy": point.accuracy,
                "low": point.low,
                "high": point.high,
                "over_next_smaller": asdict(study.size_gains[point.model]) if point.model in study.size_gains else None,
            }
            for point in study.methods
            if point.method == "dense"
        ],
        "block_topk_over_dense": {model: _json_safe(asdict(gap)) for model, gap in study.gaps.items()},
        "agreement": _agreement(study),
        "figures": [picture.name for picture in pictures],
    }


def _agreement(study: Study) -> dict[str, Any]:
    """Say by computation whether the paper's two claims hold here."""
    sizes = {model: rank for rank, model in enumerate(study.sparse)}
    bands = [band for rows in study.comparisons.values() for band in law_bands(rows)]
    differ = [band for band in bands if band.flops_model != band.eflops_model]
    larger = [band for band in differ if sizes[band.eflops_model] > sizes[band.flops_model]]
    gaps = study.gaps.values()
    return {
        "laws_differ": bool(differ),
        "eflops_law_prefers_larger_model_wherever_they_differ": bool(differ) and len(larger) == len(differ),
        "largest_cost_ratio_of_the_flops_law": max((band.cost_ratio for band in bands), default=None),
        "block_topk_beats_dense_in_interval": {model: bool(gap.gain_low > 0) for model, gap in study.gaps.items()},
        "largest_block_topk_gain": max((gap.gain for gap in gaps), default=None),
    }


def _json_safe(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value if np.isfinite(value) else None for name, value in row.items()}


def _print_report(report: dict[str, Any]) -> None:
    screen = Console()
    example = report["example"]
    verdict = "right" if example["right"] else "wrong"
    screen.print(f"\n[bold]One thought[/bold] ({example['model']}, {example['attention']}): {example['question']}")
    screen.print(f"  {example['thought']}  -> {verdict}", markup=False, highlight=False)
    _print_live(report["live"])
    _print_sizes(report["dense_full_length"])
    for strategy, title in STRATEGIES.items():
        _print_laws(title, report["laws"][strategy])
    _print_gaps(report["block_topk_over_dense"])
    agreement = report["agreement"]
    differ = agreement["laws_differ"]
    screen.print(
        f"The two laws {'differ' if differ else 'agree everywhere'}"
        + (
            "; where they do, charging memory traffic picks the larger model "
            + ("always." if agreement["eflops_law_prefers_larger_model_wherever_they_differ"] else "not always.")
            if differ
            else "."
        )
    )
    screen.print(f"{report['note']}\n{len(report['figures'])} figures with their CSV, and report.json, are written.")


def _print_live(rows: list[dict[str, Any]]) -> None:
    print_table(
        "Sampled live (recorded: earlier trials of the same problems)",
        ("model", "attention", "trials", "accuracy", "recorded", "tokens", "tok/s"),
        [
            (
                _short(row["model"]),
                row["attention"],
                str(row["num_trials"]),
                f"{row['accuracy']:.2f}",
                f"{row['recorded_accuracy']:.2f}",
                f"{row['mean_gen_len']:.0f}",
                "-" if row["tokens_per_s"] is None else f"{row['tokens_per_s']:,.0f}",
            )
            for row in rows
        ],
        num_labels=2,
    )


def _print_sizes(rows: list[dict[str, Any]]) -> None:
    def gain(paired: dict[str, float] | None) -> str:
        if paired is None:
            return "-"
        return f"{100 * paired['gain']:+.1f} ({100 * paired['low']:+.1f} to {100 * paired['high']:+.1f})"

    print_table(
        "Dense attention, full length: accuracy, 90% intervals over problems",
        ("model", "accuracy", "interval", "points over the next smaller"),
        [
            (
                _short(row["model"]),
                f"{row['accuracy']:.3f}",
                f"{row['low']:.3f} to {row['high']:.3f}",
                gain(row["over_next_smaller"]),
            )
            for row in rows
        ],
    )


def _print_laws(title: str, bands: list[dict[str, Any]]) -> None:
    print_table(
        f"{title}, dense: the model each law picks, and what the FLOPs law's pick costs in eFLOPs",
        ("accuracy", "FLOPs law", "eFLOPs law", "cost"),
        [
            (
                f"{band['accuracy_from']:.2f} to {band['accuracy_to']:.2f}",
                _short(band["flops_model"]),
                _short(band["eflops_model"]),
                "same" if band["flops_model"] == band["eflops_model"] else f"up to {band['cost_ratio']:.2f}x",
            )
            for band in bands
        ],
        num_labels=3,
    )


def _print_gaps(gaps: dict[str, dict[str, Any]]) -> None:
    print_table(
        "Block top-k against dense, Long-CoT, in eFLOPs",
        ("model", "largest gain at equal cost", "90% interval", "largest saving"),
        [
            (
                _short(model),
                f"{100 * gap['gain']:+.1f} points",
                f"{100 * gap['gain_low']:+.1f} to {100 * gap['gain_high']:+.1f}",
                "-" if gap["cost_ratio"] is None else f"{gap['cost_ratio']:.2f}x",
            )
            for model, gap in gaps.items()
        ],
    )


def _short(model: str) -> str:
    return model.removeprefix("Kinetics-")
