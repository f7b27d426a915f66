"""Strict JAX for the whole suite: shapes checked at every call, no silent promotion, randomness from one fixture."""

import os
import zlib

import jax
import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

# Most of the suite's time is compilation: a fifth of it goes without LLVM's optimisations. Read when JAX starts.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0".strip()

PACKAGES = ["kinetics_jax", "pallas_kernels", "checkpoints_conversion"]

# Before any of the packages is imported: pytest loads this file ahead of every test and doctest.
install_import_hook(PACKAGES, "beartype.beartype")

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

settings.register_profile("house", deadline=None, max_examples=50, derandomize=True, database=None)
settings.load_profile("house")


@pytest.fixture
def key(request: pytest.FixtureRequest) -> jax.Array:
    """Return a PRNG key of this test's own, the same in every run."""
    return jax.random.key(zlib.crc32(request.node.nodeid.encode()))
