"""Whose pages are whose: prompts that trials share, and the pages that a trial fills itself. Pure Python.

One `PageGroup` a place on the data axis of a mesh, one alone without a mesh.

    prompt of 10 tokens, P = 4        | 0 | 1 | 2. |        held by the prompt while trials of it are to come
    trial 0                           | 0 | 1 |    3  | 5 |   full pages shared, own copy of the tail, new pages
    trial 1                           | 0 | 1 |    4  |
"""

from dataclasses import dataclass, field
from typing import final

import numpy as np
from jaxtyping import Float

from kinetics_jax.attention import SCRATCH_PAGE, PagePool, PrefixCache


@dataclass(kw_only=True, eq=False)
class Prompt:
    """Hold the pages of a prompt.

    Attributes:
        token_ids: Its tokens.
        pages: Its pages in order; the last may be partly filled.
        num_filled: Tokens that are in the pages already.
        hidden: Final hidden state of its last token; None until it is filled.
        num_trials: Trials that run on it now.
    """

    token_ids: tuple[int, ...]
    pages: list[int]
    num_filled: int
    hidden: Float[np.ndarray, " D"] | None = None
    num_trials: int = 0


@dataclass(kw_only=True, eq=False)
class TrialPages:
    """Hold the pages of a trial: those of its prompt, its own copy of the prompt's tail, and what it grew.

    Attributes:
        prompt: The prompt that it continues.
        pages: Its pages in order.
        tail_from: Page of the prompt to copy before the first step; the scratch page if the prompt fills its pages.
        tail_to: The trial's copy.
    """

    prompt: Prompt
    pages: list[int] = field(default_factory=list)
    tail_from: int = SCRATCH_PAGE
    tail_to: int = SCRATCH_PAGE


@final
class PageGroup:
    """Hand out the pages of one group, and take back what nobody needs when they run short.

    Args:
        num_pages: Pages of the group, its scratch page included.
        page_len: Tokens in a page, P.
    """

    def __init__(self, num_pages: int, page_len: int):
        self.pool = PagePool(num_pages)
        self.page_len = page_len
        self.filling: Prompt | None = None
        self._prefixes = PrefixCache(self.pool, page_len=page_len)
        self._prompts: dict[tuple[int, ...], Prompt] = {}

    def prompt(self, token_ids: tuple[int, ...]) -> Prompt | None:
        """Return the prompt if its pages are filled."""
        return self._prompts.get(token_ids)

    def start_prompt(self, token_ids: tuple[int, ...]) -> bool:
        """Give a prompt pages, those of a known prefix first, and fill it next; False if there is no room."""
        assert self.filling is None, "one prompt is filled at a time"
        # The last token is always computed: its hidden state is wanted.
        known = self._prefixes.match(token_ids[:-1])
        self.pool.share(known)
        num_new = self.num_pages_for(len(token_ids)) - len(known)
        if not self._make_room(num_new):
            self.pool.release(known)
            return False
        pages = [*known, *self.pool.take(num_new)]
        self.filling = Prompt(token_ids=token_ids, pages=pages, num_filled=len(known) * self.page_len)
        return True

    def finish_prompt(self, hidden: Float[np.ndarray, " D"]) -> None:
        """Note that the prompt being filled is in its pages: others may share them from now on."""
        prompt = self.filling
        assert prompt is not None
        assert prompt.num_filled == len(prompt.token_ids), "the prompt is not filled yet"
        prompt.hidden, self.filling = hidden, None
        self._prompts[prompt.token_ids] = prompt
        self._prefixes.insert(prompt.token_ids, prompt.pages)

    def cancel_prompt(self) -> bool:
        """Take back the pages of the prompt being filled, if there is one: it is started again later."""
        if self.filling is None:
            return False
        self.pool.release(self.filling.pages)
        self.filling = None
        return True

    def drop_prompt(self, token_ids: tuple[int, ...]) -> None:
        """Forget a prompt that nobody will continue; its full pages stay known until the room is needed."""
        prompt = self._prompts.pop(token_ids, None)
        if prompt is not None:
            self.pool.release(prompt.pages)
        elif self.filling is not None and self.filling.token_ids == token_ids:
            self.cancel_prompt()  # its trials have run in another group

    def forget_prefixes(self) -> None:
        """Free the pages that are known by their tokens alone."""
        self._prefixes.evict(self.pool.num_held)

    def forget_all(self) -> None:
        """Take back the pages of every prompt: what is in them is not known any more. No trial may run."""
        self.cancel_prompt()
        for token_ids in list(self._prompts):
            self.drop_prompt(token_ids)
        self.forget_prefixes()

    def start_trial(self, prompt: Prompt, length: int) -> TrialPages | None:
        """Return pages for a trial of up to `length` tokens, prompt included; None if there is no room."""
        num_shared = len(prompt.token_ids) // self.page_len
        num_own = max(self.num_pages_for(length), len(prompt.pages)) - num_shared
        prompt.num_trials += 1  # before room is made: this prompt must stay
        if not self._make_room(num_own):
            prompt.num_trials -= 1
            return None
        shared, own = prompt.pages[:num_shared], self.pool.take(num_own)
        self.pool.share(shared)
        has_tail = num_shared < len(prompt.pages)
        return TrialPages(
            prompt=prompt,
            pages=[*shared, *own],
            tail_from=prompt.pages[-1] if has_tail else SCRATCH_PAGE,
            tail_to=own[0] if has_tail else SCRATCH_PAGE,
        )

    def grow_trial(self, trial: TrialPages, length: int) -> bool:
        """Give a trial pages for `length` tokens; False if there is no room."""
        num_new = self.num_pages_for(length) - len(trial.pages)
        if num_new > 0:
            if not self._make_room(num_new):
                return False
            trial.pages += self.pool.take(num_new)
        return True

    def end_trial(self, trial: TrialPages) -> None:
        """Take back what a trial holds."""
        self.pool.release(trial.pages)
        trial.pages = []
        trial.prompt.num_trials -= 1

    def num_pages_for(self, length: int) -> int:
        """Return the pages of a sequence [tokens]."""
        return -(-length // self.page_len)

    def num_pages_alone(self, prompt_len: int, max_gen_len: int) -> int:
        """Return the pages that one trial needs when nothing else is there: its own, and its prompt's tail."""
        return self.num_pages_for(prompt_len + max_gen_len) + (prompt_len % self.page_len > 0)

    def _make_room(self, num_pages: int) -> bool:
        """Free pages until so many are free: prefixes without a user first, then prompts between trials."""
        while (missing := num_pages - self.pool.num_free) > 0:
            if self._prefixes.evict(missing):
                continue
            idle = next((prompt for prompt in self._prompts.values() if prompt.num_trials == 0), None)
            if idle is None:
                return False
            self.drop_prompt(idle.token_ids)
        return True
