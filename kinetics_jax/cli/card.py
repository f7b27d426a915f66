"""`kinetics card`: the card of a model folder, every number measured."""

from pathlib import Path
from typing import Annotated

import typer

from kinetics_jax.zoo import MINI_MODELS, RECORDED_TRACES, model_folder

from ._app import app, console
from ._card import measure_card
from ._card_text import render_card
from ._output import print_json, write_whole


@app.command()
def card(
    model: Annotated[str, typer.Argument(help="A name of the zoo or a folder that `kinetics train` wrote.")],
    traces: Annotated[
        Path, typer.Option(help="Traces recorded from these weights.", show_default="the embedded ones")
    ] = RECORDED_TRACES,
    write: Annotated[bool, typer.Option("--write", help="Write README.md into the model's folder.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON instead.")] = False,
) -> None:
    """Print the card of a model: recipe, loss, sizes, accuracy by depth, length and KV budget."""
    folder = Path(model)
    if model in MINI_MODELS or not folder.is_dir():
        folder = model_folder(model)
    content = measure_card(model, folder, traces)
    if write:
        write_whole(folder / "README.md", render_card(content))
        console.print(f"Wrote {folder / 'README.md'}", highlight=False, soft_wrap=True)
    if as_json:
        print_json(content)
    elif not write:
        typer.echo(render_card(content), nl=False)
