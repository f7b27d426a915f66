"""`kinetics train`: train an embedded model anew and write it as a Hugging Face folder."""

import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from checkpoints_conversion import save_checkpoint, word_tokenizer
from kinetics_jax.models import Decoder
from kinetics_jax.specs import MODELS
from kinetics_jax.tasks import Pathfind
from kinetics_jax.training import Checkpoints, Recipe, TrainingReport, mini_recipe, write_training_record
from kinetics_jax.training import train as run_training

from ._app import app, console


@app.command()
def train(
    model: Annotated[str, typer.Argument(help="A size of the embedded family, such as Kinetics-Mini-0.1M.")],
    out: Annotated[Path, typer.Option(help="Folder to write; must not exist yet or be empty.")],
    steps: Annotated[int | None, typer.Option(help="Another number of steps; warm-up at most a tenth.")] = None,
    seed: Annotated[int | None, typer.Option(help="Another seed of the initial weights.")] = None,
    checkpoints: Annotated[
        Path | None, typer.Option(help="Save the state here every thousand steps, and go on from it if it is there.")
    ] = None,
) -> None:
    """Train a model by its recipe; without options this is how the embedded weights were made."""
    recipe = mini_recipe(model, num_steps=steps, seed=seed)
    task = Pathfind()
    _require_free(out)
    with _progress() as bar:
        row = bar.add_task(model, total=recipe.num_steps, loss="compiling")

        def show(step: int, loss: float) -> None:
            bar.update(row, completed=step, loss=f"loss {loss:.4f}")

        trained, report = run_training(
            MODELS[model],
            recipe,
            task=task,
            on_progress=show,
            checkpoints=None if checkpoints is None else Checkpoints(folder=checkpoints),
        )
    _write_folder(trained, task, report, recipe, out)
    typer.echo(f"{out}: loss {report.losses[-1]:.4f} after {recipe.num_steps} steps in {report.seconds:.0f} s")


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[loss]}"))
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console)


def _require_free(out: Path) -> None:
    """Refuse, before any work, a folder that holds something or cannot be made."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists already and is not an empty folder. Choose another --out, or move it away.")
    out.parent.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=out.parent).close()


def _write_folder(trained: Decoder, task: Pathfind, report: TrainingReport, recipe: Recipe, out: Path) -> None:
    """Write weights, config, tokenizer and training.json beside, then give the folder its name: all or nothing."""
    staged = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    try:
        folder = staged / out.name
        save_checkpoint(
            trained,
            folder,
            tokenizer=word_tokenizer(task.vocabulary, unknown=task.vocabulary[task.pad_id]),
            bos_token_id=task.bos_id,
            eos_token_id=task.eos_id,
            pad_token_id=task.pad_id,
        )
        write_training_record(report, recipe, folder)
        folder.replace(out)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
