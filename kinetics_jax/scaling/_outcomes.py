"""Traces as a fit reads them: of the trials of each problem, how many were solved in which interval of lengths."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from kinetics_jax.specs import Dense, PageSelection, parse_attention
from kinetics_jax.traces import TraceTable


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """Count the outcomes of M models under C attention specs on Q problems, in I intervals of lengths.

    A spec that a model was not run under has no trials there. Dense attention is the budget that covers the longest
    context, in pages of one token.

    Attributes:
        solved: Trials solved within limit i but not within limit i - 1.
        unsolved: Trials not solved within the last limit: wrong, or cut off (censored).
        budget_len: KV budget of each spec [tokens].
        page_len: Its page [tokens].
        limits: Rising limits [tokens].
        attentions: What the C columns are.
        models: What the M rows are.
        problems: What the Q rows are.
    """

    solved: Any  # [M, C, Q, I]
    unsolved: Any  # [M, C, Q]
    budget_len: Any  # [C]
    page_len: Any  # [C]
    limits: Any  # [I]
    attentions: tuple[str, ...] = field(metadata={"static": True})
    models: tuple[str, ...] = field(metadata={"static": True})
    problems: tuple[str, ...] = field(metadata={"static": True})

    @property
    def num_trials(self) -> Any:
        """Trials, [M, C, Q]."""
        return self.solved.sum(-1) + self.unsolved


def count_outcomes(
    tables: Iterable[TraceTable], limits: Sequence[float] | None, trial_weights: np.ndarray | None = None
) -> Outcomes:
    """Count what became of the trials, `trial_weights` [Q, R] times each; limits None = half octaves.

    Raises:
        ValueError: If there is no table, they mix tasks or problems, repeat a (model, attention), or a limit is out of
            range.
    """
    tables = list(tables)
    _require_one_study(tables)
    models = tuple(dict.fromkeys(table.model for table in tables))
    attentions = tuple(sorted({table.attention for table in tables}, key=lambda text: (_budget(text, np.inf), text)))
    first = tables[0]
    edges = _limits(limits, float(min(table.max_gen_len for table in tables)))
    context_len = float(first.prompt_len.max() + max(table.max_gen_len for table in tables))
    solved = np.zeros((len(models), len(attentions), first.num_problems, edges.size))
    unsolved = np.zeros(solved.shape[:-1])
    for table in tables:
        at = models.index(table.model), attentions.index(table.attention)
        weights = table.mask if trial_weights is None else table.mask * trial_weights
        interval = np.searchsorted(edges, table.solved_len)  # beyond the last limit: not solved
        for i in range(edges.size):
            solved[(*at, slice(None), i)] = ((interval == i) * weights).sum(1)
        unsolved[at] = ((interval == edges.size) * weights).sum(1)
    return Outcomes(
        solved=solved,
        unsolved=unsolved,
        budget_len=np.array([min(_budget(text, context_len), context_len) for text in attentions]),
        page_len=np.array([_page(text) for text in attentions], dtype=float),
        limits=edges,
        attentions=attentions,
        models=models,
        problems=first.problems,
    )


def _budget(attention: str, context_len: float) -> float:
    spec = parse_attention(attention)
    return context_len if isinstance(spec, Dense) else float(spec.budget_len)


def _page(attention: str) -> int:
    spec = parse_attention(attention)
    return spec.page_len if isinstance(spec, PageSelection) else 1


def _limits(limits: Sequence[float] | None, longest: float) -> np.ndarray:
    if limits is None:
        return np.array(sorted({max(1, round(longest * 2 ** (-step / 2))) for step in range(11)}), dtype=float)
    edges = np.asarray(limits, dtype=float)
    if edges.size == 0 or not np.isfinite(edges).all() or not ((edges >= 1) & (edges <= longest)).all():
        raise ValueError(f"limits must be finite and lie within 1..{longest:.0f} tokens; got {edges.tolist()}")
    if not (np.diff(edges) > 0).all():
        raise ValueError(f"limits must rise; got {edges.tolist()}. Sort them.")
    return edges


def _require_one_study(tables: Sequence[TraceTable]) -> None:
    if not tables:
        raise ValueError("a surface needs at least one trace table; got none. Is the trace folder empty?")
    first, seen = tables[0], set()
    for table in tables:
        name = f"{table.model} {table.attention}"
        if name in seen:
            raise ValueError(f"{name} has two tables. Merge the runs, or pass one of them.")
        seen.add(name)
        if table.task != first.task or table.problems != first.problems:
            raise ValueError(
                f"a surface is fitted to one task and the same problems; {name} differs from {first.model} "
                f"{first.attention}. Restrict the tables to what they share."
            )
    methods = {table.attention.partition(":")[0] for table in tables} - {"dense"}
    if len(methods) > 1:
        raise ValueError(
            f"one surface describes one attention method beside dense; got {', '.join(sorted(methods))}. "
            "Fit one surface a method."
        )
