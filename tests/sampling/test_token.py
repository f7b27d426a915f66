"""Truncation against a sorted reference, frequencies against probabilities, and logits that are no numbers."""

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st

from kinetics_jax.sampling import allowed_tokens, sample_token, seen_tokens, token_log_probs, token_probs
from kinetics_jax.sampling._draw import WHOLE_VOCAB_LEN
from kinetics_jax.specs import SamplingSpec

VOCAB = WHOLE_VOCAB_LEN + 100  # blocks are drawn, the last is not full, and two levels of blocks hold the largest
NUM_ROWS, NUM_DRAWS = 8, 2000
PAPER = SamplingSpec(temperature=0.6, top_k=20, top_p=0.95)
GREEDY = SamplingSpec(temperature=0.0)
SPECS = (  # every way through the code
    SamplingSpec(temperature=0.8),
    SamplingSpec(top_p=0.9, min_p=0.01),
    SamplingSpec(temperature=0.6, top_k=7, top_p=0.8, min_p=0.02),
    SamplingSpec(temperature=1.5, top_k=150, top_p=0.9),
    PAPER,
)
DRAWN = (SPECS[0], SPECS[1], PAPER)  # every way to draw


@cache
def judge(sampling: SamplingSpec) -> Callable[..., Any]:
    """Return one compiled program of NUM_ROWS rows: the probabilities, and the token drawn."""
    return jax.jit(lambda logits, keys: (token_probs(logits, sampling), sample_token(logits, keys, sampling)))


@cache
def draw_alone(sampling: SamplingSpec) -> Callable[..., Any]:
    """Return the compiled draws from one row, each a batch of one under vmap."""
    return jax.jit(lambda row, keys: jax.vmap(lambda key: sample_token(row[None], key[None], sampling)[0])(keys))


