"""`generate`: the same tokens whatever runs beside them, whatever padding, and for every spec that reads everything.

A trained model on prompts of random words, hot enough that its next words are neither certain nor uniform.
"""

from collections import Counter
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kinetics_jax.models import Decoder
from kinetics_jax.sampling import BudgetForcing, Generation, generate
from kinetics_jax.specs import BlockTopK, Local, SamplingSpec, TopK
from kinetics_jax.zoo import load_zoo_model

PROMPT_LEN, GEN_LEN, PAGE_LEN = 10, 12, 4
CONTEXT_LEN = PROMPT_LEN + GEN_LEN
STOP_IDS = (20, 30, 40, 50)
HOT = SamplingSpec(temperature=3.0)
SETTINGS = {"num_trials": 4, "max_gen_len": GEN_LEN, "page_len": PAGE_LEN, "sampling": HOT}
PROMPTS = np.random.default_rng(3).integers(16, 64, (3, PROMPT_LEN))
KEYS = jax.random.split(jax.random.key(5), 3)


@pytest.fixture(scope="module")
def model() -> Decoder:
    return load_zoo_model("Kinetics-Mini-0.1M").model


@pytest.fixture(scope="module")
def num_traces() -> Counter:
    """How often JAX traced, and so compiled, each setting of `sample`."""
    return Counter()


@pytest.fixture(scope="module")
def sample(model: Decoder, num_traces: Counter) -> Callable[..., Generation]:
    """Return `generate` of problem i, jitted once per setting."""

    @cache
    def jitted(**settings: Any) -> Callable[..., Generation]:
        def counted(model: Decoder, prompt: jax.Array, prompt_len: jax.Array, key: jax.Array) -> Generation:
            num_traces[tuple(settings.items())] += 1
            return generate(model, prompt, key, prompt_len=prompt_len, stop_ids=STOP_IDS, **settings)

        return jax.jit(counted)

    def run(i: int = 0, *, prompt: np.ndarray = PROMPTS, prompt_len: int = PROMPT_LEN, **changes: Any) -> Generation:
        settings = SETTINGS | changes
        return jax.device_get(jitted(**settings)(model, jnp.asarray(prompt[i]), jnp.asarray(prompt_len), KEYS[i]))

    return run


def assert_same(one: Generation, other: Generation) -> None:
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_trials_end_at_a_stop_token_or_at_the_limit(sample: Callable):
    trials = [sample(i) for i in range(3)]
    for token_ids, gen_len, stopped in zip(
        *(np.concatenate(field) for field in zip(*trials, strict=True)), strict=True
    ):
        said = token_ids[:gen_len]
        assert not np.isin(said[:-1], STOP_IDS).any()
        assert np.isin(said[-1], STOP_IDS) == stopped
        assert stopped or gen_len == GEN_LEN
        assert (token_ids[gen_len:] == 0).all()
    stopped = np.concatenate([generation.stopped for generation in trials])
    assert stopped.any()
    assert not stopped.all()


def test_trials_and_problems_differ(sample: Callable):
    rows = [tuple(row) for i in range(3) for row in sample(i).token_ids.tolist()]
    assert len(set(rows)) == len(rows)


def test_same_key_same_tokens(sample: Callable):
    assert_same(sample(1), sample(1))


@pytest.mark.parametrize(
    "attention",
    [TopK(budget_len=CONTEXT_LEN), BlockTopK(page_len=PAGE_LEN, num_pages=6), Local(window_len=CONTEXT_LEN)],
    ids=str,
)
def test_budget_of_the_whole_context_gives_the_dense_tokens(attention, sample: Callable):
    for i in range(3):
        assert_same(sample(i, attention=attention), sample(i))


def test_neither_more_trials_nor_other_problems_change_a_trial(model: Decoder, sample: Callable):
    """Two trials of three problems at once say what the first two of four trials say, a problem at a time."""
    draw = partial(generate, stop_ids=STOP_IDS, **SETTINGS | {"num_trials": 2})
    few = jax.device_get(jax.jit(jax.vmap(draw, in_axes=(None, 0, 0)))(model, jnp.asarray(PROMPTS), KEYS))
    for i in range(3):
        assert_same(jax.tree.map(lambda field, i=i: field[i], few), jax.tree.map(lambda field: field[:2], sample(i)))


