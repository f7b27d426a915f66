"""What the host hands to the engine's programs with each call, and gets back; and how it is written.

The page pools stay on the device. All else is small and the host's: it comes with each call, in static shapes.
"""

from collections.abc import Sequence
from typing import NamedTuple, final

import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8, UInt32

from kinetics_jax.attention import SCRATCH_PAGE

from ._pages import Prompt
from ._scheduler import Slot

NO_TOKEN = -1
"""No token is forced here; or none was drawn."""


class PromptChunk(NamedTuple):
    """Hold a chunk of one prompt for each page group.

    Attributes:
        token_ids: Tokens, padded at the end [G, C].
        page_table: Pages of the prompt, as far as the chunk reads or writes [G, M].
        start: Tokens of the prompt already in pages [G].
        num_new: Tokens of the chunk; 0 where a group has no prompt to fill [G].
    """

    token_ids: Int[np.ndarray, "G C"]
    page_table: Int[np.ndarray, "G M"]
    start: Int[np.ndarray, " G"]
    num_new: Int[np.ndarray, " G"]


class Batch(NamedTuple):
    """Hold the sequences of a decode call, a row each; an idle row has the scratch page and nothing active.

    A fresh row begins: its prompt is in pages, its last page is a copy of the prompt's, and its first token is still to
    be drawn, from `hidden`. Any other row has its newest token in `token_ids`, drawn but not yet in the cache.

    Attributes:
        page_table: Pages of each row [B, M].
        lengths: Tokens in the cache [B].
        token_ids: Newest token [B].
        active: Whether the row decodes [B].
        fresh: Whether the row begins [B].
        hidden: Final hidden state of the prompt's last token, of fresh rows [B, D].
        tail_from: Page to copy for a fresh row; the scratch page where there is none [B].
        tail_to: Where it is copied to [B].
        prompt_lens: Tokens of the prompt [B].
        max_gen_lens: Limit on generated tokens [B].
        problem_keys: Key data of each problem [B, 2].
        trials: Number of each trial, folded into its problem's key [B].
        forced: Tokens to take instead of drawing, or `NO_TOKEN`; the first is a fresh row's first token [1 + T, B].
        closed: Whether the thought has ended, for budget forcing [B].
        seen: Packed bits, which tokens the prompt of a fresh row has, for the repetition penalty [B, V / 8 or 0].
    """

    page_table: Int[np.ndarray, "B M"]
    lengths: Int[np.ndarray, " B"]
    token_ids: Int[np.ndarray, " B"]
    active: Bool[np.ndarray, " B"]
    fresh: Bool[np.ndarray, " B"]
    hidden: Float[np.ndarray, "B D"]
    tail_from: Int[np.ndarray, " B"]
    tail_to: Int[np.ndarray, " B"]
    prompt_lens: Int[np.ndarray, " B"]
    max_gen_lens: Int[np.ndarray, " B"]
    problem_keys: UInt32[np.ndarray, "B 2"]
    trials: Int[np.ndarray, " B"]
    forced: Int[np.ndarray, "steps B"]
    closed: Bool[np.ndarray, " B"]
    seen: UInt8[np.ndarray, "B bytes"]


class Drawn(NamedTuple):
    """Hold what a decode call drew; the first row of each is the first token of fresh sequences.

    Attributes:
        token_ids: Tokens, `NO_TOKEN` where a row was not active [1 + T, B].
        log_probs: Their log-probabilities at temperature 1, or zeros [1 + T, B].
    """

    token_ids: Int[Array, "steps B"]
    log_probs: Float[Array, "steps B"]


