"""`kinetics sample`: draw trials from a model and write them to a trace shard."""

from pathlib import Path
from typing import Annotated

import typer

from kinetics_jax.specs import BestOfN, SamplingSpec, parse_attention
from kinetics_jax.tasks import get_task
from kinetics_jax.zoo import load_zoo_model

from ._app import app
from ._sampling import collect_with_bars, collector_for


@app.command()
def sample(
    model: Annotated[str, typer.Argument(help="A name of the zoo or a folder in its layout.")],
    out: Annotated[Path, typer.Option(help="Folder for the trace shards, one a (model, attention).")],
    attention: Annotated[list[str], typer.Option(help="dense, topk:64, block_topk:8x16, local:64; repeat for more.")],
    task: Annotated[str, typer.Option(help="What to ask.")] = "pathfind",
    problems: Annotated[int, typer.Option(help="Held-out problems.", min=1)] = 64,
    trials: Annotated[int, typer.Option(help="Trials per problem.", min=1)] = 16,
    max_gen_len: Annotated[
        int | None, typer.Option(help="Limit on generated tokens; the task's by default.", min=1)
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Same seed, same trials.")] = 0,
    batch_problems: Annotated[int, typer.Option(help="Problems sampled at a time.", min=1)] = 16,
    page_len: Annotated[int, typer.Option(help="Tokens in a page, where the attention does not say.", min=1)] = 8,
) -> None:
    """Draw trials and record them; the same command continues an interrupted run."""
    chosen_task = get_task(task)
    specs = [parse_attention(text) for text in attention]
    loaded = load_zoo_model(model)
    collectors = [
        collector_for(
            loaded,
            chosen_task,
            spec,
            seed=seed,
            batch_problems=min(batch_problems, problems),
            sampling=SamplingSpec(temperature=temperature),
            page_len=page_len,
        )
        for spec in specs
    ]
    strategy = BestOfN(num_trials=trials, max_gen_len=max_gen_len or chosen_task.max_gen_len)
    collect_with_bars(collectors, chosen_task.problems(problems), strategy, out)