def drawn_logits(seed: int) -> np.ndarray:
    """Rows from nearly flat to hopelessly peaked; some with ties, some with words ruled out, one all equal."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(NUM_ROWS, VOCAB)) * np.geomspace(0.01, 30, NUM_ROWS)[:, None]
    logits[::3] = np.round(logits[::3])
    logits[::4, rng.integers(0, 3) :: 3] = -np.inf
    logits[rng.integers(NUM_ROWS)] = rng.normal()
    return logits.astype(np.float32)


def allowed_by_sorting(logits: np.ndarray, sampling: SamplingSpec) -> tuple[np.ndarray, bool]:
    """Return the tokens of one row that stay, and whether rounding could decide otherwise."""
    order = np.argsort(-logits, kind="stable")
    probs = scipy.special.softmax(logits.astype(np.float64))
    allowed, is_close = (probs >= sampling.min_p * probs.max()) & (logits > -np.inf), False
    if 0 < sampling.top_k < len(logits):
        allowed[order[sampling.top_k :]] = False
    if sampling.top_p < 1:
        mass = np.cumsum(probs[order])
        allowed &= logits >= logits[order[np.argmax(mass >= sampling.top_p)]]
        is_close = bool(np.abs(mass - sampling.top_p).min() < 1e-6)
    if sampling.min_p > 0:
        is_close |= bool(np.abs(probs / probs.max() / sampling.min_p - 1).min() < 1e-5)
    return allowed, is_close


@pytest.mark.parametrize("sampling", SPECS, ids=repr)
@settings(max_examples=6)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_sorted_reference_gives_the_same_probabilities(sampling: SamplingSpec, seed: int):
    logits = drawn_logits(seed)
    keys = jax.random.split(jax.random.key(seed), NUM_ROWS)
    probs, drawn = map(np.asarray, judge(sampling)(logits, keys))
    scaled = logits / np.float32(sampling.temperature)
    for row in range(NUM_ROWS):
        allowed, is_close = allowed_by_sorting(scaled[row], sampling)
        if not is_close:
            assert allowed[drawn[row]]
            wanted = scipy.special.softmax(np.where(allowed, scaled[row], -np.inf).astype(np.float64))
            np.testing.assert_allclose(probs[row], wanted, rtol=1e-4, atol=1e-36, err_msg=f"row {row}")


def test_ties_by_hand():
    """Of equal tokens top-k keeps the lowest ids; top-p keeps them all."""
    logits = np.log(np.array([[0.5, 0.1, 0.3, 0.1]], np.float32))
    for sampling, wanted in (
        (SamplingSpec(top_p=0.6), [0, 2]),
        (SamplingSpec(top_p=0.85, min_p=0.19), [0, 1, 2, 3]),
        (SamplingSpec(top_k=3, top_p=0.85), [0, 1, 2]),
    ):
        allowed = jax.jit(partial(allowed_tokens, sampling=sampling))(logits)
        assert np.flatnonzero(allowed).tolist() == wanted


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_without_truncation_the_draw_is_that_of_recorded_traces(temperature: float, key: jax.Array):
    logits, keys = drawn_logits(1)[:, :64], jax.random.split(key, NUM_ROWS)
    wanted = jax.jit(jax.vmap(lambda key, row: jax.random.categorical(key, row / temperature)))(keys, logits)
    drawn = jax.jit(partial(sample_token, sampling=SamplingSpec(temperature=temperature)))(logits, keys)
    np.testing.assert_array_equal(drawn, wanted)


@pytest.mark.parametrize("sampling", DRAWN, ids=repr)
def test_a_row_draws_the_same_alone_and_in_a_batch(sampling: SamplingSpec, key: jax.Array):
    logits, keys = drawn_logits(2), jax.random.split(key, NUM_DRAWS)
    together = np.asarray(judge(sampling)(logits, keys[:NUM_ROWS])[1])
    for row in (2, 5):
        assert draw_alone(sampling)(logits[row], keys)[row] == together[row]


@pytest.mark.parametrize("sampling", DRAWN, ids=repr)
def test_frequencies_follow_the_probabilities(sampling: SamplingSpec, key: jax.Array):
    """Chi-square over the tokens that are expected at least five times; the others count as one."""
    row = 3 * np.random.default_rng(4).normal(size=VOCAB).astype(np.float32)
    scaled = row / np.float32(sampling.temperature)
    allowed, _ = allowed_by_sorting(scaled, sampling)
    wanted = NUM_DRAWS * scipy.special.softmax(np.where(allowed, scaled, -np.inf).astype(np.float64))
    counts = np.bincount(draw_alone(sampling)(row, jax.random.split(key, NUM_DRAWS)), minlength=VOCAB)
    assert counts[~allowed].sum() == 0
    often = wanted >= 5
    if wanted[~often].sum() > 1:
        counts, wanted = (np.append(each[often], each[~often].sum()) for each in (counts, wanted))
    else:
        counts, wanted = counts[often], wanted[often]
    assert len(counts) > 3
    chi_square = ((counts - wanted) ** 2 / wanted).sum()
    assert chi_square < scipy.special.chdtri(len(counts) - 1, 1e-4)  # one key in 10,000 lies above


def test_truncation_changes_no_draw_that_it_allows():
    """Noise belongs to a token, not to its rank: what the wider rule draws, the narrower one draws if it keeps it."""
    wide, narrow = SPECS[4], SPECS[2]
    assert wide.temperature == narrow.temperature
    logits, num_kept = drawn_logits(3), 0
    for seed in range(12):
        keys = jax.random.split(jax.random.key(seed), NUM_ROWS)
        (_, drawn), (probs, also_drawn) = judge(wide)(logits, keys), judge(narrow)(logits, keys)
        kept = np.asarray(probs)[np.arange(NUM_ROWS), drawn] > 0
        num_kept += kept.sum()
        np.testing.assert_array_equal(also_drawn[kept], drawn[kept])
    assert 20 < num_kept < 12 * NUM_ROWS - 10


@pytest.mark.parametrize("sampling", [*SPECS, GREEDY], ids=repr)
def test_logits_that_are_no_numbers(sampling: SamplingSpec, key: jax.Array):
    logits = np.full((NUM_ROWS, VOCAB), -np.inf, np.float32)
    logits[1] = np.nan
    logits[2, VOCAB - 1] = -2.0  # the only word
    logits[3:5] = 1.0
    logits[3, [40, 99]] = np.inf  # two certain words: the lowest
    logits[4, 600] = np.inf
    logits[5, [3, 250]] = np.nan, -1e30
    logits[6], logits[6, 7] = -1e38, 3e38
    logits[7, [2000, 300]] = 50.0, -50.0
    probs, drawn = judge(sampling)(logits, jax.random.split(key, NUM_ROWS))
    wanted = [0, 0, VOCAB - 1, 40, 600, 250, 7, 2000]
    assert drawn.tolist() == wanted
    assert (np.asarray(probs)[np.arange(NUM_ROWS), wanted] == 1)[[0, 1, 2, 4, 5, 6, 7]].all()


def test_greedy_takes_the_lowest_of_equal_logits(key: jax.Array):
    logits = jnp.array([[0.0, 3.0, 3.0], [2.0, 1.0, 0.0]])
    assert sample_token(logits, jax.random.split(key, 2), GREEDY).tolist() == [1, 0]


def test_penalty_and_bias_come_before_the_temperature(key: jax.Array):
    """Token 0 leads by 3.2 to 3; seen, it falls to 1.6; a bias lifts token 2 above both."""
    logits, seen = np.array([[3.2, 3.0, 1.0, -1.0]], np.float32), np.array([[True, False, False, True]])
    for bias, wanted in (((), 1), (((2, 2.5),), 2), (((1, -np.inf),), 0)):
        sampling = SamplingSpec(temperature=0.0, repetition_penalty=2.0, logit_bias=bias)
        assert sample_token(jnp.asarray(logits), key[None], sampling, seen=jnp.asarray(seen)).tolist() == [wanted]
    sampling = SamplingSpec(temperature=0.5, repetition_penalty=2.0)
    probs = jax.jit(partial(token_probs, sampling=sampling))(logits, seen=seen)
    np.testing.assert_allclose(np.log(probs[0] / probs[0, 1]), np.array([1.6 - 3, 0, 1 - 3, -2 - 3]) / 0.5, rtol=1e-5)


def test_seen_tokens_are_those_held_and_no_padding():
    mark = jax.jit(seen_tokens, static_argnames="vocab_size")
    first = mark(np.array([[1, 2, 5], [3, 3, 0]]), np.array([2, 3]), vocab_size=6)
    both = mark(np.array([[4, 0, 0], [5, 0, 0]]), np.array([1, 0]), vocab_size=6, seen=first)
    assert [np.flatnonzero(row).tolist() for row in np.asarray(both)] == [[1, 2, 4], [0, 3]]


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        (SamplingSpec(repetition_penalty=1.1), r"wants `seen`.*Pass seen \[B, V\], from `seen_tokens`"),
        (SamplingSpec(logit_bias=((4, 1.0),)), "token ids below the vocabulary of 4; got 4"),
    ],
)
def test_what_a_spec_lacks_is_named(sampling: SamplingSpec, message: str, key: jax.Array):
    with pytest.raises(ValueError, match=message):
        sample_token(jnp.zeros((1, 4)), key[None], sampling)


def test_log_probs_are_the_models_own():
    logits = drawn_logits(6)
    logits[:3, :2] = [[np.nan, 0.0], [-np.inf, 1.0], [np.inf, 0.0]]
    token_ids = np.argsort(-logits, axis=-1, kind="stable")[:, 2].astype(np.int32)
    token_ids[:3] = 0
    got = jax.jit(token_log_probs)(logits, token_ids)
    assert got[:3].tolist() == [-np.inf, -np.inf, 0.0]
    wanted = scipy.special.log_softmax(logits[3:].astype(np.float64), axis=-1)
    np.testing.assert_allclose(got[3:], wanted[np.arange(NUM_ROWS - 3), token_ids[3:]], rtol=1e-5, atol=1e-5)


def equations(jaxpr: Any) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, Sequence) else (value,):
                if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                    yield from equations(getattr(inner, "jaxpr", inner))


@pytest.mark.parametrize("sampling", SPECS, ids=repr)
def test_nothing_is_sorted_at_the_size_of_qwen3(sampling: SamplingSpec):
    logits, keys = jax.ShapeDtypeStruct((64, 151_936), jnp.float32), jax.random.split(jax.random.key(0), 64)
    traced = jax.make_jaxpr(partial(sample_token, sampling=sampling))(logits, keys)
    names = {equation.primitive.name for equation in equations(traced.jaxpr)}
    assert "argmax" in names
    assert not {name for name in names if "sort" in name or "top_k" in name}
