"""`kinetics convert`: a Hugging Face model to a folder that our models load."""

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.filesize import decimal

from checkpoints_conversion import convert_checkpoint
from kinetics_jax.models import ModelFile

from ._app import app, console
from ._bytes import byte_progress
from ._output import print_json


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="A Hugging Face folder, a name on the hub, or a GGUF file.")],
    target: Annotated[Path, typer.Argument(help="The folder to make.")],
    dtype: Annotated[
        str | None, typer.Option(help="float32 or bfloat16 for all weights; without it each keeps its own.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub name.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a converted checkpoint in TARGET.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> None:
    """Convert a model, a tensor at a time; after Ctrl-C or a kill the same command goes on where it stopped."""
    started = time.monotonic()
    with byte_progress(f"convert {Path(source).name}") as (progress, seen):
        try:
            convert_checkpoint(source, target, dtype=dtype, revision=revision, force=force, on_progress=progress)
        except KeyboardInterrupt:
            console.print(
                f"Stopped at {decimal(seen.done)} of {decimal(seen.total)}. Run the same command to go on; "
                f"{target}.partial holds what is done."
            )
            raise typer.Exit(130) from None
    seconds = time.monotonic() - started
    file = ModelFile.read(target)
    if as_json:
        print_json(
            {
                "target": str(target),
                "model": file.spec.name,
                "dtype": file.dtype,
                "source_bytes": seen.total,
                "resumed_bytes": seen.first,
                "seconds": seconds,
            }
        )
        return
    rate = int((seen.total - seen.first) / seconds)
    typer.echo(f"{target}: {file.spec.name}, {file.dtype}, {decimal(seen.total)} at {decimal(rate)}/s")
