"""Numbers drawn by NumPy: a test of attention should not spend its time compiling jax.random for every shape."""

import jax
import numpy as np
import pytest


@pytest.fixture
def rng(key: jax.Array) -> np.random.Generator:
    return np.random.default_rng(np.asarray(jax.random.key_data(key)))
