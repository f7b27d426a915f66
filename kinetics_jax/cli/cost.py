"""`kinetics cost`: the bill of one request, term by term."""

from dataclasses import asdict
from typing import Annotated, Any

import typer

from kinetics_jax.cost import Combine, eflops, request_cost
from kinetics_jax.specs import HARDWARE, MODELS, parse_attention

from ._app import app
from ._output import print_json, print_table


@app.command()
def cost(
    model: Annotated[str, typer.Argument(help="A model by name, such as Qwen3-8B.")],
    prompt_len: Annotated[int, typer.Option(help="Prompt tokens.")],
    gen_len: Annotated[int, typer.Option(help="Generated tokens of each trial.")],
    attention: Annotated[str, typer.Option(help="dense, topk:64, block_topk:8x16 or local:64.")] = "dense",
    trials: Annotated[int, typer.Option(help="Trials that share the prompt.")] = 1,
    hardware: Annotated[str, typer.Option(help="Whose arithmetic intensity prices memory traffic.")] = "H100-SXM",
    combine: Annotated[str, typer.Option(help="add, max, or a norm p >= 1 such as 2.")] = "add",
    batch_size: Annotated[
        int | None, typer.Option(help="Sequences that share one read of the weights; endless by default.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Price one request: every term in FLOPs or bytes, and the total in eFLOPs. Prefill is not charged."""
    chip = HARDWARE[hardware]
    bill = request_cost(
        MODELS[model],
        parse_attention(attention),
        prompt_len=prompt_len,
        gen_len=gen_len,
        num_trials=trials,
        batch_size=batch_size,
    )
    content: dict[str, Any] = {
        "model": model,
        "attention": attention,
        "prompt_len": prompt_len,
        "gen_len": gen_len,
        "num_trials": trials,
        "batch_size": batch_size,
        "hardware": hardware,
        "flops_per_byte": chip.intensity("bfloat16"),
        "combine": combine,
        "terms": asdict(bill),
        "flops": bill.flops,
        "bytes": bill.bytes,
        "eflops": eflops(bill, chip, combine=_parse_combine(combine)),
    }
    if as_json:
        print_json(content)
    else:
        _print_bill(content)


def _parse_combine(text: str) -> Combine:
    if text == "add" or text == "max":
        return text
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"combine must be add, max or a norm p >= 1; got {text!r}") from None


def _print_bill(content: dict[str, Any]) -> None:
    """Print one row a term: its own unit, what it weighs in eFLOPs, and its share of all terms added up."""
    intensity = content["flops_per_byte"]
    weights = {
        name: amount * (intensity if name.endswith("_bytes") else 1.0) for name, amount in content["terms"].items()
    }
    total = sum(weights.values())
    rows = [
        (*_amount(name, content["terms"][name]), f"{weight:.3e}", f"{weight / total:.1%}" if total else "-")
        for name, weight in weights.items()
    ]
    rows.append(("all arithmetic", f"{content['flops']:.3e}", "", f"{content['flops']:.3e}", ""))
    rows.append(("all traffic", "", f"{content['bytes']:.3e}", f"{intensity * content['bytes']:.3e}", ""))
    rows.append((f"total ({content['combine']})", "", "", f"{content['eflops']:.3e}", ""))
    title = (
        f"{content['model']}, {content['attention']}: {content['num_trials']} x {content['gen_len']:,} tokens after "
        f"{content['prompt_len']:,}, on {content['hardware']} ({intensity:.1f} FLOP/byte)"
    )
    print_table(title, ("term", "FLOP", "bytes", "eFLOP", "share"), rows)


def _amount(name: str, amount: float) -> tuple[str, str, str]:
    """Return the term's label and its amount in the column of its unit."""
    term, _, unit = name.rpartition("_")
    label = term.replace("_", " ").replace("kv", "KV").replace("param", "weights")
    return (label, f"{amount:.3e}", "") if unit == "flops" else (label, "", f"{amount:.3e}")
