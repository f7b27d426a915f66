"""Do problems with short thoughts want more trials? Mean length against the best number of trials."""

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from kinetics_jax.cost import Combine
from kinetics_jax.specs import HardwareSpec, ModelSpec
from kinetics_jax.traces import TraceTable

from ._allocate import allocate
from ._allocation import resample_weights
from ._table import tradeoff_table


class LengthTrials(NamedTuple):
    """Hold the problems' points and how they rank together.

    Attributes:
        points: Mean generated length [tokens] and best number of trials, one row a fold and problem.
        rho: Spearman's rank correlation of the two within a fold, mean over folds; NaN where one of them never varies.
        interval: Bootstrap interval of `rho` over problems, lower and upper end.
    """

    points: Float[np.ndarray, "P 2"]
    rho: float
    interval: tuple[float, float]


def length_trials_correlation(
    tables: Iterable[TraceTable],
    budget: float,
    *,
    models: Mapping[str, ModelSpec],
    hardware: HardwareSpec,
    price: Literal["eflops", "flops"] = "eflops",
    combine: Combine = "add",
    price_over: Literal["difficulty", "problem"] = "problem",
    level: float = 0.9,
    num_resamples: int = 1000,
    seed: int = 0,
) -> LengthTrials:
    """Rank problems by mean length and by the number of trials that Best-of-N spends on them under a cap.

    The paper reads both off the same trials, and there they are tied together whatever the problem is: trials that
    happen to be short also leave room for more of them. Here a number of trials, chosen without a fold, meets the
    lengths *in* that fold, of the table that was chosen. Points are never averaged over folds: each fold's lengths
    would then meet the number that they themselves chose. Problems for which nothing is affordable, or that no trial
    solves, have no best number and are left out.

    Args:
        tables: One table a (model, attention) of one model, all on the same problems.
        budget: Cap on the price of a request [in `price`].
        models: Specs by model name.
        hardware: Sets the arithmetic intensity of eFLOPs.
        price: As in `tradeoff_table`.
        combine: As in `tradeoff_table`.
        price_over: As in `allocate`; "problem" lets the cap act on each problem's own lengths, as in the paper.
        level: Coverage of the interval.
        num_resamples: Bootstrap draws.
        seed: Seed of the bootstrap.

    Returns:
        Points, rank correlation and interval.

    Raises:
        ValueError: If the tables do not fit together, or fewer than three problems are left.

    References:
        PAPER.md section 5, Fig. 24.
    """
    tables = list(tables)
    tradeoff = tradeoff_table(
        tables, models=models, hardware=hardware, price=price, combine=combine, strategy="best_of_n"
    )
    bought = allocate(tradeoff, jnp.asarray([budget], dtype=jnp.float32), price_over=price_over)
    choice_FQ = np.asarray(bought.fold_choice)[:, 0]
    place = {(table.model, table.attention): index for index, table in enumerate(tables)}
    mean_len_FTQ = np.stack(
        [[_mean_len(table, fold, len(choice_FQ)) for table in tables] for fold in range(len(choice_FQ))]
    )
    table_C = np.array([place[candidate.model, candidate.attention] for candidate in tradeoff.candidates])
    count_C = np.array([candidate.num_trials for candidate in tradeoff.candidates])
    is_kept = (choice_FQ >= 0).all(0) & (np.asarray(tradeoff.num_correct).sum((0, 2)) > 0)
    if is_kept.sum() < 3:
        raise ValueError(
            f"a rank correlation needs three problems that are affordable and solved; got {is_kept.sum()} at a cap of "
            f"{budget:.3g}. Raise the cap."
        )
    kept_FP = choice_FQ[:, is_kept]
    fold_F1, row_P = np.arange(len(kept_FP))[:, None], np.flatnonzero(is_kept)
    points_FP2 = np.stack([mean_len_FTQ[fold_F1, table_C[kept_FP], row_P], count_C[kept_FP]], axis=-1)
    counts = resample_weights(len(row_P), num_resamples=num_resamples, seed=seed) * len(row_P)
    drawn = [_mean_correlation(np.repeat(points_FP2, np.rint(count).astype(int), axis=1)) for count in counts]
    finite = np.array(drawn)[np.isfinite(drawn)]
    tail = (1 - level) / 2
    low, high = np.quantile(finite, [tail, 1 - tail]) if finite.size else (np.nan, np.nan)
    return LengthTrials(
        points=points_FP2.reshape(-1, 2), rho=_mean_correlation(points_FP2), interval=(float(low), float(high))
    )


def _mean_len(table: TraceTable, fold: int, num_folds: int) -> np.ndarray:
    """Return each problem's mean length over the trials of a fold [tokens]."""
    mask = table.mask[:, fold::num_folds]
    return np.where(mask, table.gen_len[:, fold::num_folds], 0).sum(1) / mask.sum(1)


def _mean_correlation(points_FP2: np.ndarray) -> float:
    return float(np.mean([_rank_correlation(points) for points in points_FP2]))


def _rank_correlation(points: np.ndarray) -> float:
    """Return the correlation of the ranks of the two columns, ties sharing their mean rank."""
    ranks = []
    for column in points.T:
        _, inverse, count = np.unique(column, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(count) - (count + 1) / 2)[inverse])
    centred = np.array(ranks) - np.mean(ranks, axis=1, keepdims=True)
    spread = np.sqrt((centred**2).sum(1).prod())
    return float((centred[0] * centred[1]).sum() / spread) if spread > 0 else float("nan")
