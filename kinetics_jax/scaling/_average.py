"""The best use of an average budget: some requests may cost more if others cost less.

A cap per request (`allocate`, the paper's) leaves money unspent on easy problems. A server pays for the mean.
"""

from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kinetics_jax.accuracy import pass_at_k

from ._allocate import require_budgets, require_folds
from ._allocation import Allocation, Mixture
from ._hull import Spending, spend_exactly
from ._tradeoff import Tradeoff

_TIE_WEIGHT = 1e-4
"""Weight of all problems' trials in a choice: below a step of one problem's own, so that it decides ties only."""
_LEAST_VALUE = 1e-9


def allocate_average(
    tradeoff: Tradeoff,
    mean_budgets: Float[Array | np.ndarray, " X"],
    *,
    value_from: Literal["fit", "problem"] = "fit",
    price_over: Literal["difficulty", "problem"] = "difficulty",
) -> Allocation:
    r"""Spend each mean budget as well as the trials can tell, cross-fitted: exact, by concave hulls merged by slope.

    ```
    choice_{-f} = argmax sum_q v[q, c_q]   subject to   mean_q price[q, c_q] <= budget
    price       as in `allocate`, from the trials outside fold f;  v = price = 0 for nothing
    v[q, c]     = m[q, c] + b[c] e[q]                                        ("fit"), or p[q, c]  ("problem")
    accuracy[x] = mean_q mean_f pass@k of choice_{-f}[x, q] on fold f;       spent[x] likewise
    ```

    With p[q, c] = pass@k_c on the choosing trials, m = its mean over the problems as difficult as q, e[q] = mean_c
    (p - m)[q, c]: how much easier than its level the problem looks, and b[c] = sum_q e (p - m)[:, c] / sum_q e^2.

    With a coin between two candidates of one problem this is the linear program of the multiple-choice knapsack. Its
    optimum takes the segments of the problems' upper concave hulls by falling slope until the money is spent, so at
    most one problem is split (`Allocation.is_mixed`, `Allocation.mixture`).

    **What is unbiased.** As in `allocate`: `accuracy` and `spent` of the choice that those trials make, since they
    come from trials that it has not seen. The budget is met on the choosing trials, `spent` is what the others cost.
    `naive_accuracy` is the optimum of the program on all trials ("problem"): more than any choice can show there.

    **Values.** An average must also tell which problem deserves the money, and a problem's own few trials tell it
    badly: with "problem", six copies of dense attention *lose* up to 9 points to one at equal spending with 8 trials,
    4 with 16 and 2 with 32, for the luckiest of many copies is noise. The fit asks all candidates how hard a problem
    is; copies are then within 0.7 points (8 and 16 trials) and nearly every curve is higher. Use "problem" with many
    trials and where problems differ in which candidate suits them.

    **Ties** go to the candidate that the choosing trials of all problems favour, as in `allocate`, once nothing else
    is left to buy.

    Args:
        tradeoff: Prices and successes by fold, at least 2 folds; prices positive.
        mean_budgets: Mean prices of a request [in the price of the tradeoff], finite, 0 or more, none below the one
            before it.
        value_from: What tells how good a candidate is on a problem, see above.
        price_over: As in `allocate`.

    Returns:
        The allocation at each mean budget, in 32 bits; the program is solved in 64.

    Raises:
        ValueError: If there is one fold only, a fold has fewer trials than a candidate spends, a price is not
            positive, a budget is negative or not finite, or budgets fall.

    Example:
        >>> from kinetics_jax.scaling import Candidate
        >>> tradeoff = Tradeoff(
        ...     cost=jnp.array([[[1.0, 4.0]] * 2] * 2),
        ...     num_correct=jnp.array([[[2.0, 4.0], [0.0, 4.0]]] * 2),
        ...     num_trials=jnp.full((2, 2, 2), 4.0),
        ...     k=jnp.ones(2),
        ...     difficulty=jnp.array([1, 2]),
        ...     candidates=tuple(
        ...         Candidate(model=name, attention="dense", gen_len=8, num_trials=1) for name in ("small", "large")
        ...     ),
        ...     problems=("easy", "hard"),
        ...     price="eflops",
        ... )
        >>> bought = allocate_average(tradeoff, np.array([0.5, 1.5, 2.5, 4.0]))
        >>> [round(share, 3) for share in bought.accuracy.tolist()], bought.is_mixed.tolist()
        ([0.25, 0.5, 0.75, 1.0], [False, True, False, False])

    References:
        PAPER.md section 3 ("C is a cap per request, not an average"); Sinha & Zoltners, The Multiple-Choice Knapsack
        Problem (Operations Research 27, 1979).
    """
    require_folds(tradeoff)
    require_budgets(mean_budgets)
    totals = np.asarray(mean_budgets, dtype=np.float64) * len(tradeoff.problems)
    if (totals < 0).any():
        raise ValueError(f"mean budgets must be 0 or more; got {np.min(mean_budgets):.3g}. Use Tradeoff.budget_grid.")
    cost, num_correct, num_trials = (
        np.asarray(array, dtype=np.float64) for array in (tradeoff.cost, tradeoff.num_correct, tradeoff.num_trials)
    )
    if not (cost > 0).all():
        raise ValueError(f"prices must be positive; got {cost.min()}. Did a trial generate nothing?")
    level = np.asarray(tradeoff.difficulty) if price_over == "difficulty" else np.arange(len(tradeoff.problems))
    k = np.asarray(tradeoff.k)

    kind = np.asarray(tradeoff.difficulty)

    def solve(folds: list[int]) -> tuple[Spending, np.ndarray, np.ndarray]:
        """Return the optimum on the trials of these folds, and the shares and prices it saw."""
        trials = num_trials[folds].sum(0)
        share = _pass_at_k(num_correct[folds].sum(0), trials, k)
        price = _mean_over_level((cost[folds] * num_trials[folds]).sum(0), trials, level)
        value = _fit(share, kind) if value_from == "fit" else share
        return spend_exactly(price, value + _TIE_WEIGHT * share.mean(0), totals), share, price

    everything = list(range(len(cost)))
    whole, share, price = solve(everything)
    folds = [solve([other for other in everything if other != fold])[0] for fold in everything]
    held_out = [_pass_at_k(num_correct[fold], num_trials[fold], k) for fold in everything]
    solved = np.mean([choice.at_choice(value) for choice, value in zip(folds, held_out, strict=True)], axis=0)
    paid = np.mean([choice.at_choice(price) for choice, price in zip(folds, cost, strict=True)], axis=0)
    fold_choice = np.stack([choice.choice for choice in folds])
    return Allocation(
        budgets=_float(mean_budgets),
        accuracy=_float(solved.mean(1)),
        naive_accuracy=_float(spend_exactly(price, share, totals).at_choice(share).mean(1)),
        spent=_float(paid.mean(1)),
        solved=_float(solved),
        paid=_float(paid),
        choice=_int(whole.choice),
        fold_choice=_int(fold_choice),
        candidates=tradeoff.candidates,
        price=tradeoff.price,
        mixture=Mixture(
            problem=_int(whole.mixed_row), choice=_int(whole.mixed_choice), share=_float(whole.mixed_share)
        ),
    )


