"""Strict JAX for the whole suite: shapes checked at every call, no silent promotion, randomness from one fixture."""

import os
import zlib

import jax
import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

from tests.typecheck import check_types

# Most of the suite's time is compilation of small programs. They are compiled sooner without LLVM's optimisations, in
# one part each, and without the fusion emitters, whose flag JAX 0.12 no longer knows: an unknown flag ends the process.
# Read when JAX starts, here and in every process that a test starts.
XLA_FLAGS = ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
if jax.__version_info__ < (0, 11):
    XLA_FLAGS += ["--xla_cpu_use_fusion_emitters=false"]
os.environ["XLA_FLAGS"] = " ".join([*os.environ.get("XLA_FLAGS", "").split(), *XLA_FLAGS])

PACKAGES = ["kinetics_jax", "pallas_kernels", "checkpoints_conversion"]

# Before any of the packages is imported: pytest loads this file ahead of every test and doctest.
install_import_hook(PACKAGES, f"{check_types.__module__}.{check_types.__name__}")

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

settings.register_profile("house", deadline=None, max_examples=50, derandomize=True, database=None)
settings.load_profile("house")


@pytest.fixture
def key(request: pytest.FixtureRequest) -> jax.Array:
    """Return a PRNG key of this test's own, the same in every run."""
    return jax.random.key(zlib.crc32(request.node.nodeid.encode()))
