"""Accuracy of each attention method as its KV budget grows, at full length: no prices, no choice, no bias."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from kinetics_jax.specs import Dense, PageSelection, parse_attention
from kinetics_jax.traces import TraceTable

from ._allocation import percentile_interval


@dataclass(frozen=True, kw_only=True)
class MethodPoint:
    """Hold the accuracy of one model under one attention spec.

    Attributes:
        model: Model name.
        method: Attention method ("dense", "topk", "block_topk", "quest", "local").
        options: What follows the method and its budget in the attention's text form ("sinks=4", say).
        budget_len: Tokens read per step, layer and KV head; None for dense.
        page_len: Tokens of a page of block top-k or Quest; None for methods without pages.
        accuracy: Share of right trials (Pass@1 at full length), mean over problems.
        low: Lower end of the 90% bootstrap interval over problems.
        high: Upper end.
        mean_gen_len: Mean generated length [tokens].
    """

    model: str
    method: str
    options: str
    budget_len: int | None
    page_len: int | None
    accuracy: float
    low: float
    high: float
    mean_gen_len: float


def accuracy_by_budget(tables: Iterable[TraceTable], *, seed: int = 0) -> tuple[MethodPoint, ...]:
    """Return one point a table: the accuracy of its model under its attention.

    Args:
        tables: One table a (model, attention).
        seed: Seed of the bootstrap.

    Returns:
        Points in the order of the tables.

    References:
        PAPER.md section 5, Fig. 9.
    """
    points = []
    for table in tables:
        right_Q = _right_share(table)
        low, high = percentile_interval(right_Q[None], level=0.9, num_resamples=1000, seed=seed)
        spec = parse_attention(table.attention)
        points.append(
            MethodPoint(
                model=table.model,
                method=table.attention.partition(",")[0].partition(":")[0],
                options=table.attention.partition(",")[2],
                budget_len=None if isinstance(spec, Dense) else spec.budget_len,
                page_len=spec.page_len if isinstance(spec, PageSelection) else None,
                accuracy=float(right_Q.mean()),
                low=float(low[0]),
                high=float(high[0]),
                mean_gen_len=float(table.gen_len[table.mask].mean()),
            )
        )
    return tuple(points)


@dataclass(frozen=True, kw_only=True)
class PairedGain:
    """Hold the accuracy that one table gains over another on the same problems.

    Attributes:
        gain: Difference of Pass@1 at full length, mean over problems.
        low: Lower end of the paired 90% bootstrap interval over problems.
        high: Upper end.
    """

    gain: float
    low: float
    high: float


def paired_gain(base: TraceTable, other: TraceTable, *, seed: int = 0) -> PairedGain:
    """Return how much more accurate `other` is than `base` at full length, problem by problem.

    Args:
        base: The table to beat.
        other: A table over the same problems.
        seed: Seed of the bootstrap.

    Raises:
        ValueError: If the tables hold different problems.
    """
    if base.problems != other.problems:
        raise ValueError(
            f"a paired gain needs the same problems; got {base.num_problems} and {other.num_problems}, "
            "or another order. Restrict both to the shared ones."
        )
    gain_Q = _right_share(other) - _right_share(base)
    low, high = percentile_interval(gain_Q[None], level=0.9, num_resamples=1000, seed=seed)
    return PairedGain(gain=float(gain_Q.mean()), low=float(low[0]), high=float(high[0]))


def _right_share(table: TraceTable) -> np.ndarray:
    return (table.mask & np.isfinite(table.solved_len)).sum(1) / table.mask.sum(1)
