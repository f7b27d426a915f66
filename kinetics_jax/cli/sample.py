"""`kinetics sample`: draw trials from a model and write them to a trace shard."""

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from kinetics_jax import collect
from kinetics_jax.specs import BestOfN, SamplingSpec, parse_attention
from kinetics_jax.tasks import get_task
from kinetics_jax.zoo import load_zoo_model

from ._app import app, console


@app.command()
def sample(
    model: Annotated[str, typer.Argument(help="A name of the zoo or a folder in its layout.")],
    out: Annotated[Path, typer.Option(help="Folder for the trace shards, one a (model, attention).")],
    attention: Annotated[list[str], typer.Option(help="dense, topk:64, block_topk:8x16, local:64; repeat for more.")],
    task: Annotated[str, typer.Option(help="What to ask.")] = "pathfind",
    problems: Annotated[int, typer.Option(help="Held-out problems.", min=1)] = 64,
    trials: Annotated[int, typer.Option(help="Trials per problem.", min=1)] = 16,
    max_gen_len: Annotated[int | None, typer.Option(help="Limit on generated tokens; the task's by default.")] = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Same seed, same trials.")] = 0,
    batch_problems: Annotated[int, typer.Option(help="Problems sampled at a time.", min=1)] = 16,
    page_len: Annotated[int, typer.Option(help="Tokens in a page, where the attention does not say.", min=1)] = 8,
) -> None:
    """Draw trials and record them; the same command continues an interrupted run."""
    chosen_task = get_task(task)
    specs = [parse_attention(text) for text in attention]
    strategy = BestOfN(num_trials=trials, max_gen_len=max_gen_len or chosen_task.max_gen_len)
    questions = chosen_task.problems(problems)
    loaded = load_zoo_model(model)
    name = loaded.model.spec.name
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[rate]}"), console=console) as bar:
        for spec in specs:
            row = bar.add_task(f"{name} {spec}", total=problems * trials, rate="compiling")
            collector = collect.Collector(
                model=loaded.model,
                model_name=name,
                weights_hash=loaded.weights_hash,
                task=chosen_task,
                attention=spec,
                sampling=SamplingSpec(temperature=temperature),
                seed=seed,
                batch_problems=min(batch_problems, problems),
                page_len=getattr(spec, "page_len", page_len),
            )

            def show(progress: collect.Progress, row=row) -> None:
                rate = f"{progress.num_tokens / progress.seconds:,.0f} tokens/s"
                bar.update(row, completed=progress.num_done, rate=rate)

            shard = out / f"{name}-{str(spec).replace(':', '-')}.jsonl"
            collector.collect(questions, strategy, shard, on_progress=show)
            bar.update(row, completed=problems * trials)
