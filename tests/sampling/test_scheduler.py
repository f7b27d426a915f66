"""The scheduler alone, no model: who goes first, and which pages stay whose."""

from collections.abc import Iterable

import jax
import numpy as np

from kinetics_jax.sampling import Request
from kinetics_jax.sampling._pages import PageGroup
from kinetics_jax.sampling._scheduler import Scheduler, Trial
from kinetics_jax.specs import AttentionSpec, BlockTopK, Dense

PAGE_LEN, NUM_STEPS = 4, 3
SPARSE = BlockTopK(page_len=PAGE_LEN, num_pages=3)
SPECS: tuple[AttentionSpec, ...] = (Dense(), SPARSE)


def ask(attention: AttentionSpec, prompt: Iterable[int]) -> Request:
    return Request(prompt_ids=tuple(prompt), key=jax.random.key(0), trial=0, max_gen_len=14, attention=attention)


def test_the_one_asked_first_goes_first_whichever_its_batch():
    """Its prompt is computed first, and while it waits for room nobody asked later takes pages, or its prompt's."""
    group = PageGroup(5, PAGE_LEN)
    scheduler = Scheduler(SPECS, num_slots=2, groups=[group], num_steps=NUM_STEPS)
    first, second = ask(SPARSE, range(16, 23)), ask(Dense(), range(30, 42))
    for asked in (first, second):
        scheduler.submit(Trial(request=asked, key_data=np.zeros(2, np.uint32), max_gen_len=3))
    scheduler.admit()
    assert group.filling is not None
    assert group.filling.token_ids == first.prompt_ids
    group.filling.num_filled = len(first.prompt_ids)
    group.finish_prompt(np.zeros(4, np.float32))
    taken = group.pool.take(group.pool.num_free)
    scheduler.admit()
    assert scheduler.num_running == 0
    assert group.filling is None
    assert group.prompt(first.prompt_ids) is not None
    group.pool.release(taken)
    scheduler.admit()
    assert [slot.trial.request for slot in scheduler.lanes[SPARSE].running] == [first]


def test_a_prompt_that_nobody_continues_is_given_up_in_every_group():
    """Two groups fill one prompt; its only trial runs, and ends, in the first before the second is done."""
    groups = [PageGroup(8, PAGE_LEN), PageGroup(8, PAGE_LEN)]
    scheduler = Scheduler((Dense(),), num_slots=2, groups=groups, num_steps=NUM_STEPS)
    asked = ask(Dense(), range(16, 23))
    scheduler.submit(Trial(request=asked, key_data=np.zeros(2, np.uint32), max_gen_len=3))
    scheduler.admit()
    assert all(group.filling is not None for group in groups)
    assert groups[0].filling is not None
    groups[0].filling.num_filled = len(asked.prompt_ids)
    groups[0].finish_prompt(np.zeros(4, np.float32))
    scheduler.admit()
    (lane,) = scheduler.lanes.values()
    (slot,) = lane.running
    scheduler.finish(lane, slot)
    assert scheduler.is_idle
    for group in groups:
        group.forget_prefixes()
        assert group.pool.num_held == 0