def _fit(share: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Return v of the docstring; positive, so that ties are still told apart where nothing was solved."""
    mean = _mean_over_level(share, np.ones_like(share), level)
    easiness = (share - mean).mean(1)
    follows = easiness @ (share - mean) / max(easiness @ easiness, _LEAST_VALUE)
    return np.clip(mean + easiness[:, None] * follows, _LEAST_VALUE, 1.0)


def _pass_at_k(num_correct: np.ndarray, num_trials: np.ndarray, k: np.ndarray) -> np.ndarray:
    # Rounded, so that the last digits of single precision break no tie.
    return np.round(np.asarray(pass_at_k(num_correct, num_trials, np.broadcast_to(k, num_trials.shape)), float), 6)


def _mean_over_level(total: np.ndarray, count: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Give each problem the mean over the trials of all problems of its level."""
    _, group = np.unique(level, return_inverse=True)
    sums = np.zeros((2, len(level), total.shape[1]))  # at most as many levels as problems
    np.add.at(sums[0], group, total)
    np.add.at(sums[1], group, count)
    return sums[0, group] / sums[1, group]


def _float(array: Array | np.ndarray) -> Array:
    return jnp.asarray(array, dtype=jnp.float32)


def _int(array: np.ndarray) -> Array:
    return jnp.asarray(array, dtype=jnp.int32)
