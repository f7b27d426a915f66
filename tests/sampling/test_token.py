"""Truncation by thresholds against truncation by sorting, and frequencies against probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kinetics_jax.sampling import allowed_tokens, sample_token
from kinetics_jax.specs import SamplingSpec

VOCAB = 50
NUM_ROWS = 200


@pytest.fixture(scope="module")
def logits() -> np.ndarray:
    """Rows from nearly flat to hopelessly peaked; some with ties, some with words ruled out."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(NUM_ROWS, VOCAB)) * np.geomspace(0.01, 30, NUM_ROWS)[:, None]
    logits[::5] = np.round(logits[::5])
    logits[::7, ::3] = -np.inf
    return logits.astype(np.float32)


def allowed_by_sorting(probs: np.ndarray, sampling: SamplingSpec) -> tuple[np.ndarray, bool]:
    """Return the tokens of one row that stay, ties together, and whether rounding could decide otherwise."""
    descending = np.sort(probs)[::-1]
    threshold, is_close = sampling.min_p * descending[0], False
    if 0 < sampling.top_k < len(probs):
        threshold = max(threshold, descending[sampling.top_k - 1])
    if sampling.top_p < 1:
        mass = np.cumsum(descending, dtype=np.float64)
        threshold = max(threshold, descending[np.argmax(mass >= sampling.top_p)])
        is_close = bool(np.abs(mass - sampling.top_p).min() < 1e-6)
    return probs >= np.float32(threshold), is_close


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingSpec(),
        SamplingSpec(top_k=1),
        SamplingSpec(top_k=7),
        SamplingSpec(top_k=VOCAB),
        SamplingSpec(top_k=VOCAB + 5),
        SamplingSpec(top_p=0.3),
        SamplingSpec(top_p=0.95),
        SamplingSpec(min_p=0.1),
        SamplingSpec(top_k=20, top_p=0.95),
        SamplingSpec(top_k=5, top_p=0.8, min_p=0.02),
    ],
    ids=repr,
)
def test_thresholds_equal_sorting(sampling: SamplingSpec, logits: np.ndarray):
    allowed = np.asarray(jax.jit(lambda rows: allowed_tokens(rows, sampling))(logits))
    probs = np.asarray(jax.jit(jax.nn.softmax)(logits))
    num_compared = 0
    for row in range(NUM_ROWS):
        wanted, is_close = allowed_by_sorting(probs[row], sampling)
        assert allowed[row, np.argmax(probs[row])]
        if not is_close:
            np.testing.assert_array_equal(allowed[row], wanted, err_msg=f"row {row}")
            num_compared += 1
    assert num_compared >= 0.9 * NUM_ROWS


def test_smallest_nucleus_by_hand():
    logits = jnp.log(jnp.array([[0.5, 0.1, 0.3, 0.1]]))
    for top_p, wanted in ((0.4, [0]), (0.6, [0, 2]), (0.85, [0, 1, 2, 3])):  # the two at 0.1 tie and stay together
        assert np.flatnonzero(allowed_tokens(logits, SamplingSpec(top_p=top_p))[0]).tolist() == wanted


@pytest.mark.parametrize("sampling", [SamplingSpec(temperature=0.5), SamplingSpec(top_k=3)], ids=repr)
def test_frequencies_follow_the_tempered_truncated_probabilities(sampling: SamplingSpec, key: jax.Array):
    num_draws = 20_000
    row = np.array([1.0, 0.5, 0.0, -0.5, -1.0], np.float32)
    keys = jax.random.split(key, num_draws)
    draw = jax.jit(lambda keys: sample_token(jnp.broadcast_to(row, (num_draws, 5)), keys, sampling))
    counts = np.bincount(np.asarray(draw(keys)), minlength=5)
    weights = np.exp(row / sampling.temperature)
    weights[sampling.top_k or 5 :] = 0
    wanted = num_draws * weights / weights.sum()
    assert counts[weights == 0].sum() == 0
    chi_square = ((counts - wanted)[weights > 0] ** 2 / wanted[weights > 0]).sum()
    assert chi_square < 20  # 4 degrees of freedom: one key in 2,000 lies above


def test_greedy_takes_the_lowest_of_equal_logits(key: jax.Array):
    logits = jnp.array([[0.0, 3.0, 3.0], [2.0, 1.0, 0.0]])
    drawn = sample_token(logits, jax.random.split(key, 2), SamplingSpec(temperature=0.0))
    assert drawn.tolist() == [1, 0]
