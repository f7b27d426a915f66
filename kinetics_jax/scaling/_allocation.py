"""What a cap buys: the outcome of `allocate`, and how curves are compared: at equal spending, not at equal cap.

A cap is met on the trials that choose; `spent` is what the held-out ones then cost. Of many candidates some looks
affordable sooner than one does, so two curves at one cap may have paid differently. At equal spending they have not.
"""

from dataclasses import dataclass, field

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from ._tradeoff import Candidate


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Hold the coin that makes an average budget exact: at most one problem a budget is split between two candidates.

    Attributes:
        problem: Row of that problem, -1 where no coin is needed.
        choice: Candidate that the problem gets on heads instead of `Allocation.choice`.
        share: Chance of heads.
    """

    problem: Int[Array, " X"]
    choice: Int[Array, " X"]
    share: Float[Array, " X"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Allocation:
    """Hold what a budget buys, a cap per request or an average. X budgets, Q problems, F folds. A JAX pytree.

    Attributes:
        budgets: Caps on the price of a request, or its means [FLOPs or eFLOPs, see `price`].
        accuracy: Cross-fitted accuracy: chosen on the other folds, scored on the held-out one, averaged.
        naive_accuracy: The paper's estimate: chosen and scored on the same trials; biased upwards.
        spent: Mean held-out price of what was chosen [as `budgets`]; a cap is met on the choosing trials only.
        solved: Cross-fitted accuracy by problem; its mean over problems is `accuracy`.
        paid: Held-out price by problem; its mean over problems is `spent`.
        choice: Candidate chosen on all trials (the one to deploy), -1 where none is affordable.
        fold_choice: Candidate chosen without the fold, -1 where none is affordable.
        candidates: What a choice stands for.
        price: "eflops" or "flops".
        mixture: The coin of an average budget (`allocate_average`) for `choice`; the folds' coins are in the numbers,
            not here. None for caps.
    """

    budgets: Float[Array, " X"]
    accuracy: Float[Array, " X"]
    naive_accuracy: Float[Array, " X"]
    spent: Float[Array, " X"]
    solved: Float[Array, "X Q"]
    paid: Float[Array, "X Q"]
    choice: Int[Array, "X Q"]
    fold_choice: Int[Array, "F X Q"]
    candidates: tuple[Candidate, ...] = field(metadata={"static": True})
    price: str = field(metadata={"static": True})
    mixture: Mixture | None = None

    @property
    def is_average(self) -> bool:
        """Whether the budgets are means over requests rather than caps on each."""
        return self.mixture is not None

    @property
    def is_mixed(self) -> np.ndarray:
        """Whether a coin decides for one problem between two candidates at each budget; [X]. Never under a cap."""
        if self.mixture is None:
            return np.zeros(self.budgets.shape, dtype=bool)
        return np.asarray(self.mixture.problem) >= 0

    @property
    def bias(self) -> Float[Array, " X"]:
        """What the naive estimate adds to the cross-fitted one."""
        return self.naive_accuracy - self.accuracy

    @property
    def is_serving(self) -> np.ndarray:
        """Whether a cap serves half of the requests or more, and spends more than every smaller one; [X].

        Below, a curve is the price of answering few. Where no cap serves half, every one that spends counts.
        """
        spent = np.asarray(self.spent, dtype=np.float64)
        serves = (np.asarray(self.fold_choice) >= 0).mean((0, 2)) >= 0.5
        rises = np.append(True, spent[1:] > np.maximum.accumulate(spent)[:-1])
        return (serves if serves.any() else spent > 0) & rises

    def accuracy_at(self, spending: Float[np.ndarray, " S"]) -> Float[np.ndarray, " S"]:
        """Return the cross-fitted accuracy at given mean spendings, rather than at caps.

        Between two caps the line is what a coin between them buys; nothing spent solves nothing; more than the
        largest cap takes buys no more.

        Args:
            spending: Mean held-out prices of a request [as `spent`].

        Returns:
            Accuracy at each.
        """
        return interpolate(np.asarray(self.spent), np.asarray(self.accuracy), spending)

    def mean_choice(self, what: str) -> np.ndarray:
        """Return the mean of a number of the chosen candidates at each cap, NaN where none is affordable.

        Args:
            what: "gen_len" [tokens], "num_trials", "budget_len" [tokens; dense choices do not count] or "num_tokens"
                (trials times their limit) [tokens].

        Returns:
            Mean over folds and problems, [X].

        Raises:
            ValueError: If `what` is no number of a candidate.
        """
        if what not in ("gen_len", "num_trials", "budget_len", "num_tokens"):
            raise ValueError(f"candidates have no number {what!r}. Known: gen_len, num_trials, budget_len, num_tokens")
        values = [getattr(candidate, what) for candidate in self.candidates]
        number = np.array([np.nan if value is None else value for value in values] + [np.nan])
        chosen = number[np.asarray(self.fold_choice)]  # -1 reads the NaN at the end
        counts = np.isfinite(chosen).sum(axis=(0, 2))
        return np.where(counts > 0, np.nansum(chosen, axis=(0, 2)) / np.maximum(counts, 1), np.nan)

    def interval(
        self, *, level: float = 0.9, num_resamples: int = 1000, seed: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return a bootstrap interval of `accuracy` over problems: percentiles of the mean over resampled problems.

        Trial noise is inside the spread between problems, so resampling the problems covers both.

        Args:
            level: Share of resamples inside the interval.
            num_resamples: Resamples.
            seed: Seed of the resampling; equal seeds give paired intervals on equal problems.

        Returns:
            Lower and upper end, each [X]; NaN where there is one problem only.
        """
        return percentile_interval(np.asarray(self.solved), level=level, num_resamples=num_resamples, seed=seed)