@final
class CallWriter:
    """Write chunks and batches of fixed shapes; a row without a prompt or a trial has the scratch page alone.

    Args:
        num_steps: Decode steps a call, T.
        max_pages: Pages of the longest sequence, M.
        num_hidden: Width of hidden states, D.
        dtype: Theirs.
        num_remembered: Vocabulary, V, where a repetition penalty wants the tokens of prompts; else 0.
    """

    def __init__(self, *, num_steps: int, max_pages: int, num_hidden: int, dtype: np.dtype, num_remembered: int):
        self._num_steps, self._max_pages = num_steps, max_pages
        self._num_hidden, self._dtype, self._num_remembered = num_hidden, dtype, num_remembered

    def chunk(self, prompts: Sequence[Prompt | None], chunk_len: int, table_width: int) -> PromptChunk:
        """Describe the next chunk of each group's prompt."""
        chunk = PromptChunk(
            token_ids=np.zeros((len(prompts), chunk_len), np.int32),
            page_table=np.full((len(prompts), table_width), SCRATCH_PAGE, np.int32),
            start=np.zeros(len(prompts), np.int32),
            num_new=np.zeros(len(prompts), np.int32),
        )
        for row, prompt in enumerate(prompts):
            if prompt is None:
                continue
            token_ids = prompt.token_ids[prompt.num_filled : prompt.num_filled + chunk_len]
            pages = prompt.pages[:table_width]
            chunk.token_ids[row, : len(token_ids)] = token_ids
            chunk.page_table[row, : len(pages)] = pages
            chunk.start[row], chunk.num_new[row] = prompt.num_filled, len(token_ids)
        return chunk

    def batch(self, slots: Sequence[Slot | None]) -> Batch:
        """Describe the running trials of a lane."""
        batch = self._empty_batch(len(slots))
        for row, slot in enumerate(slots):
            if slot is None:
                continue
            token_ids, is_fresh = slot.trial.token_ids, slot.num_drawn == 0
            batch.page_table[row, : len(slot.pages.pages)] = slot.pages.pages
            batch.lengths[row], batch.active[row], batch.fresh[row] = slot.cache_len, True, is_fresh
            batch.prompt_lens[row], batch.max_gen_lens[row] = slot.prompt_len, slot.trial.max_gen_len
            batch.problem_keys[row], batch.trials[row] = slot.trial.key_data, slot.trial.request.trial
            batch.closed[row] = slot.closed
            # What a preempted trial had said already is said again, not drawn.
            known = token_ids[slot.num_drawn : slot.num_drawn + self._num_steps + is_fresh]
            first = 0 if is_fresh else 1
            batch.forced[first : first + len(known), row] = known
            if not is_fresh:
                batch.token_ids[row] = token_ids[slot.num_drawn - 1]
                continue
            batch.hidden[row] = slot.pages.prompt.hidden
            batch.tail_from[row], batch.tail_to[row] = slot.pages.tail_from, slot.pages.tail_to
            if self._num_remembered:
                holds = np.zeros(self._num_remembered, bool)
                holds[list(slot.trial.request.prompt_ids)] = True
                batch.seen[row] = np.packbits(holds)
        return batch

    def _empty_batch(self, num_rows: int) -> Batch:
        def zeros() -> np.ndarray:
            return np.zeros(num_rows, np.int32)

        return Batch(
            page_table=np.full((num_rows, self._max_pages), SCRATCH_PAGE, np.int32),
            lengths=zeros(),
            token_ids=zeros(),
            active=np.zeros(num_rows, bool),
            fresh=np.zeros(num_rows, bool),
            hidden=np.zeros((num_rows, self._num_hidden), self._dtype),
            tail_from=np.full(num_rows, SCRATCH_PAGE, np.int32),
            tail_to=np.full(num_rows, SCRATCH_PAGE, np.int32),
            prompt_lens=zeros(),
            max_gen_lens=zeros(),
            problem_keys=np.zeros((num_rows, 2), np.uint32),
            trials=zeros(),
            forced=np.full((1 + self._num_steps, num_rows), NO_TOKEN, np.int32),
            closed=np.zeros(num_rows, bool),
            seen=np.zeros((num_rows, -(-self._num_remembered // 8)), np.uint8),
        )
