"""Studies in which nothing is to be gained: six "sparse" methods that are dense under other names."""

from dataclasses import replace
from functools import lru_cache

import jax.numpy as jnp
import numpy as np

from kinetics_jax.scaling import Allocation, Tradeoff, tradeoff_table
from kinetics_jax.specs import HARDWARE, MODELS
from tests.scaling.synthetic import DIFFICULTIES, MODEL_NAMES, synthetic_tables

NUM_STUDIES, NUM_PROBLEMS = 32, 80


@lru_cache(maxsize=1)
def null_studies() -> tuple[Tradeoff, Tradeoff]:
    """Return dense attention and its six copies in 32 studies of 80 problems and 16 trials, as recorded.

    Budgets beyond the context are dense exactly, prices included. The studies lie behind each other in one table; each
    has grades of difficulty of its own, so that no price is shared between studies.
    """
    attentions = ("dense", *(f"topk:{budget}" for budget in range(512, 518)))
    base = synthetic_tables(
        models=MODEL_NAMES[1:2],
        attentions=("dense",) * len(attentions),
        num_problems=NUM_STUDIES * NUM_PROBLEMS,
        num_trials=16,
    )
    limits = [8, 11, 16, 23, 32, 45, 64, 91, 128, 256]
    tables = [replace(table, attention=attention) for table, attention in zip(base, attentions, strict=True)]
    whole = tradeoff_table(tables, models=MODELS, hardware=HARDWARE["H100-SXM"], limits=limits)
    study = np.repeat(np.arange(NUM_STUDIES), NUM_PROBLEMS)
    whole = replace(whole, difficulty=jnp.asarray(np.asarray(whole.difficulty) + 2 * max(DIFFICULTIES) * study))
    return whole.select(methods=["dense"]), whole.select(methods=["topk"])


def rows_of(study: int) -> np.ndarray:
    return np.arange(study * NUM_PROBLEMS, (study + 1) * NUM_PROBLEMS)


def study_of(allocation: Allocation, study: int) -> Allocation:
    """Return what `allocation`, made with prices of each study's own, is on the problems of one study."""
    solved, paid = (np.asarray(numbers)[:, rows_of(study)] for numbers in (allocation.solved, allocation.paid))
    return replace(
        allocation,
        accuracy=jnp.asarray(solved.mean(1)),
        spent=jnp.asarray(paid.mean(1)),
        solved=jnp.asarray(solved),
        paid=jnp.asarray(paid),
        choice=jnp.asarray(np.asarray(allocation.choice)[:, rows_of(study)]),
        fold_choice=jnp.asarray(np.asarray(allocation.fold_choice)[:, :, rows_of(study)]),
    )
