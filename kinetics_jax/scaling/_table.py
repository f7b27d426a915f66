"""Join what was generated with what it costs: trace tables in, prices and successes of every candidate out."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import jax.numpy as jnp
import numpy as np

from kinetics_jax.cost import Combine, eflops, expected_cost
from kinetics_jax.specs import HardwareSpec, ModelSpec, parse_attention
from kinetics_jax.traces import TraceTable

from ._tradeoff import Candidate, Tradeoff


def tradeoff_table(
    tables: Iterable[TraceTable],
    *,
    models: Mapping[str, ModelSpec],
    hardware: HardwareSpec,
    price: Literal["eflops", "flops"] = "eflops",
    combine: Combine = "add",
    strategy: Literal["long_cot", "best_of_n"] = "long_cot",
    limits: Sequence[int] | None = None,
    trial_counts: Sequence[int] | None = None,
    num_folds: int = 2,
) -> Tradeoff:
    """Price every (model, attention, point) on every problem and count its successes by fold of trials.

    Long-CoT: a point is a length limit n; lengths are truncated at n, a trial is right if its final answer stands
    within n tokens, and Pass@1 scores it. One trace at the longest limit serves all. Best-of-N: a point is a number
    of trials N at full length, scored by Pass@N. A price is the expected one over the lengths sampled in the fold,
    with the candidate's own attention and model.

    Args:
        tables: One table a (model, attention), all on the same problems.
        models: Specs by model name; their order by parameters is the order of the candidates.
        hardware: Sets the arithmetic intensity of eFLOPs.
        price: "eflops" charges memory traffic, "flops" does not.
        combine: How eFLOPs join compute and memory ("add", "max" or a p-norm).
        strategy: "long_cot" or "best_of_n".
        limits: Length limits n of Long-CoT [tokens]; None is half-octave steps down from the longest limit.
        trial_counts: Trials N of Best-of-N; None is the powers of two that fit a fold.
        num_folds: Folds of trials, F; trial r belongs to fold r % F.

    Returns:
        The trade-off, candidates ordered by model size, then as the tables, then by point.

    Raises:
        ValueError: If the tables mix tasks or problems, repeat a (model, attention), or a fold is too small.

    References:
        PAPER.md section 2 (expected cost) and section 3 (estimators).
    """
    ordered = sorted(tables, key=lambda table: models[table.model].num_params)
    require_comparable(ordered, num_folds)
    if strategy == "long_cot":
        points = _length_points(ordered, limits)
    else:
        points = _trial_points(ordered, trial_counts, num_folds)
    blocks = [
        _price_and_count(table, points, models[table.model], hardware, price, combine, num_folds) for table in ordered
    ]
    cost, num_correct, num_trials = (
        jnp.asarray(np.concatenate(arrays, axis=-1), dtype=jnp.float32) for arrays in zip(*blocks, strict=True)
    )
    candidates = tuple(
        Candidate(
            model=table.model, attention=table.attention, gen_len=min(gen_len, table.max_gen_len), num_trials=count
        )
        for table in ordered
        for gen_len, count in points
    )
    return Tradeoff(
        cost=cost,
        num_correct=num_correct,
        num_trials=num_trials,
        k=jnp.asarray([candidate.num_trials for candidate in candidates], dtype=jnp.float32),
        difficulty=jnp.asarray(ordered[0].difficulty, dtype=jnp.int32),
        candidates=candidates,
        problems=ordered[0].problems,
        price=price,
    )


def _price_and_count(
    table: TraceTable,
    points: list[tuple[int, int]],
    model: ModelSpec,
    hardware: HardwareSpec,
    price: Literal["eflops", "flops"],
    combine: Combine,
    num_folds: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return price, right trials and trials of one table, each [F, Q, points]."""
    fold_R = np.arange(table.num_trials) % num_folds
    mask_FQR = table.mask & (fold_R == np.arange(num_folds)[:, None])[:, None, :]
    limit_M111, count_M11 = (np.array(column)[:, None, None] for column in zip(*points, strict=True))
    limit_M111 = limit_M111[..., None]
    shape_MFQR = (len(points), *mask_FQR.shape)
    expected = expected_cost(
        model,
        parse_attention(table.attention),
        prompt_len=table.prompt_len[None, None, :],
        gen_lens=np.broadcast_to(np.minimum(table.gen_len, limit_M111), shape_MFQR),
        mask=np.broadcast_to(mask_FQR, shape_MFQR),
        num_trials=count_M11,
    )
    price_MFQ = np.asarray(eflops(expected, hardware, combine=combine) if price == "eflops" else expected.flops)
    correct_MFQ = (mask_FQR & (table.solved_len <= limit_M111)).sum(-1)
    trials_MFQ = np.broadcast_to(mask_FQR.sum(-1), correct_MFQ.shape)
    return np.moveaxis(price_MFQ, 0, -1), np.moveaxis(correct_MFQ, 0, -1), np.moveaxis(trials_MFQ, 0, -1)


