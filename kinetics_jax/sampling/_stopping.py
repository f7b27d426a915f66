"""When does a trial end, and how is a long thought brought to its answer? Rules as data, on token ids alone.

Called by `generate` and the engine. A trial ends at a stop token, at its limit of tokens, in a loop of the same words
or at its limit of seconds. Budget forcing does not end it: it closes the thought, so that an answer follows. What the
tokens say follows from the tokens, never from how many of them arrived at once; only seconds depend on the machine.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


@dataclass(frozen=True, kw_only=True)
class Repetition:
    """End a trial whose output has run into a loop.

    The rule holds after n tokens if, for some b up to `block_len`, the last max(window_len, num_repeats b) of them are
    one block of b tokens over and over: token i equals token i - b. The window keeps four equal digits from being a
    loop; the repeats keep a long block that came twice from being one.

    Attributes:
        window_len: Least number of tokens that the repeats must fill [tokens].
        block_len: Longest block that is looked for [tokens].
        num_repeats: Least number of times that the block must have come, at least 2.

    Raises:
        ValueError: If a number is out of range.
    """

    window_len: int = 128
    block_len: int = 64
    num_repeats: int = 4

    def __post_init__(self) -> None:
        for name, least in (("window_len", 2), ("block_len", 1), ("num_repeats", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}; got {getattr(self, name)}")

    def span_len(self, block_len: int) -> int:
        """Return how many tokens repeats of a block of this length must fill [tokens]."""
        return max(self.window_len, self.num_repeats * block_len)


@dataclass(frozen=True, kw_only=True)
class BudgetForcing:
    """Close a thought at its limit and let the answer finish; forced tokens are output and are charged.

    A thought that has not ended after `think_len` tokens is continued by `closing_ids`, and `answer_len` tokens are
    left for the answer. A thought that ended by itself is left alone, and its answer has the rest of `max_gen_len`.

    Attributes:
        think_len: Most tokens of a thought that is not closed yet, its own end not yet drawn [tokens].
        closing_ids: What is appended then, with the end of the thought in it: line break, `</think>`, line break.
        end_think_id: The token that ends a thought.
        answer_len: Most tokens of the answer after a forced closing [tokens].

    Raises:
        ValueError: If a length is below one, or `closing_ids` does not hold `end_think_id`.

    Example:
        >>> BudgetForcing(think_len=1000, closing_ids=(7, 9), end_think_id=9, answer_len=200).max_gen_len
        1202

    References:
        Muennighoff et al., s1: Simple test-time scaling (arXiv 2501.19393), section 3.1: an upper limit on thinking.
    """

    think_len: int
    closing_ids: tuple[int, ...]
    end_think_id: int
    answer_len: int

    def __post_init__(self) -> None:
        if self.think_len < 1 or self.answer_len < 1:
            raise ValueError(f"think_len and answer_len must be at least 1; got {self.think_len}, {self.answer_len}")
        if self.end_think_id not in self.closing_ids:
            raise ValueError(
                f"closing_ids must hold end_think_id={self.end_think_id}, else the thought stays open; "
                f"got {self.closing_ids}"
            )

    @property
    def max_gen_len(self) -> int:
        """Limit on all tokens: the thought, its closing and the answer."""
        return self.think_len + len(self.closing_ids) + self.answer_len


@dataclass(frozen=True, kw_only=True)
class Stopping:
    """Say what ends a trial beside its limit on tokens.

    Attributes:
        stop_ids: Tokens that end it, kept as its last: all end tokens of the model's generation config, which the
            `eos_token_ids` of its tokenizer lists.
        repetition: What counts as a loop; None lets loops run on.
        time_s: Limit on the time spent on the trial [s]; None is no limit.
        closing: Budget forcing; None lets thoughts run on.

    Raises:
        ValueError: If `time_s` is not positive, or the closing holds a stop token.
    """

    stop_ids: tuple[int, ...]
    repetition: Repetition | None = None
    time_s: float | None = None
    closing: BudgetForcing | None = None

    def __post_init__(self) -> None:
        if self.time_s is not None and not self.time_s > 0:
            raise ValueError(f"time_s must be positive, or None for no limit; got {self.time_s}")
        if self.closing is not None and set(self.stop_ids) & set(self.closing.closing_ids):
            raise ValueError(
                "a closing that holds a stop token would end the trial before its answer; got closing_ids="
                f"{self.closing.closing_ids} with stop_ids={self.stop_ids}"
            )


class RepetitionWatch:
    """Follow one output as it grows and find the first length at which it has run into a loop.

    Every window_len / 2 tokens the block lengths b are listed whose last token repeats that of b tokens before; until
    the next list no other can complete a loop, since a loop is longer than that by b. A listed b is dropped at its
    first mismatch, so text that does not repeat costs next to nothing.

    Args:
        rule: What counts as a loop.

    Example:
        >>> watch = RepetitionWatch(Repetition(window_len=4, block_len=2, num_repeats=2))
        >>> watch.extend([1, 2, 3]), watch.extend([2, 3, 5])
        (None, 5)
    """

    def __init__(self, rule: Repetition):
        self._rule = rule
        self._token_ids: list[int] = []
        self._runs: dict[int, int] = {}  # block length b: how many of the newest tokens equal the one b before
        self._fired_len: int | None = None

    def extend(self, token_ids: Iterable[int]) -> int | None:
        """Append tokens and return the length at which the rule first held, counted from the start, or None."""
        for token_id in token_ids:
            if self._fired_len is not None:
                break
            self._append(token_id)
        return self._fired_len

    def _append(self, token_id: int) -> None:
        said, rule = self._token_ids, self._rule
        said.append(token_id)
        if len(said) % (rule.window_len // 2) == 0:
            lengths = range(1, min(rule.block_len, len(said) - 1) + 1)
            self._runs = {b: self._run(b) for b in lengths if said[-1 - b] == token_id}
        elif self._runs:
            self._runs = {b: run + 1 for b, run in self._runs.items() if said[-1 - b] == token_id}
        if any(run + b >= rule.span_len(b) for b, run in self._runs.items()):
            self._fired_len = len(said)

    def _run(self, b: int) -> int:
        """Count the newest tokens that equal the one b before, as far as the rule asks."""
        said, run = self._token_ids, 0
        while run < min(len(said) - b, self._rule.span_len(b)) and said[-1 - run] == said[-1 - run - b]:
            run += 1
        return run


def repetition_len(token_ids: Sequence[int], rule: Repetition) -> int | None:
    """Return the length of the shortest beginning of an output at which the rule holds.

    Args:
        token_ids: The output.
        rule: What counts as a loop.

    Returns:
        Tokens up to and including the one that completes the loop; None where there is none.

    Example:
        >>> repetition_len([5, 1, 2, 1, 2, 1, 2], Repetition(window_len=4, block_len=2, num_repeats=2))
        5
    """
    return RepetitionWatch(rule).extend(token_ids)


def forced_token(gen_len: Int[Array, " B"], closed: Bool[Array, " B"], closing: BudgetForcing) -> Int[Array, " B"]:
    """Return the token that budget forcing puts next, -1 where the model draws.

    Args:
        gen_len: Tokens that each row has generated [B].
        closed: Whether each thought ended by itself, as `thought_closed` says [B].
        closing: The rule (static).

    Returns:
        Token ids or -1 [B].

    Example:
        >>> closing = BudgetForcing(think_len=3, closing_ids=(7, 9), end_think_id=9, answer_len=2)
        >>> forced_token(jnp.array([2, 3, 4, 5, 4]), jnp.array([False, False, False, False, True]), closing).tolist()
        [-1, 7, 9, -1, -1]
    """
    index = gen_len - closing.think_len
    token_ids = jnp.asarray(closing.closing_ids, jnp.int32)
    is_forced = ~closed & (index >= 0) & (index < len(closing.closing_ids))
    return jnp.where(is_forced, token_ids.at[index].get(mode="clip"), -1)


def thought_closed(
    gen_len: Int[Array, " B"], closed: Bool[Array, " B"], token_ids: Int[Array, " B"], closing: BudgetForcing
) -> Bool[Array, " B"]:
    """Return whether each thought has ended by itself, within its limit, once its next token is drawn.

    Args:
        gen_len: Tokens that each row had generated before [B].
        closed: Whether its thought had ended before [B].
        token_ids: The next token of each row [B].
        closing: The rule (static).

    Returns:
        Whether each thought has ended [B]; a forced closing does not count, so that it is written to its end.

    Example:
        >>> closing = BudgetForcing(think_len=3, closing_ids=(7, 9), end_think_id=9, answer_len=2)
        >>> thought_closed(jnp.array([2, 4]), jnp.array([False, False]), jnp.array([9, 9]), closing).tolist()
        [True, False]
    """
    return closed | ((token_ids == closing.end_think_id) & (gen_len < closing.think_len))
