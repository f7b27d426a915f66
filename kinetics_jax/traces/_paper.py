"""The paper's released generations as traces: a folder of JSONL files, one a model and attention method.

The layout is told in `_paper_rows` (a line) and `_paper_names` (a file). What the release does not say stays unsaid:
token ids, seeds, times and why a thought ended; and its verdicts are taken as they are. Grading them anew is left out.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from kinetics_jax.specs import SamplingSpec, parse_attention

from ._paper_names import Convention, attention_of, model_of, task_of
from ._paper_report import PaperFile, PaperImport, PaperIssue, PaperReport
from ._paper_rows import PaperRow, is_right, parse_object, parse_row, score_scale
from ._schema import Trace

TokenCounter = Callable[[Sequence[str]], Sequence[int]]

_MAX_GEN_LEN = 32_768
_SAMPLING = str(SamplingSpec(temperature=0.6, top_k=20, top_p=0.95))
_BATCH = 64
"""Texts counted at a time: a thought has tens of kilobytes."""


def import_paper_traces(
    folder: str | os.PathLike[str],
    *,
    count_tokens: TokenCounter | None = None,
    count_prompt_tokens: TokenCounter | None = None,
    model: str | None = None,
    task: str | None = None,
    attention: str | None = None,
    max_gen_len: int | None = None,
    convention: Convention = "exact",
    on_progress: Callable[[int, int], None] | None = None,
) -> PaperImport:
    r"""Read the paper's released generations, or files of the same layout.

    A line is a trial; trials are grouped by their question. What cannot be read is left out and reported with file and
    line, and everything else is kept.

    Args:
        folder: A folder, searched deeply for .jsonl files, or one such file.
        count_tokens: Returns the number of tokens of each of several texts; needed where lines have no token counts.
        count_prompt_tokens: The same for questions, with the chat format around them; None is `count_tokens`.
        model: Name of the model, for files that do not tell.
        task: Name of the task, likewise.
        attention: Text form of the attention spec, likewise.
        max_gen_len: Limit on generated tokens under which the trials ran, likewise; None is the paper's 32,768. Longer
            counts are cut to it [tokens].
        convention: "exact" records what the released code ran (four sinks, the unfilled tail block, a dense first
            layer); "paper" the selection alone, which is what the paper's cost counts (PAPER.md, errata 7).
        on_progress: Called with the bytes read and all bytes.

    Returns:
        The traces, without token ids unless the lines have them, and the report.

    Raises:
        FileNotFoundError: If the folder does not exist.
        ValueError: If it holds no .jsonl file, tokens must be counted and `count_tokens` is None, `attention` is no
            spec, or `max_gen_len` is below one.

    Example:
        >>> import tempfile
        >>> line = '{"query": "1+1?", "choices": ["2"], "prediction": ["It is \\\\boxed{2}"], "score": 100.0}'
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "aime24_qwen3-1-7b_local0_topk128.jsonl").write_text(line)
        ...     read = import_paper_traces(folder, count_tokens=lambda texts: [len(text.split()) for text in texts])
        >>> trace = read.traces[0]
        >>> trace.model, trace.attention, trace.gen_len, trace.answer
        ('Qwen3-1.7B', 'topk:132,sinks=4,dense_layers=1', 3, '2')

    References:
        PAPER.md, errata 7 and 8; the released code's README for the keys.
    """
    limit = _MAX_GEN_LEN if max_gen_len is None else max_gen_len
    if limit < 1:
        raise ValueError(f"max_gen_len must be at least 1; got {limit}")
    root, files = _list(Path(folder))
    given = {"model": model, "task": task, "attention": None if attention is None else str(parse_attention(attention))}
    reader = _Reader(
        count_tokens=count_tokens,
        count_prompt_tokens=count_prompt_tokens or count_tokens,
        prompt_lens={},
        total=sum(path.stat().st_size for path in files),
        on_progress=on_progress or (lambda done, total: None),
    )
    traces: list[Trace] = []
    reports: list[PaperFile] = []
    issues: list[PaperIssue] = []
    first_of: dict[bytes, Path] = {}
    for path in files:
        try:
            metadata = _metadata(path)
            settings = _settings(path.relative_to(root), metadata, given, limit, convention)
        except ValueError as error:
            issues.append(PaperIssue(path=str(path), line=None, what=str(error)))
            continue
        rows, bad, digest = reader.read(path, has_metadata=bool(metadata))
        twin = first_of.setdefault(digest, path)
        if twin != path:
            issues.append(PaperIssue(path=str(path), line=None, what=f"has the same bytes as {twin}: left out"))
            continue
        found = _traces(path, rows, settings, bad)
        traces += found
        issues += sorted(bad, key=lambda issue: issue.line or 0)
        if found:
            reports.append(_describe(path, found, rows))
    return PaperImport(traces=tuple(traces), report=PaperReport(files=tuple(reports), issues=tuple(issues)))


@dataclass(kw_only=True)
class _Reader:
    """Reads files line by line, counts tokens in batches, and says how far it is."""

    count_tokens: TokenCounter | None
    count_prompt_tokens: TokenCounter | None
    prompt_lens: dict[str, int]
    total: int
    on_progress: Callable[[int, int], None]
    done: int = 0

    def read(self, path: Path, *, has_metadata: bool) -> tuple[list[PaperRow], list[PaperIssue], bytes]:
        """Return the trials of a file, the lines that are none, and the digest of its bytes."""
        digest = hashlib.sha256()
        rows: list[PaperRow] = []
        batch: list[PaperRow] = []
        bad: list[PaperIssue] = []
        for number, line in enumerate(_lines(path), start=1):
            digest.update(line)
            self.done += len(line)
            if (number == 1 and has_metadata) or not line.strip():
                continue
            try:
                batch.append(parse_row(parse_object(line), number, line))
            except ValueError as error:
                bad.append(PaperIssue(path=str(path), line=number, what=str(error)))
            if len(batch) == _BATCH:
                rows += self._counted(batch, path)
                batch = []
                self.on_progress(self.done, self.total)
        rows += self._counted(batch, path)
        self.on_progress(self.done, self.total)
        if not rows:  # one sentence for a file of another kind, not one a line
            what = f"holds no trial in the paper's layout: {bad[0].what}" if bad else "holds no trial"
            bad = [PaperIssue(path=str(path), line=bad[0].line if bad else None, what=what)]
        return rows, bad, digest.digest()

    def _counted(self, rows: Sequence[PaperRow], path: Path) -> list[PaperRow]:
        """Return the rows with both lengths and without texts."""
        unread = [row for row in rows if row.gen_len is None or row.prompt_len is None]
        if unread and (self.count_tokens is None or self.count_prompt_tokens is None):
            raise ValueError(
                f"{path}, line {unread[0].number}: has no token counts, so a tokenizer must count them. Give the "
                "model's tokenizer (--tokenizer DIR, or count_tokens)."
            )
        texts = [row.text for row in rows if row.text is not None]
        gen_lens = iter(self.count_tokens(texts) if self.count_tokens and texts else ())
        queries = [row.query for row in unread if row.prompt_len is None and row.query not in self.prompt_lens]
        if self.count_prompt_tokens and queries:
            self.prompt_lens.update(zip(queries, self.count_prompt_tokens(queries), strict=True))
        return [
            replace(
                row,
                text=None,
                gen_len=row.gen_len if row.text is None else int(next(gen_lens)),
                prompt_len=int(self.prompt_lens[row.query]) if row.prompt_len is None else row.prompt_len,
            )
            for row in rows
        ]


def _list(folder: Path) -> tuple[Path, list[Path]]:
    """Return the folder that runs are named within, and the files."""
    if not folder.exists():
        raise FileNotFoundError(f"no generations at {folder}: there is no such file or folder")
    if folder.is_file():
        return folder.parent, [folder]
    files = sorted(folder.rglob("[!.]*.jsonl"))
    if not files:
        raise ValueError(f"no generations in {folder}: wanted .jsonl files, found none")
    return folder, files


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            yield from file
    except OSError as error:
        raise OSError(error.errno, f"cannot read generations ({error.strerror})", str(path)) from error


def _metadata(path: Path) -> Mapping[str, Any]:
    """Return the first line if it is no trial; {} if it is one, or no JSON, which reading it as a trial will tell."""
    try:
        content = parse_object(next(_lines(path), b"{}"))
    except ValueError:
        return {}
    return {} if content.keys() & {"query", "choices", "prediction"} else content


def _settings(
    name: Path, metadata: Mapping[str, Any], given: Mapping[str, str | None], max_gen_len: int, convention: Convention
) -> dict[str, Any]:
    """Return the fields that all traces of a file share."""
    spec = attention_of(name, metadata, convention)
    model = model_of(name, metadata) or given["model"]
    told = {
        "model": model,
        "task": task_of(name, metadata, model) or given["task"],
        "attention": given["attention"] if spec is None else str(spec),
    }
    silent = [field for field, value in told.items() if value is None]
    if silent:
        raise ValueError(
            f"neither the first line nor the file name tells the {' and the '.join(silent)}: left out. "
            f"Give it by {', '.join(f'--{field}' for field in silent)}."
        )
    limit = metadata.get("gen_len", metadata.get("max_gen_len"))
    if limit is not None and (type(limit) is not int or limit < 1):
        raise ValueError(f"gen_len in the first line must be a positive whole number; got {limit!r}")
    return {
        **told,
        "run": name.with_suffix("").as_posix(),
        "weights_hash": "unknown",
        "sampling": _SAMPLING,
        "seed": None,
        "time_s": None,
        "max_gen_len": max_gen_len if limit is None else limit,
    }


def _traces(path: Path, rows: Sequence[PaperRow], settings: Mapping[str, Any], issues: list[PaperIssue]) -> list[Trace]:
    """Return the traces of a file, questions in the order of their names.

    Trials are numbered by the digest of their lines: the release lists them as they finished, short thoughts first, so
    that its own order would make the first trials short ones.
    """
    scale = score_scale(row.score for row in rows if row.score is not None)
    traces = []
    for problem, trials in groupby(sorted(rows, key=lambda row: (row.problem, row.order)), lambda row: row.problem):
        for trial, row in enumerate(trials):
            try:
                traces.append(_trace(row, problem, trial, scale, settings))
            except ValueError as error:
                issues.append(PaperIssue(path=str(path), line=row.number, what=str(error)))
    return traces


def _trace(row: PaperRow, problem: str, trial: int, scale: float, settings: Mapping[str, Any]) -> Trace:
    assert row.prompt_len is not None
    assert row.gen_len is not None
    score = None if row.score is None else float(is_right(row.score, scale))
    limit = settings["max_gen_len"]
    gen_len = row.gen_len if row.output_ids is not None else min(row.gen_len, limit)
    return Trace(
        **settings,
        problem=problem,
        difficulty=row.difficulty,
        trial=trial,
        prompt_ids=row.prompt_ids,
        output_ids=row.output_ids,
        prompt_len=row.prompt_len,
        gen_len=gen_len,
        finish_reason="length" if gen_len >= limit else "unknown",
        answer=row.answer,
        score=score,
        solved_len=gen_len if score == 1.0 else None,
    )


def _describe(path: Path, traces: Sequence[Trace], rows: Sequence[PaperRow]) -> PaperFile:
    first = traces[0]
    num_trials = Counter(trace.problem for trace in traces).values()
    return PaperFile(
        path=str(path),
        task=first.task,
        model=first.model,
        attention=first.attention,
        num_rows=len(traces),
        num_problems=len(num_trials),
        min_trials=min(num_trials),
        max_trials=max(num_trials),
        num_right=sum(trace.score == 1.0 for trace in traces),
        num_ungradable=sum(trace.score is None for trace in traces),
        num_at_limit=sum(trace.finish_reason == "length" for trace in traces),
        num_right_without_answer=sum(trace.score == 1.0 and trace.answer is None for trace in traces),
        num_repeated=len(rows) - len({row.order for row in rows}),
    )
