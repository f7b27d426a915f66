"""`kinetics bench decode`: whole-model decode steps on this machine, beside their byte floor and the cost model."""

import json
import platform
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import jax
import typer

from kinetics_jax import __version__, cost
from kinetics_jax.sampling import DecodeTiming
from kinetics_jax.specs import HARDWARE, MODELS, HardwareSpec, parse_attention

from ._app import app
from ._decode_jobs import DecodeJob, time_jobs
from ._gpu_memory import allow_whole_gpu
from ._mesh import mesh_shape
from ._output import print_json, print_table, write_whole
from ._pricing import ATTENTION_FORMS, AsJson, Hardware

group = typer.Typer(name="bench", no_args_is_help=True, help="Time whole models on this machine.")
app.add_typer(group)

_DTYPE = "bfloat16"
_WAITING_BYTES = 1.5e9
"""About what a process holds of a GPU after compiling: its context, libraries, and what the autotuner had."""
_REGION_BYTES = 3e9
"""Left free where processes share a GPU: JAX then takes memory in regions somewhat larger than what is asked for."""


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
    mesh: Annotated[
        list[str] | None,
        typer.Option(metavar="DATAxMODEL", help="Devices to spread over, such as 1x2; repeat to see how it scales."),
    ] = None,
    processes: Annotated[int, typer.Option(help="Compile in as many; one at a time is timed.", min=1)] = 1,
    hardware: Hardware = "H100-SXM",
    out: Annotated[Path | None, typer.Option(help="Also write the JSON to this file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Time decode steps, tokens drawn as the paper draws them; all attentions of a row share one batch size."""
    allow_whole_gpu(preallocate=processes == 1)  # each of many must find the device free, this one included
    chip, jobs = HARDWARE[hardware], []
    names, attentions = [MODELS[name].name for name in model], [str(parse_attention(text)) for text in attention]
    share = memory_share if processes == 1 else memory_share - _share_of_waiting(processes - 1, chip)
    for name, place, context_len in product(names, mesh or [None], context):
        size = batch_size or _largest_batch(name, chip, context_len + num_steps, share, place)
        if size % _shape_of(place)[0]:
            raise ValueError(f"--batch-size must be a multiple of the data axis of --mesh {place}; got {size}")
        sizes: dict[str, int] = {"context_len": context_len, "batch_size": size, "num_steps": num_steps}
        jobs += [DecodeJob(model=name, attention=text, **sizes, num_runs=num_runs, mesh=place) for text in attentions]
    versions = {"kinetics_jax": __version__, "jax": jax.__version__, "python": platform.python_version()}
    content: dict[str, Any] = {"device": None, "hardware": hardware, "versions": versions}
    content |= {"num_steps": num_steps, "num_runs": num_runs, "rows": []}
    for count, (job, timing) in enumerate(time_jobs(jobs, processes), 1):
        if isinstance(timing, str):
            typer.echo(f"{count} of {len(jobs)}: {job} failed: {timing}", err=True)
            continue
        content["device"] = timing.device
        content["rows"].append(_row(job, timing, chip))
        typer.echo(f"{count} of {len(jobs)}: {job}, {1e3 * timing.step_s:.2f} ms a step", err=True)
        if out is not None:  # what was timed outlives what ends the rest
            write_whole(out, json.dumps(content, indent=2) + "\n")
    if as_json:
        print_json(content)
    elif content["rows"]:
        _print_rows(content["device"], hardware, content["rows"])
    if len(content["rows"]) < len(jobs):
        raise typer.Exit(1)


def _share_of_waiting(num_processes: int, chip: HardwareSpec) -> float:
    """Return the part of the memory that processes hold which have compiled and wait, beside the one that is timed."""
    return (num_processes * _WAITING_BYTES + _REGION_BYTES) / chip.hbm_bytes


def _shape_of(mesh: str | None) -> tuple[int, int]:
    return (1, 1) if mesh is None else mesh_shape(mesh)


def _largest_batch(model: str, chip: HardwareSpec, context_len: int, memory_share: float, mesh: str | None) -> int:
    """Return the sequences that fit beside the weights with a dense cache, on the device or the mesh.

    Raises:
        ValueError: If not one fits.
    """
    num_replicas, num_devices = _shape_of(mesh)
    sizes: dict[str, Any] = {"context_len": context_len, "num_devices": num_devices, "memory_share": memory_share}
    room = cost.capacity(MODELS[model], parse_attention("dense"), chip, **sizes)
    # Engines keep a mean key a page, whatever the attention.
    num_sequences = num_replicas * int(room.num_sequences * 32 / 33)
    if num_sequences < 1:
        raise ValueError(f"{model} and one sequence of {context_len:,} tokens must fit {chip.name}. Use a larger chip.")
    return num_sequences


def _row(job: DecodeJob, timing: DecodeTiming, chip: HardwareSpec) -> dict[str, Any]:
    spec, method = MODELS[job.model], parse_attention(job.attention)
    context_len, batch_size = job.context_len, job.batch_size
    num_replicas, num_devices = _shape_of(job.mesh)
    per_replica = batch_size // num_replicas
    bill = cost.request_cost(spec, method, prompt_len=context_len, gen_len=1, batch_size=per_replica)
    floor_s = per_replica * bill.bytes / (num_devices * chip.hbm_bytes_per_s)
    sizes: dict[str, Any] = {"context_len": context_len + 1, "batch_size": per_replica, "num_devices": num_devices}
    predicted_s = cost.decode_step_s(spec, method, chip, **sizes, check_fits=False)
    # Measurements of other devices are no rows of the same panel.
    place = {} if job.mesh is None else {"mesh": job.mesh, "device": f"{timing.device}, mesh {job.mesh}"}
    return place | {
        "model": spec.name,
        "attention": job.attention,
        "context_len": context_len,
        "batch_size": batch_size,
        "step_s": timing.step_s,
        "tokens_per_s": batch_size / timing.step_s,
        "floor_s": float(floor_s),
        "predicted_s": float(predicted_s),
        "sample_s": timing.sample_s,
    }


def _print_rows(device: str, hardware: str, rows: list[dict[str, Any]]) -> None:
    columns = (
        "model",
        "attention",
        "context",
        "mesh",
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
            row.get("mesh", "-"),
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
