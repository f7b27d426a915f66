"""Ten thousand trials through one engine."""

import gc
from collections.abc import Iterator

import jax
import numpy as np

from kinetics_jax.sampling import Completion, Engine, Request, Stopping
from kinetics_jax.specs import SamplingSpec
from kinetics_jax.zoo import load_zoo_model


def test_ten_thousand_short_trials_leave_nothing_behind(key: jax.Array):
    """A pool of a few sequences: no page leaks, nothing compiles, no array and no prompt stays."""
    engine = Engine(
        load_zoo_model("Kinetics-Mini-0.1M").model,
        sampling=SamplingSpec(temperature=3.0),
        stopping=Stopping(stop_ids=(20, 30)),
        num_slots=32,
        max_len=24,
        num_pages=60,
        page_len=4,
        num_steps=4,
        chunk_len=16,
    )
    engine.warm_up()
    compiled, random = engine.stats.num_compilations, np.random.default_rng(1)

    def requests(num_prompts: int, trials_each: int) -> Iterator[Request]:
        for _ in range(num_prompts):
            prompt = tuple(random.integers(16, 24, int(random.integers(1, 14))).tolist())
            for trial in range(trials_each):
                limit = int(random.integers(1, 7))
                yield Request(prompt_ids=prompt, key=key, trial=trial, max_gen_len=limit)

    def check(said: list[Completion], num_wanted: int) -> int:
        assert len(said) == num_wanted
        assert all(1 <= len(each.token_ids) <= each.request.max_gen_len for each in said)
        del said
        engine.forget_prefixes()
        assert engine.is_idle
        assert engine.stats.num_pages_held == 0
        gc.collect()
        return len(jax.live_arrays())

    num_arrays = check(list(engine.run(requests(20, 25))), 500)
    assert check(list(engine.run(requests(380, 25))), 9_500) == num_arrays
    assert engine.stats.num_compilations == compiled
    assert engine.stats.num_preemptions > 0