def test_padding_of_the_prompt_is_never_read(sample: Callable):
    """Neither words nor out-of-range ids behind the prompt's true end change what is said."""
    wanted = sample(0, prompt_len=7)
    for padding in (0, 63, 10**6):
        padded = np.where(np.arange(PROMPT_LEN) < 7, PROMPTS, padding)
        assert_same(sample(0, prompt=padded, prompt_len=7), wanted)
    assert (wanted.token_ids != sample(0).token_ids).any()


def test_decode_loop_compiles_once_for_all_prompts_lengths_and_keys(sample: Callable, num_traces: Counter):
    for i in range(3):
        sample(i, prompt_len=4 + i)
    assert num_traces[tuple(SETTINGS.items())] == 1
    assert set(num_traces.values()) == {1}


def test_greedy_takes_the_largest_logit_of_the_full_forward(model: Decoder, sample: Callable):
    greedy = sample(2, sampling=SamplingSpec(temperature=0.0))
    assert (greedy.token_ids == greedy.token_ids[0]).all()
    said = greedy.token_ids[0, : greedy.gen_len[0]]
    logits = jax.jit(Decoder.__call__)(model, jnp.asarray([[*PROMPTS[2], *said]]))[0, PROMPT_LEN - 1 : -1]
    assert jnp.argmax(logits, axis=-1).tolist() == said.tolist()


def test_budget_forcing_closes_the_thoughts_that_are_still_open(sample: Callable):
    """Before the limit nothing changes; then come the closing and an answer, unless the thought ended by itself."""
    free = sample(1)
    end = int(free.token_ids[1, 2])  # trial 1 ends its thought with its third token
    closing = BudgetForcing(think_len=4, closing_ids=(60, end, 61), end_think_id=end, answer_len=3)
    forced = sample(1, closing=closing)
    assert forced.gen_len.max() == closing.max_gen_len == 10
    num_closed = 0
    for row, trial in enumerate(free.token_ids):
        if end in trial[:4]:
            wanted = trial[:10]
            num_closed += 1
        else:
            wanted = [*trial[:4], 60, end, 61] if free.gen_len[row] > 4 else trial[:4]
        assert forced.token_ids[row, : len(wanted)].tolist() == list(wanted)
    assert 0 < num_closed < len(free.token_ids)


def test_repetition_penalty_remembers_prompt_and_output(model: Decoder, sample: Callable):
    plain = sample(2, sampling=SamplingSpec(temperature=0.0))
    penalised = sample(2, sampling=SamplingSpec(temperature=0.0, repetition_penalty=1.5))
    said = penalised.token_ids[0, : penalised.gen_len[0]]
    assert said.tolist() != plain.token_ids[0, : plain.gen_len[0]].tolist()
    text = np.array([*PROMPTS[2], *said])
    logits = np.array(jax.jit(Decoder.__call__)(model, jnp.asarray(text[None]))[0])
    for place in range(PROMPT_LEN, len(text)):
        row, seen = logits[place - 1], np.unique(text[:place])
        row[seen] = np.where(row[seen] > 0, row[seen] / 1.5, row[seen] * 1.5)
        assert text[place] == np.argmax(row)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_trials": 0}, "num_trials and max_gen_len must be at least 1; got 0 and 12"),
        ({"max_gen_len": -5}, "num_trials and max_gen_len must be at least 1; got 4 and -5"),
        ({"prompt_len": 11}, r"prompt_len must lie in 1\.\.10, the length of prompt_ids; got 11"),
        ({"prompt_len": 0}, r"prompt_len must lie in 1\.\.10, the length of prompt_ids; got 0"),
        ({"page_len": 0}, "page_len must be at least 1; got 0"),
        ({"attention": BlockTopK(page_len=8, num_pages=2)}, "a selection block is a page of the cache"),
    ],
)
def test_bad_settings_are_refused(changes: dict, message: str, model: Decoder):
    settings = SETTINGS | changes
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(partial(generate, stop_ids=(2,), **settings), model, jnp.asarray(PROMPTS[0]), KEYS[0])
