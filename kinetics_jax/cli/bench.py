"""`kinetics bench decode`: whole-model decode steps on this machine, beside their byte floor and the cost model."""

import json
import platform
from pathlib import Path
from typing import Annotated, Any

import jax
import typer

from kinetics_jax import __version__, cost
from kinetics_jax.models import Decoder
from kinetics_jax.sampling import random_model, time_decode
from kinetics_jax.specs import HARDWARE, MODELS, HardwareSpec, parse_attention

from ._app import app
from ._output import print_json, print_table, write_whole
from ._pricing import ATTENTION_FORMS, AsJson, Hardware

group = typer.Typer(name="bench", no_args_is_help=True, help="Time whole models on this machine.")
app.add_typer(group)

_DTYPE = "bfloat16"


@group.callback()
def _bench() -> None:
    """Time whole models on this machine."""


@group.command()
def decode(
    model: Annotated[list[str], typer.Argument(help="Models by name, such as Qwen3-0.6B; their weights are random.")],
    attention: Annotated[list[str], typer.Option(help=f"{ATTENTION_FORMS}; repeat for more.")],
    context: Annotated[list[int], typer.Option(help="Tokens a sequence holds; repeat for more.")],
    batch_size: Annotated[int | None, typer.Option(help="Sequences; by default as many as fit, dense.", min=1)] = None,
    memory_share: Annotated[float, typer.Option(help="Part of the memory for weights and cache.")] = 0.85,
    num_steps: Annotated[int, typer.Option(help="Decode steps a call.", min=1)] = 16,
    num_runs: Annotated[int, typer.Option(help="Calls timed.", min=1)] = 20,
    hardware: Hardware = "H100-SXM",
    out: Annotated[Path | None, typer.Option(help="Also write the JSON to this file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Time decode steps, tokens drawn as the paper draws them; all attentions of a row share one batch size."""
    chip, specs = HARDWARE[hardware], [MODELS[name] for name in model]
    wanted = [parse_attention(text) for text in attention]
    rows: list[dict[str, Any]] = []
    for spec in specs:
        decoder = random_model(spec)
        for context_len in context:
            size = batch_size or _largest_batch(spec.name, chip, context_len + num_steps, memory_share)
            for each in wanted:
                timing = time_decode(
                    decoder,
                    each,
                    context_len=context_len,
                    batch_size=size,
                    num_steps=num_steps,
                    num_runs=num_runs,
                )
                rows.append(_row(decoder, str(each), chip, context_len, size, timing.step_s, timing.sample_s))
        del decoder
    device = jax.devices()[0].device_kind
    content = {
        "device": device,
        "hardware": hardware,
        "versions": {"kinetics_jax": __version__, "jax": jax.__version__, "python": platform.python_version()},
        "num_steps": num_steps,
        "num_runs": num_runs,
        "rows": rows,
    }
    if out is not None:
        write_whole(out, json.dumps(content, indent=2) + "\n")
    if as_json:
        print_json(content)
    else:
        _print_rows(device, hardware, rows)


def _largest_batch(model: str, chip: HardwareSpec, context_len: int, memory_share: float) -> int:
    """Return the sequences that fit beside the weights with a dense cache.

    Raises:
        ValueError: If not one fits.
    """
    attention = parse_attention("dense")
    room = cost.capacity(MODELS[model], attention, chip, context_len=context_len, memory_share=memory_share)
    # Engines keep a mean key a page, whatever the attention.
    num_sequences = int(room.num_sequences * 32 / 33)
    if num_sequences < 1:
        raise ValueError(f"{model} and one sequence of {context_len:,} tokens must fit {chip.name}. Use a larger chip.")
    return num_sequences


def _row(
    model: Decoder,
    attention: str,
    chip: HardwareSpec,
    context_len: int,
    batch_size: int,
    step_s: float,
    sample_s: float,
) -> dict[str, Any]:
    spec, method = model.spec, parse_attention(attention)
    bill = cost.request_cost(spec, method, prompt_len=context_len, gen_len=1, batch_size=batch_size)
    floor_s = batch_size * bill.bytes / chip.hbm_bytes_per_s
    predicted_s = cost.decode_step_s(
        spec, method, chip, context_len=context_len + 1, batch_size=batch_size, check_fits=False
    )
    return {
        "model": spec.name,
        "attention": attention,
        "context_len": context_len,
        "batch_size": batch_size,
        "step_s": step_s,
        "tokens_per_s": batch_size / step_s,
        "floor_s": float(floor_s),
        "predicted_s": float(predicted_s),
        "sample_s": sample_s,
    }


def _print_rows(device: str, hardware: str, rows: list[dict[str, Any]]) -> None:
    columns = (
        "model",
        "attention",
        "context",
        "batch",
        "ms/step",
        "tokens/s",
        "floor",
        "of it",
        "predicted",
        "sampling",
    )
    table = [
        (
            row["model"],
            row["attention"],
            f"{row['context_len']:,}",
            f"{row['batch_size']:,}",
            f"{1e3 * row['step_s']:.2f}",
            f"{row['tokens_per_s']:,.0f}",
            f"{1e3 * row['floor_s']:.2f}",
            f"{row['floor_s'] / row['step_s']:.0%}",
            f"{1e3 * row['predicted_s']:.2f}",
            f"{row['sample_s'] / row['step_s']:.1%}",
        )
        for row in rows
    ]
    title = f"Decode steps on {device}; floor and prediction [ms] are those of {hardware}"
    print_table(title, columns, table, num_labels=2)
