"""`kinetics iso-cost`: how many tokens each model affords at one cost."""

from typing import Annotated, Any

import typer

from kinetics_jax.cost import iso_cost_len
from kinetics_jax.specs import HARDWARE, MODELS, parse_attention

from ._app import app
from ._output import print_json, print_table
from ._pricing import (
    ATTENTION_FORMS,
    AsJson,
    CombineText,
    ComputeDtype,
    ConventionText,
    Hardware,
    KvDtype,
    WeightDtype,
    parse_combine,
    parse_convention,
)

_DEFAULT_FAMILY = "Qwen3"


@app.command()
def iso_cost(
    eflops: Annotated[float, typer.Option("--eflops", help="What one request may cost, such as 2e16.")],
    models: Annotated[
        list[str] | None, typer.Argument(help="Models by name.", show_default="every Qwen3 without experts")
    ] = None,
    attention: Annotated[
        list[str] | None, typer.Option(help=f"{ATTENTION_FORMS}; repeat for more.", show_default="dense")
    ] = None,
    prompt_len: Annotated[int, typer.Option(help="Prompt tokens.")] = 0,
    trials: Annotated[int, typer.Option(help="Trials that share the cost.")] = 1,
    batch_size: Annotated[
        int | None, typer.Option(help="Sequences that share one read of the weights; endless by default.")
    ] = None,
    hardware: Hardware = "H100-SXM",
    combine: CombineText = "add",
    convention: ConventionText = "exact",
    kv_dtype: KvDtype = "bfloat16",
    weight_dtype: WeightDtype = "bfloat16",
    compute_dtype: ComputeDtype = "bfloat16",
    as_json: AsJson = False,
) -> None:
    """Find the tokens that each model and attention may generate at the same cost; prefill is not charged."""
    names = models or [name for name, spec in MODELS.items() if spec.family == _DEFAULT_FAMILY]
    texts = list(dict.fromkeys(attention or ["dense"]))
    chip = HARDWARE[hardware]
    request: dict[str, Any] = {
        "prompt_len": prompt_len,
        "num_trials": trials,
        "batch_size": batch_size,
        "convention": parse_convention(convention),
        "kv_dtype": kv_dtype,
        "weight_dtype": weight_dtype,
        "compute_dtype": compute_dtype,
    }
    how = {**request, "combine": parse_combine(combine)}
    rows = [
        {
            "model": name,
            "attention": text,
            "gen_len": iso_cost_len(MODELS[name], parse_attention(text), chip, eflops, **how),
            "max_len": MODELS[name].max_len,
        }
        for name in names
        for text in texts
    ]
    content = {
        "eflops": eflops,
        "hardware": hardware,
        "flops_per_byte": chip.intensity(compute_dtype, kv_dtype),
        "combine": combine,
        **request,
        "rows": rows,
    }
    if as_json:
        print_json(content)
    else:
        _print_lengths(content, names, texts)


def _print_lengths(content: dict[str, Any], names: list[str], texts: list[str]) -> None:
    """Print one row a model, one column an attention; a star marks more than the model's longest context."""
    cells = {(row["model"], row["attention"]): row for row in content["rows"]}

    def cell(name: str, text: str) -> str:
        row = cells[name, text]
        star = "*" if content["prompt_len"] + row["gen_len"] > row["max_len"] else ""
        return f"{row['gen_len']:,.0f}{star}"

    title = (
        f"Tokens for {content['eflops']:.3g} eFLOPs on {content['hardware']} ({content['flops_per_byte']:.1f} "
        f"FLOP/byte, {content['combine']}), {content['num_trials']} x after {content['prompt_len']:,}; "
        f"* beyond the model's longest context"
    )
    print_table(title, ("model", *texts), [(name, *(cell(name, text) for text in texts)) for name in names])
