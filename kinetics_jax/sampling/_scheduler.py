"""Which trial runs where and when: queues, slots, admission by room, preemption. On the host, between device calls.

Called by the engine. A trial is admitted when a slot of its attention is free and its prompt is in pages; pages follow
as it grows. When they run out, the trial admitted last gives up its pages, waits at the front of its queue, and is
computed anew from its prompt and the tokens it already has. The trial admitted first never waits, so all end. Among
those that wait, the one asked first goes first, whichever queue it is in: nobody takes the pages that it waits for.
"""

import itertools
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import UInt32

from kinetics_jax.specs import AttentionSpec

from ._pages import PageGroup, Prompt, TrialPages
from ._request import Request
from ._stopping import RepetitionWatch


@dataclass(kw_only=True, eq=False)
class Trial:
    """Hold a request on its way.

    Attributes:
        request: What was asked.
        key_data: Raw key of its problem.
        max_gen_len: Limit on its tokens, that of budget forcing included [tokens].
        watch: Looks for loops in what it says, or None.
        num_watched: Tokens that it has looked at.
        token_ids: Tokens drawn so far.
        log_probs: Their log-probabilities, where they are kept.
        time_s: Its share of the time so far [s].
        num_preemptions: How often it lost its pages.
        ticket: Number of its submission.
    """

    request: Request
    key_data: UInt32[np.ndarray, " 2"]
    max_gen_len: int
    watch: RepetitionWatch | None = None
    num_watched: int = 0
    token_ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    time_s: float = 0.0
    num_preemptions: int = 0
    ticket: int = 0


@dataclass(kw_only=True, eq=False)
class Slot:
    """Hold a running trial: a row of the batch.

    Attributes:
        trial: What runs.
        pages: Its pages.
        group: Whose pages those are.
        order: Number of its admission; later ones are preempted first.
        num_drawn: Its tokens that are drawn in this run; fewer than the trial has while it is computed anew.
        closed: Whether the thought has ended, for budget forcing.
    """

    trial: Trial
    pages: TrialPages
    group: PageGroup
    order: int
    num_drawn: int = 0
    closed: bool = False

    @property
    def prompt_len(self) -> int:
        """Tokens of the prompt."""
        return len(self.trial.request.prompt_ids)

    @property
    def cache_len(self) -> int:
        """Tokens in the cache: all but the newest one drawn."""
        return self.prompt_len + max(self.num_drawn - 1, 0)


class Lane:
    """Hold the slots and the queue of one attention spec; the first slots belong to the first page group.

    Args:
        attention: What its decode program reads.
        num_slots: Rows of its batch, B.
        groups: The page groups, which all lanes share.
    """

    def __init__(self, attention: AttentionSpec, *, num_slots: int, groups: Sequence[PageGroup]):
        self.attention = attention
        self.waiting: deque[Trial] = deque()
        self.slots: list[Slot | None] = [None] * num_slots
        self._groups = groups

    @property
    def running(self) -> Iterator[Slot]:
        """The slots in use."""
        return (slot for slot in self.slots if slot is not None)

    def free_row(self, group: PageGroup) -> int | None:
        """Return a row without a trial among those of a page group."""
        per_group = len(self.slots) // len(self._groups)
        first = self._groups.index(group) * per_group
        return next((row for row in range(first, first + per_group) if self.slots[row] is None), None)


