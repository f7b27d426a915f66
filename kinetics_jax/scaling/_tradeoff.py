"""What can be bought for a request: the candidates, their prices and their successes, split into folds of trials.

`tradeoff_table` builds one from traces; `allocate` chooses in it. It holds counts, not traces, so that every
choice below is arithmetic on small arrays.
"""

from collections.abc import Collection
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from kinetics_jax.specs import Dense, parse_attention


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Name one way of answering a request.

    Attributes:
        model: Model name.
        attention: Text form of the attention spec (`dense`, `topk:64`, ...).
        gen_len: Limit n on the generated tokens of a trial.
        num_trials: Trials, N (1 for Long-CoT).

    Example:
        >>> Candidate(model="Qwen3-8B", attention="block_topk:8x4", gen_len=256, num_trials=2).budget_len
        32
    """

    model: str
    attention: str
    gen_len: int
    num_trials: int

    @property
    def num_tokens(self) -> int:
        """Tokens that all trials together may generate: trials times their limit."""
        return self.num_trials * self.gen_len

    @property
    def method(self) -> str:
        """The attention method without its budget: dense, topk, block_topk or local."""
        return self.attention.partition(":")[0]

    @property
    def budget_len(self) -> int | None:
        """Tokens read per step, layer and KV head, B; None reads all."""
        spec = parse_attention(self.attention)
        return None if isinstance(spec, Dense) else spec.budget_len


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Tradeoff:
    """Hold price and successes of every candidate on every problem, per fold of trials.

    F folds, Q problems, C candidates. Trial r belongs to fold r % F in *every* table: trials that shared random
    numbers across attention methods stay on one side of the split. A JAX pytree.

    Attributes:
        cost: Price of a request [FLOPs or eFLOPs, see `price`], from the lengths sampled in the fold.
        num_correct: Right trials in the fold.
        num_trials: Trials in the fold.
        k: Trials a candidate spends; it is scored by Pass@k.
        difficulty: Difficulty of each problem.
        candidates: What the C columns are.
        problems: What the Q rows are.
        price: "eflops" or "flops".
    """

    cost: Float[Array, "F Q C"]
    num_correct: Float[Array, "F Q C"]
    num_trials: Float[Array, "F Q C"]
    k: Float[Array, " C"]
    difficulty: Int[Array, " Q"]
    candidates: tuple[Candidate, ...] = field(metadata={"static": True})
    problems: tuple[str, ...] = field(metadata={"static": True})
    price: str = field(metadata={"static": True})

    @property
    def models(self) -> tuple[str, ...]:
        """Model names, in the order of the candidates."""
        return tuple(dict.fromkeys(candidate.model for candidate in self.candidates))

    @property
    def methods(self) -> tuple[str, ...]:
        """Attention methods, in the order of the candidates."""
        return tuple(dict.fromkeys(candidate.method for candidate in self.candidates))

    @property
    def mean_cost(self) -> Float[Array, "Q C"]:
        """Price from the lengths of all trials; folds weigh by their trials."""
        return (self.cost * self.num_trials).sum(0) / self.num_trials.sum(0)

    def select(
        self,
        *,
        models: Collection[str] | None = None,
        methods: Collection[str] | None = None,
        difficulties: Collection[int] | None = None,
    ) -> "Tradeoff":
        """Return the part with these models, attention methods and problem difficulties; None keeps all.

        Args:
            models: Model names.
            methods: Attention methods ("dense", "topk", "block_topk", "local").
            difficulties: Difficulties of the problems.

        Raises:
            ValueError: If a name is not in the table, or nothing is left.
        """
        _require_known("models", models, self.models)
        _require_known("methods", methods, self.methods)
        _require_known("difficulties", difficulties, sorted(set(np.asarray(self.difficulty).tolist())))
        columns = [
            index
            for index, candidate in enumerate(self.candidates)
            if (models is None or candidate.model in models) and (methods is None or candidate.method in methods)
        ]
        if not columns:
            raise ValueError(f"no candidate has a model of {models} and a method of {methods}. Run them first.")
        if difficulties is not None and not difficulties:
            raise ValueError("no problem has one of no difficulties; got an empty list. None keeps all.")
        rows = [
            index
            for index, level in enumerate(np.asarray(self.difficulty).tolist())
            if difficulties is None or level in difficulties
        ]
        return self._part(np.asarray(rows), np.asarray(columns))

    def take(self, rows: Int[np.ndarray, " R"]) -> "Tradeoff":
        """Return the problems at these rows, in this order; a row may repeat, as in a bootstrap.

        Args:
            rows: Rows of the problems.
        """
        return self._part(rows, np.arange(len(self.candidates)))

    def _part(self, rows: np.ndarray, columns: np.ndarray) -> "Tradeoff":
        grid = np.ix_(np.arange(self.cost.shape[0]), rows, columns)
        return replace(
            self,
            cost=_take(self.cost, grid),
            num_correct=_take(self.num_correct, grid),
            num_trials=_take(self.num_trials, grid),
            k=_take(self.k, columns),
            difficulty=_take(self.difficulty, rows),
            candidates=tuple(self.candidates[index] for index in columns),
            problems=tuple(self.problems[index] for index in rows),
        )

    def budget_grid(self, num_budgets: int = 96) -> Float[Array, " X"]:
        """Return log-spaced caps from the cheapest candidate on any problem to where everything is affordable.

        Args:
            num_budgets: Number of caps, X, at least 2.

        Raises:
            ValueError: If there are fewer, or a price is not positive.
        """
        if num_budgets < 2:
            raise ValueError(f"num_budgets must be at least 2; got {num_budgets}")
        cost = np.asarray(self.cost, dtype=np.float64)
        if not cost.min() > 0:
            raise ValueError(f"a grid of caps needs positive prices; got {cost.min()}. Did a trial generate nothing?")
        # The margin keeps rounding from leaving the dearest candidate just above the last cap.
        return jnp.asarray(np.geomspace(cost.min(), 1.001 * cost.max(), num_budgets), dtype=jnp.float32)


def _require_known(what: str, wanted: Collection[object] | None, known: Collection[object]) -> None:
    unknown = [name for name in wanted or () if name not in known]
    if unknown:
        raise ValueError(f"unknown {what} {unknown}. In this table: {list(known)}")


def _take(array: Array, index: tuple[np.ndarray, ...] | np.ndarray) -> Array:
    """Index in NumPy: in JAX each new shape would compile."""
    return jnp.asarray(np.asarray(array)[index])
