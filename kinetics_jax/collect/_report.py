"""What a collection says of itself: before it starts, while it runs, and when it is done."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

Price = Callable[[int, int], float]
"""Cost of one trial of (prompt_len, gen_len) [eFLOP]; made by the caller, since collecting knows no prices."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Tell how far a collection is.

    Attributes:
        num_done: Trials on disk, those of earlier calls included.
        num_total: Trials asked for.
        num_written: Trials that this call has put there.
        num_tokens: Tokens generated since the start, those of trials under way included.
        seconds: Time since the start, compilation included [s].
        eflops: Cost of the trials that this call has written [eFLOP]; None without a price.
    """

    num_done: int
    num_total: int
    num_written: int
    num_tokens: int
    seconds: float
    eflops: float | None = None

    @property
    def tokens_per_s(self) -> float:
        """Tokens generated a second, since the start."""
        return self.num_tokens / self.seconds if self.seconds else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Time that the rest takes at the rate so far [s]; None before the first trial is written."""
        if not self.num_written:
            return None
        return (self.num_total - self.num_done) * self.seconds / self.num_written


@dataclass(frozen=True, kw_only=True)
class CollectReport:
    """Tell what a collection did.

    Attributes:
        run: Name of the run in the traces.
        shard: Where they are.
        num_total: Trials asked for.
        num_there: Of these, trials that were on disk before.
        num_written: Trials sampled and written now.
        num_tokens: Tokens of the trials written now.
        seconds: Time it took, compilation included [s].
        eflops: Cost of the trials written now [eFLOP]; None without a price.
        failed: One sentence for each problem that could not be asked, or whose answer could not be graded, by id. An
            answer that could not be graded is kept with a score of None, for `regrade`.
    """

    run: str
    shard: Path
    num_total: int
    num_there: int
    num_written: int
    num_tokens: int
    seconds: float
    eflops: float | None
    failed: Mapping[str, str]

    @property
    def num_missing(self) -> int:
        """Trials that are still not on disk: those of problems that could not be asked."""
        return self.num_total - self.num_there - self.num_written


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Tell what a collection will take before it starts, thoughts taken to run to their limit.

    Attributes:
        num_total: Trials asked for.
        num_there: Of these, trials on disk already.
        num_trials: Trials to sample.
        num_prompt_tokens: Tokens of the prompts to compute, each once.
        max_tokens: Tokens to generate at most.
        max_eflops: Their cost at most [eFLOP]; None without a price.
        failed: One sentence for each problem that cannot be asked, by id.
    """

    num_total: int
    num_there: int
    num_trials: int
    num_prompt_tokens: int
    max_tokens: int
    max_eflops: float | None
    failed: Mapping[str, str]
