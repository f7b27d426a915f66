"""`kinetics verify`: does a checkpoint compute what it should?"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from checkpoints_conversion import verify_checkpoint, write_golden

from ._app import app
from ._output import print_json


@app.command()
def verify(
    checkpoint: Annotated[
        Path, typer.Argument(help="A folder that `kinetics convert` made, or a Hugging Face folder.")
    ],
    against: Annotated[Path, typer.Option(help="A golden file, a Hugging Face folder, or a GGUF file.")],
    dtype: Annotated[
        Literal["float32", "bfloat16"], typer.Option(help="In which the checkpoint computes.")
    ] = "float32",
    rounded: Annotated[
        bool | None,
        typer.Option(
            "--rounded/--exact",
            help="Judge by the mean error, as of rounded weights, or by the largest.",
            show_default="what the manifest says",
        ),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="The error that passes, as a share of the largest logit.",
            show_default="1e-4; 0.02 if rounded, as int8 and bfloat16 are",
        ),
    ] = None,
    engine: Annotated[
        Literal["transformers", "kinetics"] | None,
        typer.Option(
            help="What runs a folder to verify against.", show_default="transformers if it and torch are there"
        ),
    ] = None,
    save_golden: Annotated[
        Path | None, typer.Option(help="Keep what the reference says in this .safetensors, for machines without torch.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Compare logits with a reference and name the first layer that differs; exit code 1 if they do."""
    if save_golden is not None:
        if against.is_file() and against.suffix != ".gguf":
            raise ValueError(f"--save-golden needs a model to run; {against} is a file. Give a Hugging Face folder.")
        write_golden(against, save_golden, engine=engine)
        against, engine = save_golden, None
    report = verify_checkpoint(
        checkpoint,
        against=against,
        dtype=dtype,
        rounded=rounded,
        tolerance=tolerance,
        engine=engine,
    )
    if as_json:
        print_json(report.to_dict())
    else:
        typer.echo(str(report))
    if not report.agrees:
        raise typer.Exit(1)
