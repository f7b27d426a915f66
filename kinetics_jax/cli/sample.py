"""`kinetics sample`: draw trials from a model and write them to trace shards."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import jax
import typer

from kinetics_jax.collect import Collector, CollectReport, Shard
from kinetics_jax.sampling import Repetition
from kinetics_jax.specs import HARDWARE, BestOfN, SamplingSpec, parse_attention
from kinetics_jax.tasks import Problem, Task, TokenisedTask, get_task

from ._app import app
from ._distributed import join_processes
from ._dry_run import print_dry_runs
from ._gpu_memory import allow_whole_gpu
from ._loading import load_any_model, task_for
from ._mesh import parse_mesh
from ._output import print_json
from ._pricing import AsJson, Hardware
from ._sampling import budget_forcing, collect_with_bars, price_of

_ENDLESS = 64
"""Problems asked of a task that never runs out of them."""


@app.command()
def sample(
    model: Annotated[str, typer.Argument(help="A name of the zoo, a Hugging Face folder, or a converted one.")],
    out: Annotated[Path, typer.Option(help="Folder for the trace shards, one a (model, attention).")],
    attention: Annotated[list[str], typer.Option(help="dense, topk:64, block_topk:8x16, local:64; repeat for more.")],
    task: Annotated[str, typer.Option(help="What to ask; `kinetics tasks` lists them.")] = "pathfind",
    data: Annotated[Path | None, typer.Option(help="Local copy of the task's problems.")] = None,
    problems: Annotated[
        int | None, typer.Option(help="Held-out problems.", min=1, show_default="all, 64 where they never end")
    ] = None,
    shard: Annotated[
        str | None, typer.Option(help="i/n: only problems i, i + n, ..., in a file of their own.", show_default=False)
    ] = None,
    trials: Annotated[int, typer.Option(help="Trials per problem.", min=1)] = 16,
    max_gen_len: Annotated[
        int | None, typer.Option(help="Limit on generated tokens.", min=1, show_default="the task's")
    ] = None,
    think_len: Annotated[
        int | None, typer.Option(help="Close thoughts after so many tokens.", min=1, show_default="never")
    ] = None,
    no_think: Annotated[bool, typer.Option("--no-think", help="Ask for an answer without a thought.")] = False,
    stop_on_repetition: Annotated[bool, typer.Option("--stop-on-repetition", help="End trials that loop.")] = False,
    time_limit: Annotated[
        float | None, typer.Option(help="Limit on the time of a trial [s].", show_default="none")
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Keep the k most likely tokens; 0 keeps all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Keep the most likely tokens of this mass; 1 keeps all.")] = 1.0,
    min_p: Annotated[float, typer.Option(help="Drop tokens less likely than this share of the likeliest.")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="Lowers what was said already; 1 does nothing.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Same seed, same trials.")] = 0,
    slots: Annotated[int, typer.Option(help="Trials in a batch.", min=1)] = 32,
    pages: Annotated[
        int | None, typer.Option(help="Pages of the cache.", min=1, show_default="what the slots need, or what fits")
    ] = None,
    page_len: Annotated[
        int | None, typer.Option(help="Tokens in a page, where the attention does not say.", min=1, show_default="16")
    ] = None,
    mesh: Annotated[
        str | None, typer.Option(help="DATAxMODEL: devices of this machine to share slots and weights out to.")
    ] = None,
    distributed: Annotated[
        str | None,
        typer.Option(
            help="One of many processes that share the --mesh: auto (Slurm, Open MPI, TPU pods) or HOST:PORT,i/n.",
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16"] | None,
        typer.Option(help="In which the model computes.", show_default="float32; as stored if converted"),
    ] = None,
    graders: Annotated[int, typer.Option(help="Answers judged at a time.", min=1)] = 4,
    hardware: Hardware = "H100-SXM",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would take, and sample nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Draw trials, grade and record them; the same command continues an interrupted run."""
    allow_whole_gpu()
    if distributed is not None:
        join_processes(distributed, mesh)
    chip, part = HARDWARE[hardware], None if shard is None else Shard.parse(shard)
    specs = [parse_attention(text) for text in attention]
    sampling = SamplingSpec(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty
    )
    get_task(task, data=data)  # an unknown name is said before a model is loaded
    loaded = load_any_model(model, dtype=dtype, mesh=None if mesh is None else parse_mesh(mesh))
    chosen = task_for(task, data, loaded.tokenizer, enable_thinking=not no_think)
    questions = _questions(chosen, problems, part)
    strategy = BestOfN(num_trials=trials, max_gen_len=max_gen_len or chosen.max_gen_len)
    geometry = loaded.model.spec
    collectors = [
        Collector(
            model=loaded.model,
            model_name=geometry.name,
            weights_hash=loaded.weights_hash,
            task=chosen,
            attention=spec,
            sampling=sampling,
            seed=seed,
            repetition=Repetition() if stop_on_repetition else None,
            time_s=time_limit,
            closing=None if think_len is None else budget_forcing(loaded.tokenizer, think_len, strategy.max_gen_len),
            num_slots=slots if mesh else min(slots, len(questions) * trials),
            num_pages=pages,
            page_len=getattr(spec, "page_len", page_len),
            num_graders=graders,
            price=price_of(geometry, spec, chip, trials),
        )
        for spec in specs
    ]
    speaks = jax.process_index() == 0
    if dry_run:
        if speaks:
            print_dry_runs(collectors, questions, strategy, out, shard=part, hardware=hardware, as_json=as_json)
        return
    reports = collect_with_bars(collectors, questions, strategy, out, shard=part)
    if as_json and speaks:
        print_json([_summary(report) for report in reports])
    if any(report.num_missing for report in reports):
        raise typer.Exit(1)


def _questions(task: Task, num_problems: int | None, shard: Shard | None) -> list[Problem]:
    """Return the problems to ask.

    Raises:
        ValueError: If none is left for this shard.
    """
    is_endless = not isinstance(task, TokenisedTask) or task.task.size is None
    found = task.problems(_ENDLESS if num_problems is None and is_endless else num_problems)
    mine = found if shard is None else shard.of(found)
    if not mine:
        raise ValueError(f"shard {shard} of {len(found)} problems is empty; use fewer shards")
    return mine


def _summary(report: CollectReport) -> dict[str, object]:
    rate = report.num_tokens / report.seconds if report.num_written else None
    return {
        **asdict(report),
        "shard": str(report.shard),
        "num_missing": report.num_missing,
        "tokens_per_s": rate,
    }