class Scheduler:
    """Move trials from queues to slots and back.

    Args:
        attentions: The attention specs, a lane each.
        num_slots: Rows of each lane's batch.
        groups: The page groups.
        num_steps: Decode steps a call: pages are reserved so far ahead.
    """

    def __init__(
        self, attentions: Sequence[AttentionSpec], *, num_slots: int, groups: Sequence[PageGroup], num_steps: int
    ):
        self.groups = groups
        self.lanes = {spec: Lane(spec, num_slots=num_slots, groups=groups) for spec in attentions}
        self.num_preemptions = 0
        self._num_steps = num_steps
        self._tickets, self._orders = itertools.count(), itertools.count()
        self._num_pending: Counter[tuple[int, ...]] = Counter()

    @property
    def is_idle(self) -> bool:
        """Whether no trial waits or runs."""
        return not self._num_pending

    @property
    def num_running(self) -> int:
        """Trials in slots."""
        return sum(1 for lane in self.lanes.values() for _ in lane.running)

    @property
    def num_waiting(self) -> int:
        """Trials in queues."""
        return sum(len(lane.waiting) for lane in self.lanes.values())

    def submit(self, trial: Trial) -> None:
        """Queue a trial."""
        trial.ticket = next(self._tickets)
        self._num_pending[trial.request.prompt_ids] += 1
        self.lanes[trial.request.attention].waiting.append(trial)

    def admit(self) -> None:
        """Fill free slots with trials whose prompts are in pages, and start the next prompt of each group."""
        for group in self.groups:
            lanes = list(self.lanes.values())
            while lanes := [lane for lane in lanes if lane.waiting and lane.free_row(group) is not None]:
                lane = min(lanes, key=lambda lane: lane.waiting[0].ticket)
                prompt_ids = lane.waiting[0].request.prompt_ids
                prompt = group.prompt(prompt_ids)
                if prompt is not None:
                    has_room = self._admit_next(lane, group, prompt)
                else:
                    lanes.remove(lane)  # until its prompt is in pages
                    has_room = group.filling is not None or group.start_prompt(prompt_ids)
                if not has_room:
                    break

    def reserve(self, lane: Lane) -> None:
        """Give every running trial of a lane the pages of its next steps, oldest first; preempt the newest for it."""
        for slot in sorted(lane.running, key=lambda slot: slot.order):
            while slot in lane.slots and not slot.group.grow_trial(slot.pages, self._reserved_len(slot)):
                if not slot.group.cancel_prompt():
                    self._preempt_newest(slot.group)

    def finish(self, lane: Lane, slot: Slot) -> None:
        """Take a trial that has ended out of its slot."""
        self._vacate(lane, slot)
        prompt_ids = slot.trial.request.prompt_ids
        self._num_pending[prompt_ids] -= 1
        if not self._num_pending[prompt_ids]:
            del self._num_pending[prompt_ids]
            for group in self.groups:
                group.drop_prompt(prompt_ids)

    def start_over(self) -> None:
        """Send every running trial back to the front of its queue, as preempted, and forget what pages hold."""
        for lane in self.lanes.values():
            for slot in sorted(lane.running, key=lambda slot: slot.order, reverse=True):
                self._send_back(lane, slot)
        for group in self.groups:
            group.forget_all()

    def _admit_next(self, lane: Lane, group: PageGroup, prompt: Prompt) -> bool:
        trial, row = lane.waiting[0], lane.free_row(group)
        assert row is not None, "a lane without a free row admits nobody"
        # A trial that was preempted waits until there is room for all it had, lest it be preempted again at once.
        ahead = min(len(trial.token_ids) + self._num_steps, trial.max_gen_len)
        pages = group.start_trial(prompt, len(prompt.token_ids) + ahead)
        if pages is None:
            return False
        lane.waiting.popleft()
        lane.slots[row] = Slot(trial=trial, pages=pages, group=group, order=next(self._orders))
        return True

    def _reserved_len(self, slot: Slot) -> int:
        """Return the tokens that the cache may hold after the next call; a stopped row writes one place further."""
        last = slot.prompt_len + slot.trial.max_gen_len
        return min(slot.cache_len + self._num_steps, last)

    def _preempt_newest(self, group: PageGroup) -> None:
        running = [(slot, lane) for lane in self.lanes.values() for slot in lane.running if slot.group is group]
        slot, lane = max(running, key=lambda each: each[0].order)
        self._send_back(lane, slot)

    def _send_back(self, lane: Lane, slot: Slot) -> None:
        self._vacate(lane, slot)
        slot.trial.num_preemptions += 1
        self.num_preemptions += 1
        lane.waiting.appendleft(slot.trial)

    def _vacate(self, lane: Lane, slot: Slot) -> None:
        slot.group.end_trial(slot.pages)
        lane.slots[lane.slots.index(slot)] = None
