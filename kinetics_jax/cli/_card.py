"""What a model card says, as data: everything measured. `_card_text` renders it.

Every number comes from the model folder and the recorded traces.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from kinetics_jax.accuracy import coverage_at_len
from kinetics_jax.scaling import accuracy_by_budget
from kinetics_jax.specs import AttentionSpec, Dense, ModelSpec, PageSelection, parse_attention
from kinetics_jax.traces import TraceTable, read_tables
from kinetics_jax.training import MINI_RECIPES, Recipe, mini_recipe, read_training_record
from kinetics_jax.zoo import FAMILY_NOTES, MINI_MODELS, RECORDED_TRACES, load_zoo_model

_LIMIT_DIVISORS = (8, 4, 2, 1)
_LOSS_ROWS = 8


def measure_card(model: str, folder: Path, traces: Path) -> dict[str, Any]:
    """Gather what the card of a model tells.

    Args:
        model: The model as the caller named it; appears in the commands.
        folder: Its folder, with training.json.
        traces: Files or folder with traces recorded from these weights.

    Raises:
        ValueError: If the folder is damaged, has no traces here, or the traces come from other weights.
    """
    record = read_training_record(folder)
    loaded = load_zoo_model(model)
    spec = loaded.model.spec
    tables = [table for table in read_tables(traces) if table.model == spec.name]
    dense = [table for table in tables if table.attention == str(Dense())]
    if not dense:
        raise ValueError(f"{traces} has no dense traces of {spec.name}. Record some: kinetics sample {model}")
    others = {table.weights_hash for table in tables} - {loaded.weights_hash}
    if others:
        raise ValueError(
            f"the traces in {traces} were recorded from other weights than {folder} holds: wanted hash "
            f"{loaded.weights_hash[:12]}, got {', '.join(other[:12] for other in sorted(others))}. Record them anew."
        )
    report = record.report
    return {
        "model": model,
        "geometry": asdict(spec) | {"num_params": spec.num_params, "kv_elements_per_token": spec.kv_elements_per_token},
        "weights_bytes": (folder / "model.safetensors").stat().st_size,
        "weights_hash": loaded.weights_hash,
        "recipe": asdict(record.recipe),
        "seconds": report.seconds,
        "device": report.device,
        "versions": record.versions,
        "loss": _loss_curve(report.steps, report.losses),
        "final_loss": report.losses[-1],
        "task": dense[0].task,
        "sampling": dense[0].sampling,
        "num_problems": dense[0].num_problems,
        "num_trials": int(dense[0].mask.sum(1).min()),
        "prompt_len": int(dense[0].prompt_len.max()),
        "max_gen_len": dense[0].max_gen_len,
        "mean_gen_len": float(dense[0].gen_len[dense[0].mask].mean()),
        "by_depth": _by_depth(dense[0]),
        "by_budget": _by_budget(tables),
        "commands": _commands(model, spec, record.recipe, traces, tables),
        "notes": FAMILY_NOTES.read_text(encoding="utf-8") if spec.name in MINI_MODELS else None,
    }


def _loss_curve(steps: Sequence[int], losses: Sequence[float]) -> list[dict[str, Any]]:
    """Pick about eight points of the curve, denser at the start, where it falls."""
    picks = np.unique(np.geomspace(1, len(steps), _LOSS_ROWS).round().astype(int)) - 1
    return [{"step": steps[pick], "loss": losses[pick]} for pick in picks]


def _by_depth(table: TraceTable) -> list[dict[str, Any]]:
    """Return Pass@1 and Pass@R at each length limit, a row a depth and one over all problems."""
    limits = np.asarray([max(1, table.max_gen_len // divisor) for divisor in _LIMIT_DIVISORS])
    most = int(table.mask.sum(1).min())
    columns = {
        k: np.asarray(coverage_at_len(table.solved_len.astype(np.float32), limits, k, table.mask)) for k in (1, most)
    }
    groups: list[tuple[str, np.ndarray]] = [
        (str(depth), table.difficulty == depth) for depth in np.unique(table.difficulty)
    ]
    groups.append(("all", np.ones(table.num_problems, bool)))
    return [
        {
            "depth": depth,
            "num_problems": int(members.sum()),
            **{
                f"pass@{k}": {
                    str(limit): float(share) for limit, share in zip(limits, rates[members].mean(0), strict=True)
                }
                for k, rates in columns.items()
            },
        }
        for depth, members in groups
    ]


def _by_budget(tables: Iterable[TraceTable]) -> list[dict[str, Any]]:
    """Return one row an attention spec: Pass@1 at full length with its 90% interval."""
    tables = list(tables)
    rows = []
    for table, point in zip(tables, accuracy_by_budget(tables), strict=True):
        spec = parse_attention(table.attention)
        pages = f", pages of {spec.page_len}" if isinstance(spec, PageSelection) else ""
        label = point.method + pages + (f", {point.options}" if point.options else "")
        rows.append({"attention": table.attention, "label": label, **asdict(point)})
    return sorted(rows, key=lambda row: (row["label"], row["budget_len"] or 0))


def _commands(
    model: str, model_spec: ModelSpec, recipe: Recipe, traces: Path, tables: Sequence[TraceTable]
) -> dict[str, str | None]:
    """Return the command lines that reproduce training, recording and the card; None where no command does."""
    dense = next(table for table in tables if table.attention == str(Dense()))
    specs = sorted((parse_attention(table.attention) for table in tables), key=_by_method_and_budget)
    attention = " ".join(f"--attention {spec}" for spec in specs)
    is_recorded = traces.resolve() == RECORDED_TRACES.resolve()
    return {
        "train": _train_command(model_spec.name, recipe),
        "sample": f"kinetics sample {model} --task {dense.task} --problems {dense.num_problems} "
        f"--trials {dense.num_trials} --out out/traces {attention}",
        "compact": f"kinetics traces compact out/traces --out out/{model_spec.name}.parquet",
        "card": f"kinetics card {model}{'' if is_recorded else f' --traces {traces}'} --write",
    }


def _by_method_and_budget(spec: AttentionSpec) -> tuple[str, int, int]:
    """Return a sort key: dense first, then method by method, small pages and budgets first."""
    if isinstance(spec, Dense):
        return "", 0, 0
    return type(spec).__name__, getattr(spec, "page_len", 0), spec.budget_len


def _train_command(name: str, recipe: Recipe) -> str | None:
    """Return the command whose recipe this is; None if no options of it lead there."""
    if name not in MINI_RECIPES or mini_recipe(name, num_steps=recipe.num_steps, seed=recipe.seed) != recipe:
        return None
    wanted = MINI_RECIPES[name]
    steps = "" if recipe.num_steps == wanted.num_steps else f" --steps {recipe.num_steps}"
    seed = "" if recipe.seed == wanted.seed else f" --seed {recipe.seed}"
    return f"kinetics train {name} --out out/{name}{steps}{seed}"
