"""One compiled batch of questions with their reference thoughts, shared by the tests of this folder."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kinetics_jax.tasks import DEPTHS, PathfindBatch, reference_thoughts, sample_questions

BATCH_SIZE = 96
WHOLE_LEN = 1400
"""Longer than any whole thought: 128 walks of 10 tokens and <eos>."""
CUT_LEN = 50


@pytest.fixture(scope="session")
def draw() -> Callable[[jax.Array], tuple[PathfindBatch, np.ndarray, np.ndarray]]:
    """Return a jitted function: key to questions of every depth in turn, whole thoughts, and the same cut short."""
    depth = jnp.asarray([DEPTHS[i % len(DEPTHS)] for i in range(BATCH_SIZE)])

    @jax.jit
    def questions_and_thoughts(key: jax.Array):
        question_key, thought_key = jax.random.split(key)
        questions = sample_questions(question_key, depth)
        whole, cut = (reference_thoughts(thought_key, questions, max_len=size) for size in (WHOLE_LEN, CUT_LEN))
        return questions, whole, cut

    return lambda key: jax.device_get(questions_and_thoughts(key))
