"""`kinetics capacity`: how many sequences fit on some chips, and how fast they decode."""

from typing import Annotated, Any

import typer

from kinetics_jax import cost
from kinetics_jax.specs import HARDWARE, MODELS, HardwareSpec, ModelSpec, parse_attention

from ._app import app
from ._output import print_json, print_table
from ._pricing import (
    ATTENTION_FORMS,
    AsJson,
    CombineText,
    ComputeDtype,
    Hardware,
    KvDtype,
    WeightDtype,
    parse_combine,
)

_DEFAULT_CONTEXTS = (4096, 8192, 16_384, 32_768)


@app.command()
def capacity(
    model: Annotated[str, typer.Argument(help="A model by name, such as Qwen3-8B.")],
    context: Annotated[
        list[int] | None, typer.Option(help="Tokens a sequence holds; repeat for more.", show_default="4k to 32k")
    ] = None,
    attention: Annotated[
        list[str] | None, typer.Option(help=f"{ATTENTION_FORMS}; repeat for more.", show_default="dense")
    ] = None,
    devices: Annotated[int, typer.Option(help="Chips that share weights and cache.")] = 1,
    batch_size: Annotated[
        int | None, typer.Option(help="Sequences decoded together; as many as fit by default.")
    ] = None,
    memory_share: Annotated[float, typer.Option(help="Part of the memory for weights and cache.")] = 0.9,
    hardware: Hardware = "H100-SXM",
    combine: CombineText = "max",
    kv_dtype: KvDtype = "bfloat16",
    weight_dtype: WeightDtype = "bfloat16",
    compute_dtype: ComputeDtype = "bfloat16",
    as_json: AsJson = False,
) -> None:
    """Find the largest batch, and the time of a decode step at its roofline: real servers are slower."""
    chip, spec = HARDWARE[hardware], MODELS[model]
    memory: dict[str, Any] = {
        "num_devices": devices,
        "kv_dtype": kv_dtype,
        "weight_dtype": weight_dtype,
        "memory_share": memory_share,
    }
    speed: dict[str, Any] = {"combine": parse_combine(combine), "compute_dtype": compute_dtype}
    rows = [
        _row(spec, text, chip, context_len, batch_size, memory, speed)
        for text in dict.fromkeys(attention or ["dense"])
        for context_len in dict.fromkeys(context or _DEFAULT_CONTEXTS)
    ]
    content: dict[str, Any] = {
        "model": model,
        "hardware": hardware,
        **memory,
        "combine": combine,
        "compute_dtype": compute_dtype,
        "batch_size": batch_size,
        "rows": rows,
    }
    if as_json:
        print_json(content)
    else:
        _print_rows(content)


def _row(
    model: ModelSpec,
    text: str,
    chip: HardwareSpec,
    context_len: int,
    batch_size: int | None,
    memory: dict[str, Any],
    speed: dict[str, Any],
) -> dict[str, Any]:
    """Return one row; times are None where not one sequence fits.

    Raises:
        ValueError: If the weights, or a batch that was asked for, do not fit.
    """
    attention = parse_attention(text)
    room = cost.capacity(model, attention, chip, context_len=context_len, **memory)
    num_decoded = room.num_sequences if batch_size is None else batch_size
    step_s = None
    if room.num_sequences or batch_size is not None:
        step_s = cost.decode_step_s(
            model, attention, chip, context_len=context_len, batch_size=num_decoded, **memory, **speed
        )
    formats = {name: memory[name] for name in ("kv_dtype", "weight_dtype")}
    return {
        "attention": text,
        "context_len": context_len,
        "num_sequences": room.num_sequences,
        "sequence_bytes": room.sequence_bytes,
        "weight_bytes": room.weight_bytes,
        "usable_bytes": room.usable_bytes,
        "arithmetic": room.arithmetic(),
        "break_even_batch": cost.break_even_batch(model, attention, context_len=context_len, **formats),
        "batch_size": num_decoded,
        "step_s": step_s,
        "tokens_per_s": None if step_s is None else num_decoded / step_s,
    }


def _print_rows(content: dict[str, Any]) -> None:
    rows = content["rows"]
    decoded = "as many as fit" if content["batch_size"] is None else f"{content['batch_size']:,}"
    title = (
        f"{content['model']} on {content['num_devices']} x {content['hardware']}: {rows[0]['weight_bytes'] / 1e9:,.1f} "
        f"GB of weights in {rows[0]['usable_bytes'] / 1e9:,.1f} GB; decoding {decoded}; weights and cache cost the "
        f"same at the last column's batch"
    )
    columns = ("attention", "context", "GB each", "fit", "ms/step", "tokens/s", "even at")
    table = [
        (
            row["attention"],
            f"{row['context_len']:,}",
            f"{row['sequence_bytes'] / 1e9:.3g}",
            f"{row['num_sequences']:,}",
            "-" if row["step_s"] is None else f"{1e3 * row['step_s']:.2f}",
            "-" if row["step_s"] is None else f"{row['tokens_per_s']:,.0f}",
            f"{row['break_even_batch']:,.1f}",
        )
        for row in rows
    ]
    print_table(title, columns, table)
