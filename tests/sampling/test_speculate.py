"""Speculation is lossless: its distribution is that of dense attention; a greedy draft, and one that reads everything,
say the tokens of `generate`."""

import itertools
from collections import Counter
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from kinetics_jax.models import abstract_decoder
from kinetics_jax.sampling import generate, speculate, token_probs
from kinetics_jax.specs import BlockTopK, Dense, SamplingSpec
from tests.models.tiny_models import TINY, random_decoder

POOR = BlockTopK(page_len=2, num_pages=2)
GREEDY = SamplingSpec(temperature=0.0)
NUM_TRIALS, GEN_LEN, VOCAB, STOP = 3000, 3, 5, 4


@pytest.mark.parametrize(
    ("draft", "sampling"),
    [
        (POOR, GREEDY),
        (Dense(), SamplingSpec(temperature=2.0, top_k=10, top_p=0.95, repetition_penalty=1.2)),
    ],
    ids=str,
)
def test_greedy_tokens_and_those_of_a_draft_that_reads_everything_are_generates(
    draft: BlockTopK | Dense, sampling: SamplingSpec, key: jax.Array
):
    """Token for token, stops and limits included; the prompt is padded."""
    num_layers = 2 if draft == POOR else 1  # in one layer drafts would leave the right keys and values behind
    model, prompt = random_decoder(replace(TINY, num_layers=num_layers)), np.arange(7, 18, dtype=np.int32)
    settings = {"num_trials": 4, "max_gen_len": 21, "stop_ids": (0,), "sampling": sampling, "prompt_len": 9}
    said = jax.jit(partial(generate, page_len=2, **settings))(model, prompt, key)
    found = jax.jit(partial(speculate, draft=draft, draft_len=3, page_len=2, **settings))(model, prompt, key)
    jax.tree.map(np.testing.assert_array_equal, found.generation, said)
    assert (found.num_accepted <= found.num_judged).all()
    assert (said.gen_len <= 1 + found.num_accepted + found.num_rounds).all()
    if draft == POOR:
        assert 0 < found.acceptance_rate < 1
    else:
        assert found.acceptance_rate == 1
        assert (found.num_rounds == -(-(said.gen_len - 1) // 4)).all()


def test_the_distribution_is_that_of_dense_attention(key: jax.Array):
    """Chi-square over all texts of up to three tokens, against their exact probabilities; the draft is another's."""
    sampling = SamplingSpec(temperature=1.5, top_k=4, top_p=0.9)
    model = random_decoder(replace(TINY, vocab_size=VOCAB, num_layers=1))
    prompt = np.arange(14, dtype=np.int32) % VOCAB
    settings = {"num_trials": NUM_TRIALS, "max_gen_len": GEN_LEN, "stop_ids": (STOP,), "sampling": sampling}
    found = jax.jit(partial(speculate, draft=POOR, draft_len=2, **settings))(model, prompt, key)
    assert 0.3 < found.acceptance_rate < 0.97

    texts = np.array(list(itertools.product(range(VOCAB), repeat=GEN_LEN)), np.int32)
    logits = jax.jit(model)(np.concatenate([np.tile(prompt, (len(texts), 1)), texts], axis=1))
    flat = logits[:, len(prompt) - 1 : -1].reshape(-1, VOCAB)
    probs = np.asarray(jax.jit(partial(token_probs, sampling=sampling))(flat)).reshape(len(texts), GEN_LEN, VOCAB)
    wanted: dict[tuple[int, ...], float] = {}
    for text, prob in zip(texts.tolist(), probs, strict=True):
        num_said = text.index(STOP) + 1 if STOP in text else GEN_LEN
        if not any(text[num_said:]):  # one of the texts that begin so
            said = (*text[:num_said], *[0] * (GEN_LEN - num_said), num_said)
            wanted[said] = NUM_TRIALS * float(np.prod(prob[np.arange(num_said), text[:num_said]]))
    np.testing.assert_allclose(sum(wanted.values()), NUM_TRIALS, rtol=1e-5)
    token_ids, gen_len, _ = jax.device_get(found.generation)
    said = np.concatenate([token_ids, gen_len[:, None]], axis=1)
    counts = Counter(map(tuple, said.tolist()))
    assert set(counts) <= {text for text, number in wanted.items() if number > 0}
    often = [text for text, number in wanted.items() if number >= 5]
    seldom = NUM_TRIALS - sum(wanted[text] for text in often)
    terms = [(counts[text] - wanted[text]) ** 2 / wanted[text] for text in often]
    if seldom > 1:
        terms.append((NUM_TRIALS - sum(counts[text] for text in often) - seldom) ** 2 / seldom)
    assert len(terms) > 12
    assert sum(terms) < scipy.special.chdtri(len(terms) - 1, 1e-4)  # one key in 10,000 lies above


def test_a_draft_of_no_tokens_is_refused(key: jax.Array):
    with pytest.raises(ValueError, match="draft_len must be at least 1; got 0"):
        speculate(abstract_decoder(TINY), jnp.arange(4), key, draft=POOR, draft_len=0, max_gen_len=3, stop_ids=(2,))
