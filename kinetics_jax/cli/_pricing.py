"""Options that every command of the cost model takes, and how their text becomes what `cost` wants."""

from typing import Annotated

import typer

from kinetics_jax.cost import Combine, Convention

ATTENTION_FORMS = "dense, topk:64, block_topk:8x16, quest:8x16 or local:64"

Hardware = Annotated[str, typer.Option(help="Chip, such as H200-SXM; PAPER_B200 is the paper's.")]
CombineText = Annotated[str, typer.Option("--combine", help="add, max, or a norm p >= 1 such as 2.")]
ConventionText = Annotated[str, typer.Option("--convention", help="exact, or paper: its formulas as published.")]
KvDtype = Annotated[str, typer.Option(help="Cache format: bfloat16, float8, int8, int4, ...")]
WeightDtype = Annotated[str, typer.Option(help="Weight format.")]
ComputeDtype = Annotated[str, typer.Option(help="Format of the products; the chip must have a peak for it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def parse_combine(text: str) -> Combine:
    """Return what `eflops` takes.

    Raises:
        ValueError: If the text is neither add nor max nor a number.
    """
    if text == "add" or text == "max":
        return text
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"combine must be add, max or a norm p >= 1; got {text!r}") from None


def parse_convention(text: str) -> Convention:
    """Return what `request_cost` takes.

    Raises:
        ValueError: If the text names no convention.
    """
    if text == "exact" or text == "paper":
        return text
    raise ValueError(f"convention must be exact or paper; got {text!r}")
