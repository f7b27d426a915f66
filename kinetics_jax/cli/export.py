"""`kinetics export`: a converted checkpoint back to the Hugging Face folder it came from."""

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.filesize import decimal

from checkpoints_conversion import export_checkpoint

from ._app import app, console
from ._bytes import byte_progress
from ._output import print_json


@app.command()
def export(
    source: Annotated[Path, typer.Argument(help="A folder that `kinetics convert` made.")],
    target: Annotated[Path, typer.Argument(help="The Hugging Face folder to make.")],
    force: Annotated[bool, typer.Option("--force", help="Replace a Hugging Face folder in TARGET.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> None:
    """Write the tensors, config and tokenizer that a model came with, bit for bit."""
    started = time.monotonic()
    with byte_progress(f"export {source.name}") as (progress, seen):
        try:
            export_checkpoint(source, target, force=force, on_progress=progress)
        except KeyboardInterrupt:
            console.print(f"Stopped; nothing was written to {target}.")
            raise typer.Exit(130) from None
    seconds = time.monotonic() - started
    if as_json:
        print_json({"target": str(target), "bytes": seen.total, "seconds": seconds})
        return
    typer.echo(f"{target}: {decimal(seen.total)} at {decimal(int(seen.total / seconds))}/s")
