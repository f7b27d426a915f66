"""`kinetics traces`: look into recorded trials, check them, pack them, and bring in the paper's."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from checkpoints_conversion import HfTokenizer, load_tokenizer
from kinetics_jax.specs import Dense, parse_attention
from kinetics_jax.traces import (
    FINISH_REASONS,
    PaperImport,
    TraceSummary,
    compact,
    import_paper_traces,
    inspect_traces,
    verify_traces,
    write_traces,
)

from ._app import app, console
from ._bytes import byte_progress
from ._output import print_json, print_table
from ._pricing import AsJson, parse_convention

_SHOWN = 20
"""Issues printed to a person; --json has all."""

group = typer.Typer(name="traces", no_args_is_help=True, help="Look into recorded trials, check, pack and import them.")
app.add_typer(group)

Sources = Annotated[list[Path], typer.Argument(help="JSONL or Parquet files, or folders of them.")]
Out = Annotated[Path, typer.Option(help="The .parquet file to write.")]


@group.command()
def inspect(sources: Sources, as_json: AsJson = False) -> None:
    """Summarise what was recorded: trials, accuracy, lengths and why thoughts ended."""
    summaries = inspect_traces(sources)
    if as_json:
        print_json(
            {
                "num_rows": sum(summary.num_rows for summary in summaries),
                "tasks": sorted({summary.task for summary in summaries}),
                "models": sorted({summary.model for summary in summaries}),
                "tables": [asdict(summary) for summary in summaries],
            }
        )
        return
    for task, model in sorted({(summary.task, summary.model) for summary in summaries}):
        rows = [summary for summary in summaries if (summary.task, summary.model) == (task, model)]
        reasons = [reason for reason in FINISH_REASONS if any(reason in summary.finish_reasons for summary in rows)]
        columns = ("attention", "trials", "right", "prompt", "mean", "limit", *reasons)
        title = f"{model} on {task}: {sum(summary.num_rows for summary in rows):,} trials; lengths in tokens"
        print_table(title, columns, [_summary_row(summary, reasons) for summary in sorted(rows, key=_by_method)])


@group.command(name="compact")
def pack(sources: Sources, out: Out) -> None:
    """Write all traces of the sources into one Parquet file; the sources stay."""
    num_traces = compact(sources, out)
    typer.echo(f"{num_traces} traces in {out} ({out.stat().st_size / 1e6:.1f} MB)")


@group.command()
def verify(sources: Sources, as_json: AsJson = False) -> None:
    """Check every row, trials that occur twice and lines that were cut off; exit code 1 if anything is wrong."""
    check = verify_traces(sources)
    if as_json:
        print_json(asdict(check))
    else:
        _print_some(check.issues)
        wrong = f"{len(check.issues)} wrong" if check.issues else "nothing wrong"
        typer.echo(f"{check.num_rows} traces in {check.num_files} files: {wrong}")
    if check.issues:
        raise typer.Exit(1)


@group.command(name="import")
def bring(
    folder: Annotated[Path, typer.Argument(help="Folder of the paper's JSONL files (searched deeply), or one file.")],
    out: Out,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder with the models' tokenizer.json; counts tokens where lines do not.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="The model of files that do not tell.")] = None,
    task: Annotated[str | None, typer.Option(help="The task of files that do not tell.")] = None,
    attention: Annotated[str | None, typer.Option(help="The attention spec of files that do not tell.")] = None,
    max_gen_len: Annotated[
        int | None, typer.Option(help="Limit under which trials ran, where files do not tell.", show_default="32768")
    ] = None,
    convention: Annotated[
        str, typer.Option(help="exact: the attention that ran; paper: the selection alone, which its cost counts.")
    ] = "exact",
    as_json: AsJson = False,
) -> None:
    """Turn the paper's generations into traces; exit code 1 if something could not be read and was left out."""
    if out.suffix != ".parquet":  # before minutes of counting
        raise ValueError(f"--out must end in .parquet; got {out}")
    counter = None if tokenizer is None else load_tokenizer(tokenizer)
    with byte_progress(f"import {folder.name}") as (progress, _):
        read = import_paper_traces(
            folder,
            count_tokens=None if counter is None else lambda texts: _count_texts(counter, texts),
            count_prompt_tokens=None if counter is None else lambda texts: _count_prompts(counter, texts),
            model=model,
            task=task,
            attention=attention,
            max_gen_len=max_gen_len,
            convention=parse_convention(convention),
            on_progress=progress,
        )
    if not read.traces:
        first, *more = map(str, read.report.issues)
        raise ValueError(f"{first}{f' ({len(more)} more like it)' if more else ''} Nothing was written to {out}.")
    write_traces(read.traces, out)
    if as_json:
        print_json({"target": str(out), "num_rows": len(read.traces), **read.report.to_dict()})
    else:
        _print_import(read, out)
    if read.report.issues:
        raise typer.Exit(1)


