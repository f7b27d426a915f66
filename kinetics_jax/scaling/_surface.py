"""A fitted law of accuracy: smooth in length, trials and KV budget, for each model and problem.

`fit_accuracy_surface` makes one from traces, `optimal_allocation` climbs it. Left out: trials that stop with a wrong
answer (they count as not solved) and what sinks or dense layers add to a budget.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp

from ._setting import Setting

# Lengths enter as multiples of this one: the rate of a trial is then of order one [tokens].
REFERENCE_LEN = 32.0


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class AccuracySurface:
    r"""Hold a law of success: two things happen to a trial, it finds the answer or it loses the way.

    With b = log B - page_slope log P, the logarithm of the effective KV budget:

    ```
    find[q]  = exp(log_rate - difficulty[q]) / (1 + exp(keep_slope (keep_log_len - b)))
    lose     = exp(loss_slope (loss_log_len - b))
    solved   = ceiling find / (find + lose) (1 - exp(-(find + lose) (n / 32)^length_slope))
    accuracy = sum_q weights[q] (1 - (1 - solved[q])^N)
    ```

    Reading less of the cache makes the answer rarer and losing the way likelier. Slopes are not negative, so `solved`
    rises with n and with B, falls with P, and ends below `ceiling` <= 1. A smooth law, not a mechanism: of a window
    that either covers the prompt or does not (local attention) it is a bad picture.

    All leaves of one model, or of many with the models as first axis M. A JAX pytree: `jax.grad` gives derivatives by
    its parameters.

    Attributes:
        log_rate: Logarithm of the rate at which a problem of difficulty 0 is solved, a 32-token clock.
        difficulty: Difficulty of each problem, Q: how much lower its log rate is.
        length_slope: Growth of the log clock with log length; positive.
        keep_slope: Steepness of the rate in log KV budget; not negative.
        keep_log_len: Log KV budget at which half of the rate is kept [log tokens].
        loss_slope: Fall of the log loss with log KV budget; not negative.
        loss_log_len: Log KV budget at which the loss is 1 a 32-token clock [log tokens].
        page_slope: How much a page's log length takes from the log KV budget; not negative.
        ceiling: What accuracy of a single trial cannot pass, in (0, 1].
        weights: Weight of each problem in the mean, Q; they sum to one.
        models: Names, in the order of M.
        problems: Identifiers, in the order of Q.
        method: The attention method that was fitted ("topk", "block_topk", ...).

    Example:
        >>> import jax.numpy as jnp
        >>> surface = AccuracySurface(log_rate=0.0, difficulty=jnp.array([-1.0, 1.0]), length_slope=1.0, keep_slope=1.0,
        ...     keep_log_len=3.0, loss_slope=1.0, loss_log_len=2.0, page_slope=0.0, ceiling=0.9,
        ...     weights=jnp.array([0.5, 0.5]))
        >>> one = Setting(gen_len=64.0, num_trials=1.0, budget_len=256.0, page_len=1.0)
        >>> round(float(surface.accuracy(one)), 3), (100 * surface.coverage(one)).round().tolist()
        (0.659, [88.0, 43.0])

    References:
        PAPER.md section 3 (solving rate within a limit; coverage of N trials).
    """

    log_rate: Any
    difficulty: Any
    length_slope: Any
    keep_slope: Any
    keep_log_len: Any
    loss_slope: Any
    loss_log_len: Any
    page_slope: Any
    ceiling: Any
    weights: Any
    models: tuple[str, ...] = field(default=(), metadata={"static": True})
    problems: tuple[str, ...] = field(default=(), metadata={"static": True})
    method: str = field(default="", metadata={"static": True})

    def solved(self, setting: Setting) -> Any:
        """Return the chance that one trial of one model solves each problem, [Q].

        Args:
            setting: One setting, scalars.
        """
        log_budget = jnp.log(setting.budget_len) - self.page_slope * jnp.log(setting.page_len)
        kept = self.log_rate - jax.nn.softplus(self.keep_slope * (self.keep_log_len - log_budget))
        # What varies over problems is a factor that no setting enters: solvers evaluate this millions of times.
        find = jnp.exp(kept) * jnp.exp(-self.difficulty)
        both = find + jnp.exp(self.loss_slope * (self.loss_log_len - log_budget))
        clock = jnp.exp(self.length_slope * jnp.log(setting.gen_len / REFERENCE_LEN))
        return self.ceiling * (find / both) * (1 - jnp.exp(-both * clock))  # expm1 takes ten times as long on a CPU

    def coverage(self, setting: Setting) -> Any:
        """Return the chance that one of N trials of one model solves each problem, [Q].

        Args:
            setting: One setting, scalars.
        """
        # A trial that cannot fail would make the logarithm infinite and its derivative undefined.
        failed = jnp.log(jnp.maximum(1 - self.solved(setting), 1e-7))
        return 1 - jnp.exp(setting.num_trials * failed)

    def accuracy(self, setting: Setting) -> Any:
        """Return the weighted mean of `coverage` over the problems.

        Args:
            setting: One setting, scalars.
        """
        return (self.weights * self.coverage(setting)).sum()

    def of_model(self, model: str) -> "AccuracySurface":
        """Return the law of one model, without its name: laws that differ in numbers only share compiled programs.

        Raises:
            ValueError: If the model was not fitted.
        """
        if model not in self.models:
            raise ValueError(f"the surface has no model {model!r}. It has {', '.join(self.models) or 'no names'}.")
        at = (*(slice(None),) * (jnp.ndim(self.weights) - 2), self.models.index(model))  # resamples come before models
        return replace(jax.tree.map(lambda leaf: leaf[at], self), models=(), problems=())

    def weighted(self, weights: Any) -> "AccuracySurface":
        """Return the same law averaged over other problems: one grade, one problem, a resample.

        Args:
            weights: New weights, [Q] or of the shape of `weights`; they should sum to one.
        """
        return replace(self, weights=jnp.broadcast_to(weights, jnp.shape(self.weights)))
