"""What goes into the engine and what comes out of it."""

from dataclasses import dataclass, field
from typing import Literal

import jax
from jaxtyping import PRNGKeyArray

from kinetics_jax.specs import AttentionSpec, Dense

FinishReason = Literal["eos", "length", "repetition", "time"]
"""A stop token, the limit on tokens, a loop of the same words, the limit on seconds."""

_KEY_IMPL = "threefry2x32"


@dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """Ask for one trial.

    Attributes:
        prompt_ids: Token ids of the prompt. Trials of one prompt share its pages.
        key: The problem's key; the token at position p of the trial is drawn with
            fold_in(fold_in(key, trial), p), as `generate` does.
        trial: Number of the trial within the problem, from 0.
        max_gen_len: Limit on generated tokens, stop token included [tokens].
        attention: Which cache entries a decode step reads; one of those the engine was made for.
        tag: Whatever the caller wants to find again in the completion, a problem's id say.

    Raises:
        ValueError: If the prompt is empty, a count is out of range, or the key is of another kind than
            `jax.random.key(seed)` gives.
    """

    prompt_ids: tuple[int, ...]
    key: PRNGKeyArray
    trial: int = 0
    max_gen_len: int
    attention: AttentionSpec = field(default_factory=Dense)
    tag: object = None

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise ValueError("prompt_ids must hold at least one token; got none")
        if self.trial < 0 or self.max_gen_len < 1:
            raise ValueError(
                f"trial must be at least 0 and max_gen_len at least 1; got {self.trial} and {self.max_gen_len}"
            )
        if jax.random.key_impl(self.key) != _KEY_IMPL:
            raise ValueError(
                f"key must be one of {_KEY_IMPL}; got {jax.random.key_impl(self.key)}. Use jax.random.key(seed)"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class Completion:
    """Hold one finished trial.

    Attributes:
        request: What was asked.
        token_ids: Generated tokens, stop token included.
        finish_reason: Why the trial ended.
        log_probs: Log-probability of each token under the model at temperature 1; None unless the engine keeps them.
        time_s: Time spent on it: its share of every batch it was part of [s].
        num_preemptions: How often it lost its pages to others and was computed anew.
    """

    request: Request
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    log_probs: tuple[float, ...] | None
    time_s: float
    num_preemptions: int


@dataclass(frozen=True, kw_only=True)
class EngineStats:
    """Count what an engine has done.

    Attributes:
        num_tokens: Tokens drawn, each once.
        num_replayed_tokens: Tokens computed anew after a preemption.
        num_prompt_tokens: Prompt tokens computed; those of a shared prefix once.
        num_preemptions: Trials that lost their pages.
        num_pages_held: Pages that running trials and prompts hold now, known prefixes included.
        num_compilations: Programs compiled so far.
        decode_s: Time in decode calls [s].
        prefill_s: Time in prompts [s].
    """

    num_tokens: int
    num_replayed_tokens: int
    num_prompt_tokens: int
    num_preemptions: int
    num_pages_held: int
    num_compilations: int
    decode_s: float
    prefill_s: float
