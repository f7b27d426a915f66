"""Strategies and token sampling as data: how test-time compute is spent, and how a token is drawn."""

import math
from dataclasses import dataclass, fields


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

    The rules apply in this order: repetition penalty, bias, temperature, then top-k, top-p and min-p, each judged on
    the full distribution. Fields that came after the first four are left out of the text form while they rest at
    their defaults, so that what old traces say of themselves stays true.

    Attributes:
        temperature: Divides the logits; 0 takes the largest (greedy).
        top_k: Keep the k most likely tokens; 0 keeps all.
        top_p: Keep the smallest set of most likely tokens whose mass reaches this; 1 keeps all.
        min_p: Drop tokens less likely than this share of the most likely one; 0 drops none.
        repetition_penalty: Divides positive and multiplies negative logits of tokens that prompt or output hold; 1
            does nothing.
        logit_bias: Pairs (token id, added to its logit), ids ascending; -inf rules a token out.

    Raises:
        ValueError: If a value is out of range.

    Example:
        >>> SamplingSpec(temperature=0.6, top_k=20, top_p=0.95)  # the paper's runs
        SamplingSpec(temperature=0.6, top_k=20, top_p=0.95, min_p=0.0)
        >>> SamplingSpec(repetition_penalty=1.1)
        SamplingSpec(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.1)

    References:
        Keskar et al., CTRL (arXiv 1909.05858), section 4.1, for the penalty, which multiplies negative logits as
        transformers does; Nguyen et al., Min-p sampling (arXiv 2407.01082).
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be zero (greedy) or positive; got {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be zero (keep all) or positive; got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1]; got {self.top_p}")
        if not 0 <= self.min_p < 1:
            raise ValueError(f"min_p must lie in [0, 1); got {self.min_p}")
        if not 0 < self.repetition_penalty < math.inf:
            raise ValueError(f"repetition_penalty must be positive, 1 does nothing; got {self.repetition_penalty}")
        ids = [token_id for token_id, _ in self.logit_bias]
        if ids != sorted(set(ids)) or (ids and ids[0] < 0):
            raise ValueError(f"logit_bias wants each token id once, ascending from 0; got the ids {ids}")
        if not all(bias < math.inf for _, bias in self.logit_bias):
            raise ValueError(f"a logit_bias must be a number or -inf; got {self.logit_bias}")

    def __repr__(self) -> str:
        named = [
            f"{field.name}={getattr(self, field.name)!r}"
            for index, field in enumerate(fields(self))
            if index < _NUM_FIRST_FIELDS or getattr(self, field.name) != field.default
        ]
        return f"SamplingSpec({', '.join(named)})"


_NUM_FIRST_FIELDS = 4
"""Fields of `SamplingSpec` that its text form always names."""


def _require_at_least_one(field: str, count: int) -> None:
    if count < 1:
        raise ValueError(f"{field} must be at least 1; got {count}")
