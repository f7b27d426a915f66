"""Strategies and token sampling as data: how test-time compute is spent, and how a token is drawn."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LongCoT:
    """Think once, up to `max_gen_len` tokens; scored by Pass@1.

    Attributes:
        max_gen_len: Limit n on generated tokens.
    """

    max_gen_len: int

    def __post_init__(self) -> None:
        _require_at_least_one("max_gen_len", self.max_gen_len)

    @property
    def num_trials(self) -> int:
        """One."""
        return 1


@dataclass(frozen=True, kw_only=True)
class BestOfN:
    """Draw `num_trials` independent thoughts of one prompt; scored by Pass@N (an oracle picks).

    Attributes:
        num_trials: Trials, N.
        max_gen_len: Limit n on the generated tokens of each.
    """

    num_trials: int
    max_gen_len: int

    def __post_init__(self) -> None:
        _require_at_least_one("num_trials", self.num_trials)
        _require_at_least_one("max_gen_len", self.max_gen_len)


Strategy = LongCoT | BestOfN


@dataclass(frozen=True, kw_only=True)
class SamplingSpec:
    """Describe how the next token is drawn from the logits.

    Attributes:
        temperature: Divides the logits; 0 takes the largest (greedy).
        top_k: Keep the k most likely tokens; 0 keeps all.
        top_p: Keep the smallest set of most likely tokens whose mass reaches this; 1 keeps all.
        min_p: Drop tokens less likely than this share of the most likely one; 0 drops none.

    Raises:
        ValueError: If a value is out of range.

    Example:
        >>> SamplingSpec(temperature=0.6, top_k=20, top_p=0.95)  # the paper's runs
        SamplingSpec(temperature=0.6, top_k=20, top_p=0.95, min_p=0.0)
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ValueError(f"temperature must be zero (greedy) or positive; got {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be zero (keep all) or positive; got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1]; got {self.top_p}")
        if not 0 <= self.min_p < 1:
            raise ValueError(f"min_p must lie in [0, 1); got {self.min_p}")


def _require_at_least_one(field: str, count: int) -> None:
    if count < 1:
        raise ValueError(f"{field} must be at least 1; got {count}")
