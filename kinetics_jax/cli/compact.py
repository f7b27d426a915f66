"""`kinetics compact`: trace shards to one small Parquet file."""

from pathlib import Path
from typing import Annotated

import typer

from kinetics_jax import traces

from ._app import app


@app.command()
def compact(
    sources: Annotated[list[Path], typer.Argument(help="JSONL or Parquet files, or folders of them.")],
    target: Annotated[Path, typer.Option(help="The .parquet file to write.")],
) -> None:
    """Write all traces of the sources into one Parquet file; the sources stay."""
    num_traces = traces.compact(sources, target)
    typer.echo(f"{num_traces} traces in {target} ({target.stat().st_size / 1e6:.1f} MB)")