def interpolate(spent: np.ndarray, accuracy: np.ndarray, spending: np.ndarray) -> np.ndarray:
    """Return accuracy [S] at `spending` [S] on the line through (0, 0) and the caps' points [X], by rising cap.

    A cap that spends less than a smaller one does (noise) is left out.
    """
    rises = spent >= np.maximum.accumulate(spent)
    return np.interp(spending, np.append(0.0, spent[rises]), np.append(0.0, accuracy[rises]))


def weighted_accuracy(
    paid_XQ: np.ndarray, solved_XQ: np.ndarray, weights_WQ: np.ndarray, spending: np.ndarray
) -> np.ndarray:
    """Return the accuracy at each spending, [W, S], of the curve that each weighting of the problems makes."""
    pairs = zip(weights_WQ @ paid_XQ.T, weights_WQ @ solved_XQ.T, strict=True)
    return np.stack([interpolate(*pair, spending) for pair in pairs])


def resample_weights(num_problems: int, *, num_resamples: int, seed: int) -> np.ndarray:
    """Return the weight of each problem in each bootstrap resample, [num_resamples, Q]; rows sum to one."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(num_problems, np.full(num_problems, 1 / num_problems), size=num_resamples) / num_problems


def percentile_interval(
    values: np.ndarray, *, level: float, num_resamples: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return percentiles of the mean of `values` [X, Q] over resampled problems, as `percentiles`."""
    weights = resample_weights(values.shape[1], num_resamples=num_resamples, seed=seed)
    return percentiles(weights @ values.T, level=level, num_problems=values.shape[1])


def percentiles(resampled: np.ndarray, *, level: float, num_problems: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of what `level` of the resamples [W, ...] hold; NaN for one problem: it says nothing of others.

    Raises:
        ValueError: If the level is out of range.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1); got {level}. Use 0.9 for 90 %.")
    low, high = map(np.asarray, np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2], axis=0))
    return (low, high) if num_problems > 1 else (np.full_like(low, np.nan), np.full_like(high, np.nan))
