"""The engine says token for token what `generate` says, whatever runs beside, before, after or instead of a trial.

A trained model on prompts of random words, hot enough that its next words are neither certain nor uniform.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinetics_jax.attention import _decode
from kinetics_jax.models import Decoder
from kinetics_jax.sampling import BudgetForcing, Engine, Repetition, Request, Stopping, generate
from kinetics_jax.specs import AttentionSpec, BlockTopK, Dense, SamplingSpec
from kinetics_jax.zoo import load_zoo_model
from pallas_kernels import block_topk_decode
from pallas_kernels._reference import reference_block_topk_decode

GEN_LEN, PAGE_LEN, NUM_TRIALS, NUM_STEPS = 14, 4, 3, 3
STOP_IDS = (20, 30)
HOT = SamplingSpec(temperature=3.0)
SPARSE = BlockTopK(page_len=PAGE_LEN, num_pages=3)
SPECS: tuple[AttentionSpec, ...] = (Dense(), SPARSE)
MAX_LEN = 28

_words = np.random.default_rng(3).integers(16, 64, (3, 14))
# Lengths before, at and after the end of a page; the last two begin alike, by more than a page.
PROMPTS = [tuple(_words[0, :7].tolist()), tuple(_words[1, :12].tolist()), (*_words[1, :9].tolist(), 17, 18, 19, 21, 22)]
KEYS = list(jax.random.split(jax.random.key(5), 3))

Asked = tuple[AttentionSpec, int, int]
EVERYTHING: list[Asked] = [(spec, at, trial) for spec in SPECS for at in range(3) for trial in range(NUM_TRIALS)]


@pytest.fixture(scope="module")
def model() -> Decoder:
    return load_zoo_model("Kinetics-Mini-0.1M").model


@pytest.fixture(scope="module")
def engine(model: Decoder) -> Engine:
    """One engine for most tests: two batches of two, a prompt in chunks of two pages."""
    engine = Engine(
        model,
        attentions=SPECS,
        sampling=HOT,
        stopping=Stopping(stop_ids=STOP_IDS),
        num_slots=2,
        max_len=MAX_LEN,
        num_steps=NUM_STEPS,
        chunk_len=2 * PAGE_LEN,
        keep_log_probs=True,
    )
    engine.warm_up()
    return engine


@pytest.fixture(scope="module")
def wanted(model: Decoder) -> Callable[[Asked], tuple[int, ...]]:
    @cache
    def run(spec: AttentionSpec) -> Callable:
        settings = {"num_trials": NUM_TRIALS, "max_gen_len": GEN_LEN, "stop_ids": STOP_IDS, "page_len": PAGE_LEN}

        def draw(prompt: jax.Array, prompt_len: jax.Array, key: jax.Array):
            return generate(model, prompt, key, prompt_len=prompt_len, sampling=HOT, attention=spec, **settings)

        return jax.jit(draw)

    @cache
    def trials(spec: AttentionSpec, at: int) -> list[tuple[int, ...]]:
        padded = jnp.asarray(np.pad(np.asarray(PROMPTS[at]), (0, 14 - len(PROMPTS[at]))))
        said = jax.device_get(run(spec)(padded, jnp.asarray(len(PROMPTS[at])), KEYS[at]))
        return [tuple(ids[:num].tolist()) for ids, num in zip(said.token_ids, said.gen_len, strict=True)]

    return lambda asked: trials(asked[0], asked[1])[asked[2]]


def request(asked: Asked) -> Request:
    spec, at, trial = asked
    return Request(prompt_ids=PROMPTS[at], key=KEYS[at], trial=trial, max_gen_len=GEN_LEN, attention=spec, tag=asked)


@contextmanager
def fewer_pages(engine: Engine, num_left: int) -> Iterator[None]:
    """Take pages away, as a smaller pool would: its shape is compiled in."""
    engine.forget_prefixes()
    (group,) = engine._scheduler.groups
    taken = group.pool.take(group.pool.num_free - num_left)
    yield
    group.pool.release(taken)


def assert_empty(engine: Engine) -> None:
    assert engine.is_idle
    engine.forget_prefixes()
    assert engine.stats.num_pages_held == 0


@settings(max_examples=20)
@given(
    order=st.permutations(EVERYTHING),
    num_asked=st.integers(1, len(EVERYTHING)),
    # One sequence needs 7 pages, and one of them twice where the prompt ends within a page.
    num_pages=st.integers(8, 40),
    num_before=st.lists(st.integers(0, 4), max_size=8),
)
def test_no_schedule_changes_what_a_trial_says(
    engine: Engine, wanted: Callable, order: list[Asked], num_asked: int, num_pages: int, num_before: list[int]
):
    """Any order of asking, any time of joining, any scarcity of pages; and nothing compiles, nothing leaks."""
    compiled, said = engine.stats.num_compilations, {}
    with fewer_pages(engine, min(num_pages, engine._scheduler.groups[0].pool.num_free)):
        todo = [request(asked) for asked in order[:num_asked]]
        for num_new in num_before:
            for each in todo[:num_new]:
                engine.submit(each)
            del todo[:num_new]
            said |= {completion.request.tag: completion for completion in engine.step()}
        said |= {completion.request.tag: completion for completion in engine.run(todo)}
    assert {tag: completion.token_ids for tag, completion in said.items()} == {
        asked: wanted(asked) for asked in order[:num_asked]
    }
    for completion in said.values():
        assert completion.finish_reason == ("eos" if completion.token_ids[-1] in STOP_IDS else "length")
    assert engine.stats.num_compilations == compiled == 5  # two first chunks and later ones of two widths, two decodes
    assert_empty(engine)


def test_scarce_pages_preempt_and_lose_nothing(engine: Engine, wanted: Callable):
    before = engine.stats
    with fewer_pages(engine, 11):
        said = {each.request.tag: each for each in engine.run(map(request, EVERYTHING))}
    assert {tag: each.token_ids for tag, each in said.items()} == {asked: wanted(asked) for asked in EVERYTHING}
    num_tokens = sum(len(each.token_ids) for each in said.values())
    assert engine.stats.num_tokens - before.num_tokens == num_tokens  # each counts once
    assert sum(each.num_preemptions for each in said.values()) == engine.stats.num_preemptions - before.num_preemptions
    assert engine.stats.num_preemptions > before.num_preemptions
    assert engine.stats.num_replayed_tokens > before.num_replayed_tokens


def test_bfloat16_says_the_same_from_any_batch():
    """Whatever the batch, the order and the scarcity of pages; chunks and prefixes may round differently, so alike."""
    model = load_zoo_model("Kinetics-Mini-0.1M", dtype=jnp.bfloat16).model
    settings = {"attentions": (SPARSE,), "sampling": HOT, "stopping": Stopping(stop_ids=STOP_IDS), "max_len": MAX_LEN}
    with jax.numpy_dtype_promotion("standard"):  # jax.nn.dot_product_attention widens bfloat16
        engines = [
            Engine(model, **settings, num_slots=num_slots, num_pages=num_pages, num_steps=NUM_STEPS, chunk_len=16)
            for num_slots, num_pages in ((6, 60), (2, 12))
        ]
        todo = [request((SPARSE, at, trial)) for at in range(2) for trial in range(NUM_TRIALS)]
        first, second = (
            {each.request.tag: each.token_ids for each in engine.run(asked)}
            for engine, asked in zip(engines, (todo, todo[::-1]), strict=True)
        )
    assert first == second
    assert engines[1].stats.num_preemptions > 0
    assert len(set(first.values())) > NUM_TRIALS


def test_prompts_are_computed_once_for_all_trials_and_their_prefix_once_for_all_prompts(engine: Engine):
    assert_empty(engine)
    before = engine.stats.num_prompt_tokens
    list(engine.run(request((Dense(), at, trial)) for at in (1, 2) for trial in range(NUM_TRIALS)))
    # The second prompt has 14 tokens, and two pages of them are known.
    assert engine.stats.num_prompt_tokens - before == 12 + 14 - 2 * PAGE_LEN


def test_log_probs_are_those_of_the_model(engine: Engine, model: Decoder):
    (said,) = engine.run([request((Dense(), 0, 0))])
    assert said.log_probs is not None
    text = jnp.asarray([PROMPTS[0] + said.token_ids])
    logits = jax.nn.log_softmax(jax.jit(model)(text)[0], axis=-1)
    places = np.arange(len(PROMPTS[0]) - 1, text.shape[1] - 1)
    np.testing.assert_allclose(said.log_probs, logits[places, jnp.asarray(said.token_ids)], atol=1e-4)


def test_loops_and_time_end_a_trial(engine: Engine, wanted: Callable, monkeypatch: pytest.MonkeyPatch):
    """Both are rules of the host: nothing compiles anew."""
    asked = [(Dense(), at, trial) for at in range(3) for trial in range(NUM_TRIALS)]
    rule = Repetition(window_len=2, block_len=1, num_repeats=2)  # two equal tokens are a loop
    monkeypatch.setattr(engine, "_stopping", Stopping(stop_ids=STOP_IDS, repetition=rule))
    said = {each.request.tag: each for each in engine.run(map(request, asked))}
    num_looped = 0
    for tag, each in said.items():
        full = wanted(tag)
        pairs = [at + 2 for at in range(len(full) - 1) if full[at] == full[at + 1]]
        num_looped += bool(pairs)
        assert each.token_ids == full[: pairs[0] if pairs else None]
        assert (each.finish_reason == "repetition") == bool(pairs)
        assert each.log_probs is not None
        assert len(each.log_probs) == len(each.token_ids)
    assert num_looped
    monkeypatch.setattr(engine, "_stopping", Stopping(stop_ids=STOP_IDS, time_s=1e-9))
    for each in engine.run(map(request, asked)):
        assert each.finish_reason in ("time", "eos")
        assert len(each.token_ids) <= 1 + NUM_STEPS
        assert each.token_ids == wanted(each.request.tag)[: len(each.token_ids)]
    assert_empty(engine)


@pytest.mark.parametrize("is_lost", [False, True])
def test_a_step_that_is_broken_off_loses_no_trial(
    engine: Engine, wanted: Callable, monkeypatch: pytest.MonkeyPatch, is_lost: bool
):
    """Ctrl-C while the second lane decodes, the first having finished trials: before and after the pools come back."""
    decode, num_calls, num_broken, said = engine._programs.decode, 0, 0, {}
    broken = (2, 5, 20)  # a trial takes five calls

    def broken_off(*given):
        nonlocal num_calls
        num_calls += 1
        drawn = decode(*given) if is_lost or num_calls not in broken else None
        if num_calls in broken:
            raise KeyboardInterrupt
        return drawn

    monkeypatch.setattr(engine._programs, "decode", broken_off)
    before = engine.stats
    for asked in EVERYTHING:
        engine.submit(request(asked))
    while not engine.is_idle:
        try:
            said |= {each.request.tag: each.token_ids for each in engine.step()}
        except KeyboardInterrupt:
            num_broken += 1
    assert num_broken == len(broken)
    assert said == {asked: wanted(asked) for asked in EVERYTHING}
    assert engine.stats.num_tokens - before.num_tokens == sum(map(len, said.values()))
    assert engine.stats.num_compilations == before.num_compilations
    assert_empty(engine)


def test_what_a_run_left_comes_from_the_next(engine: Engine, wanted: Callable):
    """Its caller took one completion of several; the generator of the other raised."""
    said = [next(engine.run(map(request, EVERYTHING[:6])))]

    def raising() -> Iterator[Request]:
        yield request(EVERYTHING[6])
        raise RuntimeError("no more problems")

    with pytest.raises(RuntimeError, match="no more problems"):
        list(engine.run(raising()))
    said += engine.run([])
    assert len(said) == 7
    assert {each.request.tag: each.token_ids for each in said} == {asked: wanted(asked) for asked in EVERYTHING[:7]}
    assert_empty(engine)


def test_the_time_of_a_batch_is_shared_and_that_of_compiling_is_nobodys(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
):
    def time_s() -> tuple[float, float]:
        before = engine.stats.decode_s
        said = list(engine.run(map(request, EVERYTHING)))
        return sum(each.time_s for each in said), engine.stats.decode_s - before

    shared, spent = time_s()
    assert shared == pytest.approx(spent)
    programs, decode = engine._programs, engine._programs.decode

    def compiled(*given):
        programs.num_compilations["first"] = 1
        return decode(*given)

    monkeypatch.setattr(programs, "num_compilations", programs.num_compilations.copy())
    monkeypatch.setattr(programs, "decode", compiled)
    shared, spent = time_s()
    assert shared < 0.9999 * spent


def test_forced_closings_and_penalties_say_what_generate_says(model: Decoder):
    """The rest of the state of a row: whether its thought is closed, which tokens it has seen; after preemption too."""
    closing = BudgetForcing(think_len=5, closing_ids=(40, 41), end_think_id=41, answer_len=4)
    sampling = replace(HOT, repetition_penalty=1.5)
    engine = Engine(
        model,
        sampling=sampling,
        stopping=Stopping(stop_ids=STOP_IDS, closing=closing),
        num_slots=2,
        max_len=32,
        page_len=PAGE_LEN,
        num_steps=NUM_STEPS,
        chunk_len=16,
    )
    drawn = jax.jit(
        lambda prompt: generate(
            model,
            prompt,
            KEYS[0],
            num_trials=8,
            max_gen_len=20,
            stop_ids=STOP_IDS,
            sampling=sampling,
            closing=closing,
            page_len=PAGE_LEN,
        )
    )(jnp.asarray(PROMPTS[0]))
    asked = [Request(prompt_ids=PROMPTS[0], key=KEYS[0], trial=trial, max_gen_len=20) for trial in range(8)]
    with fewer_pages(engine, 7):
        said = {each.request.trial: each for each in engine.run(asked)}
    assert engine.stats.num_preemptions
    for trial in range(8):
        assert said[trial].token_ids == tuple(drawn.token_ids[trial, : int(drawn.gen_len[trial])].tolist())
    forced = [each.token_ids for each in said.values() if each.token_ids[5:7] == (40, 41)]
    assert forced
    assert max(map(len, forced)) == closing.max_gen_len


def test_selected_pages_are_the_oracles_at_every_step(model: Decoder, monkeypatch: pytest.MonkeyPatch):
    """Each selection of a run, by layer, sequence and KV head, against float64 on the very arrays it was made from."""
    calls: list[tuple] = []

    def recorded(q, key_pages, value_pages, key_means, page_table, lengths, **counts):
        arrays = (q, key_pages, value_pages, key_means, page_table, lengths)
        found = block_topk_decode(*arrays, **counts, return_residuals=True)
        jax.debug.callback(lambda *given: calls.append((*map(np.array, given), counts)), *arrays, found.selected)
        return found.out

    monkeypatch.setattr(_decode, "block_topk_decode", recorded)
    engine = Engine(
        model,
        attentions=(replace(SPARSE, num_sink_pages=1),),
        sampling=HOT,
        stopping=Stopping(stop_ids=STOP_IDS),
        num_slots=3,
        max_len=MAX_LEN,
        num_steps=1,
        chunk_len=16,
    )
    spec = replace(SPARSE, num_sink_pages=1)
    said = list(engine.run(replace(request((Dense(), at, 0)), attention=spec) for at in range(3)))
    jax.effects_barrier()
    num_read = 0
    for *arrays, selected, counts in calls:
        oracle = reference_block_topk_decode(*map(jnp.asarray, arrays), **counts)
        for row in np.flatnonzero(arrays[-1] > 1):  # idle rows hold the scratch page alone
            for head, pages in enumerate(oracle.read[row]):
                assert [page for page in selected[row, head].tolist() if page < arrays[4].shape[1]] == pages
                num_read += len(pages)
    num_steps = sum(len(each.token_ids) - 1 for each in said)
    num_heads = model.spec.num_layers * model.spec.num_kv_heads
    assert num_read >= num_steps * num_heads * 2
    assert num_read < num_steps * num_heads * 4


def test_bad_input_is_one_sentence(model: Decoder, engine: Engine):
    def asked(prompt_len: int, max_gen_len: int, **changes) -> Request:
        return Request(**{"prompt_ids": (20,) * prompt_len, "key": KEYS[0], "max_gen_len": max_gen_len} | changes)

    with pytest.raises(ValueError, match=r"fit the context of 28 tokens; got 20 \+ 9. Use a limit of 8 or less"):
        engine.submit(asked(20, 9))
    with pytest.raises(ValueError, match="The prompt alone is too long"):
        engine.submit(asked(28, 1))
    with pytest.raises(ValueError, match=r"made for the attention dense, block_topk:4x3; got block_topk:4x5"):
        engine.submit(asked(3, 3, attention=BlockTopK(page_len=4, num_pages=5)))
    with pytest.raises(ValueError, match=r"prompt_ids must lie in 0\.\.63, the model's vocabulary; got 64\. Use the"):
        engine.submit(asked(3, 3, prompt_ids=(20, 64, -1)))
    with pytest.raises(ValueError, match="prompt_ids must hold at least one token"):
        asked(0, 3)
    with pytest.raises(ValueError, match="max_gen_len at least 1; got 0 and 0"):
        asked(3, 0)
    made = {"stopping": Stopping(stop_ids=STOP_IDS), "max_len": MAX_LEN}
    small = Engine(model, **made, num_slots=1, num_pages=4, page_len=4)
    with pytest.raises(ValueError, match=r"10 \+ 10 tokens need 6 pages of 4; it has 3. Use num_pages=7 or more"):
        small.submit(asked(10, 10))
    with pytest.raises(ValueError, match="num_pages must be at least 2"):
        Engine(model, **made, num_pages=1)
    with pytest.raises(ValueError, match="num_slots must be at least 1; got 0"):
        Engine(model, **made, num_slots=0)
    with pytest.raises(ValueError, match=r"share its pages; got pages of \[4, 8\] tokens"):
        Engine(model, **made, attentions=(SPARSE, BlockTopK(page_len=8, num_pages=2)))
    with pytest.raises(ValueError, match="dense_layers must not exceed the 2 layers of the model"):
        Engine(model, **made, attentions=(BlockTopK(page_len=4, num_pages=3, dense_layers=3),))
    with pytest.raises(ValueError, match="context of 1024 tokens; got 4096"):
        Engine(model, stopping=Stopping(stop_ids=STOP_IDS), max_len=4096)
