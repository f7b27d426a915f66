"""The same budgets on easy and on hard problems: one curve a stratum."""

from collections.abc import Callable, Collection, Mapping

import numpy as np
from jaxtyping import Array, Float

from ._allocate import allocate
from ._allocation import Allocation
from ._tradeoff import Tradeoff


def by_difficulty(
    tradeoff: Tradeoff,
    budgets: Float[Array, " X"],
    *,
    strata: Mapping[str, Collection[int]] | None = None,
    allocation: Callable[[Tradeoff, Float[Array, " X"]], Allocation] = allocate,
) -> dict[str, Allocation]:
    """Allocate within each stratum of difficulty alone.

    Strata are the grades that came with the problems. Never make them from the trials that are scored: problems that
    were lucky would gather in one stratum, and a method would seem to gain on it.

    Args:
        tradeoff: Prices and successes.
        budgets: Budgets that all strata share [in the price of the tradeoff].
        strata: Grades of difficulty by the name of a stratum; None makes one of each grade, named by it.
        allocation: `allocate` (caps) or `allocate_average`.

    Returns:
        The allocations by stratum, in the order of `strata` or by rising grade.

    Raises:
        ValueError: If a grade is in two strata, or no problem has a grade of a stratum.

    References:
        PAPER.md sections 3 (24 hard, 16 medium, 10 easy problems) and 5 (Fig. 8 by difficulty).
    """
    known = sorted(set(np.asarray(tradeoff.difficulty).tolist()))
    if strata is None:
        strata = {str(grade): [grade] for grade in known}
    grades = [grade for part in strata.values() for grade in part]
    if len(set(grades)) < len(grades):
        raise ValueError(f"a grade belongs to one stratum; got {dict(strata)}")
    curves = {}
    for name, part in strata.items():
        present = [grade for grade in part if grade in known]
        if not present:
            raise ValueError(f"no problem has a difficulty of stratum {name!r} ({list(part)}). In this table: {known}")
        curves[name] = allocation(tradeoff.select(difficulties=present), budgets)
    return curves