def _print_import(read: PaperImport, out: Path) -> None:
    files, issues = read.report.files, read.report.issues
    for task in sorted({file.task for file in files}):
        columns = ("model", "attention", "trials", "right", "cut", "no box", "no score")
        rows = [
            [
                file.model,
                file.attention,
                _grid(file.num_problems, file.min_trials, file.max_trials),
                f"{file.num_right / file.num_rows:.1%}",
                str(file.num_at_limit),
                str(file.num_right_without_answer),
                str(file.num_ungradable),
            ]
            for file in files
            if file.task == task
        ]
        print_table(f"{task}: {len(rows)} files; no box: right without a boxed answer", columns, rows, num_labels=2)
    _print_some(issues)
    left_out = f"; {len(issues)} lines or files were left out" if issues else ""
    typer.echo(f"{len(read.traces)} traces in {out} ({out.stat().st_size / 1e6:.1f} MB){left_out}")


def _summary_row(summary: TraceSummary, reasons: Sequence[str]) -> list[str]:
    return [
        summary.attention,
        _grid(summary.num_problems, summary.min_trials, summary.max_trials),
        f"{summary.accuracy:.1%}",
        f"{summary.mean_prompt_len:.0f}",
        f"{summary.mean_gen_len:.0f}",
        str(summary.max_gen_len),
        *(str(summary.finish_reasons.get(reason, 0)) for reason in reasons),
    ]


def _by_method(summary: TraceSummary) -> tuple[str, int]:
    """Return a sort key: small budgets of a method first."""
    spec = parse_attention(summary.attention)
    return summary.attention.partition(":")[0], 0 if isinstance(spec, Dense) else spec.budget_len


def _grid(num_problems: int, low: int, high: int) -> str:
    """Return problems x trials of each."""
    return f"{num_problems} x {low}" if low == high else f"{num_problems} x {low}-{high}"


def _print_some(issues: Sequence[object]) -> None:
    for issue in issues[:_SHOWN]:
        console.print(str(issue), markup=False, highlight=False, soft_wrap=True)
    if len(issues) > _SHOWN:
        console.print(f"... and {len(issues) - _SHOWN} more (--json has all)", highlight=False)


def _count_texts(tokenizer: HfTokenizer, texts: Iterable[str]) -> list[int]:
    """Return the tokens of generated texts: no token is added, and all cores work."""
    return [
        len(encoding.ids) for encoding in tokenizer.backend.encode_batch_fast(list(texts), add_special_tokens=False)
    ]


def _count_prompts(tokenizer: HfTokenizer, texts: Iterable[str]) -> list[int]:
    """Return the tokens of questions in the model's chat format, or alone if it has none."""
    if tokenizer.chat_template is None:
        return [len(tokenizer.encode(text)) for text in texts]
    return [len(tokenizer.apply_chat_template([{"role": "user", "content": text}])) for text in texts]