def require_comparable(tables: list[TraceTable], num_folds: int) -> None:
    """Raise ValueError unless the tables are of one task and the same problems, with a trial of each in every fold."""
    if not tables:
        raise ValueError("a trade-off needs at least one trace table; got none. Is the trace folder empty?")
    if num_folds < 2:
        raise ValueError(f"num_folds must be at least 2 (choose on some, score on another); got {num_folds}")
    first, seen = tables[0], set()
    for table in tables:
        name = f"{table.model} {table.attention}"
        if name in seen:
            raise ValueError(f"{name} has two tables. Merge the runs, or pass one of them.")
        seen.add(name)
        if table.task != first.task:
            raise ValueError(f"tables must share one task; got {first.task!r} and {table.task!r} ({name})")
        if table.problems != first.problems:
            raise ValueError(
                f"tables must share their problems; {name} has {len(table.problems)}, {first.model} {first.attention} "
                f"has {len(first.problems)}, or their order differs. Restrict each to the shared ones."
            )
        if smallest_fold([table], num_folds) < 1:
            raise ValueError(
                f"every problem needs a trial in each of {num_folds} folds; {name} lacks one. "
                "Draw more trials, or restrict to the problems that have them."
            )


def smallest_fold(tables: list[TraceTable], num_folds: int) -> int:
    """Return the fewest trials that a problem has in a fold of a table."""
    return int(min(table.mask[:, fold::num_folds].sum(1).min() for table in tables for fold in range(num_folds)))


def _length_points(tables: list[TraceTable], limits: Sequence[int] | None) -> list[tuple[int, int]]:
    """Return (limit, 1) points; without limits, half octaves from the longest limit down to 1/32 of it."""
    longest = min(table.max_gen_len for table in tables)
    if limits is None:
        limits = sorted({max(1, round(longest * 2 ** (-step / 2))) for step in range(11)})
    if not limits:
        raise ValueError("limits must name a length; got an empty list. None takes half octaves.")
    beyond = [limit for limit in limits if not 1 <= limit <= longest]
    if beyond:
        raise ValueError(f"limits must lie within the {longest} tokens that were generated; got {beyond}")
    return [(int(limit), 1) for limit in limits]


def _trial_points(
    tables: list[TraceTable], trial_counts: Sequence[int] | None, num_folds: int
) -> list[tuple[int, int]]:
    """Return (longest full length, N) points; without counts, the powers of two that fit the smallest fold."""
    smallest = smallest_fold(tables, num_folds)
    if trial_counts is None:
        trial_counts = [2**power for power in range(smallest.bit_length())]
    if not trial_counts:
        raise ValueError("trial_counts must name a number of trials; got an empty list. None takes powers of two.")
    too_many = [count for count in trial_counts if not 1 <= count <= smallest]
    if too_many:
        raise ValueError(
            f"trial counts must lie within the {smallest} trials of a fold; got {too_many}. "
            "Draw more trials, or use fewer folds or smaller counts."
        )
    full_len = max(table.max_gen_len for table in tables)
    return [(full_len, int(count)) for count in trial_counts]
