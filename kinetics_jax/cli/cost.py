"""`kinetics cost`: the bill of one request, term by term."""

from dataclasses import asdict
from typing import Annotated, Any

import typer

from kinetics_jax.cost import Cost, dollars, eflops, joules, prefill_cost, request_cost, seconds
from kinetics_jax.specs import HARDWARE, MODELS, HardwareSpec, parse_attention

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


@app.command()
def cost(
    model: Annotated[str, typer.Argument(help="A model by name, such as Qwen3-8B.")],
    prompt_len: Annotated[int, typer.Option(help="Prompt tokens.")],
    gen_len: Annotated[int, typer.Option(help="Generated tokens of each trial.")],
    attention: Annotated[str, typer.Option(help=f"{ATTENTION_FORMS}.")] = "dense",
    trials: Annotated[int, typer.Option(help="Trials of the prompt.")] = 1,
    share_prompt: Annotated[bool, typer.Option(help="Whether trials keep one copy of the prompt's cache.")] = True,
    prefill: Annotated[bool, typer.Option(help="Whether to add the pass over the prompt, taken alone.")] = False,
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
    """Price one request: every term in FLOPs or bytes, the total in eFLOPs, and what one chip takes for it."""
    chip, spec = HARDWARE[hardware], parse_attention(attention)
    formats: dict[str, Any] = {"kv_dtype": kv_dtype, "weight_dtype": weight_dtype}
    request: dict[str, Any] = {
        "prompt_len": prompt_len,
        "gen_len": gen_len,
        "num_trials": trials,
        "share_prompt": share_prompt,
        "batch_size": batch_size,
        "convention": parse_convention(convention),
        **formats,
    }
    bill = decode = request_cost(MODELS[model], spec, **request)
    prompt = None
    if prefill:
        if convention == "paper":
            raise ValueError("the paper's convention has no prefill; drop --prefill, or use --convention exact")
        num_passes = 1 if share_prompt else trials
        alone = None if batch_size is None else 1
        prompt = num_passes * prefill_cost(MODELS[model], spec, prompt_len=prompt_len, batch_size=alone, **formats)
        bill = decode + prompt
    content: dict[str, Any] = {
        "model": model,
        "attention": attention,
        **request,
        "hardware": hardware,
        "compute_dtype": compute_dtype,
        "flops_per_byte": chip.intensity(compute_dtype, kv_dtype),
        "combine": combine,
        "terms": asdict(decode),
        "prefill": None if prompt is None else asdict(prompt),
        **_totals(bill, chip, combine=parse_combine(combine), compute_dtype=compute_dtype, kv_dtype=kv_dtype),
    }
    if as_json:
        print_json(content)
    else:
        _print_bill(content)


def _totals(bill: Cost, chip: HardwareSpec, **how: Any) -> dict[str, Any]:
    """Add the bill up; figures that the chip lacks are None."""
    return {
        "flops": bill.flops,
        "bytes": bill.bytes,
        "eflops": eflops(bill, chip, **how),
        "seconds": seconds(bill, chip, **how),
        "joules": None if chip.watts is None else joules(bill, chip, **how),
        "dollars": None if chip.dollars_per_hour is None else dollars(bill, chip, **how),
    }


def _print_bill(content: dict[str, Any]) -> None:
    """Print one row a term: its own unit, what it weighs in eFLOPs, and its share of all terms added up."""
    intensity, prompt = content["flops_per_byte"], content["prefill"]
    terms = dict(content["terms"])
    if prompt is not None:
        for kind in ("flops", "bytes"):
            terms[f"prefill_{kind}"] = sum(amount for name, amount in prompt.items() if name.endswith(kind))
    weights = {name: amount * (intensity if name.endswith("_bytes") else 1.0) for name, amount in terms.items()}
    total = sum(weights.values())
    rows = [
        (*_amount(name, terms[name]), f"{weight:.3e}", f"{weight / total:.1%}" if total else "-")
        for name, weight in weights.items()
    ]
    rows.append(("all arithmetic", f"{content['flops']:.3e}", "", f"{content['flops']:.3e}", ""))
    rows.append(("all traffic", "", f"{content['bytes']:.3e}", f"{intensity * content['bytes']:.3e}", ""))
    rows.append((f"total ({content['combine']})", "", "", f"{content['eflops']:.3e}", ""))
    for label, name, unit in (("time", "seconds", "s"), ("energy", "joules", "J"), ("rent", "dollars", "$")):
        if content[name] is not None:
            rows.append((f"{label} on one chip", "", "", f"{content[name]:.3e} {unit}", ""))
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
