"""Tiny decoders that the whole room shares."""

import pytest

from kinetics_jax.models import Decoder
from tests.models.tiny_models import TINY, VARIANTS, random_decoder


@pytest.fixture(scope="package", params=list(VARIANTS))
def model(request: pytest.FixtureRequest) -> Decoder:
    return random_decoder(VARIANTS[request.param])


@pytest.fixture(scope="package")
def tiny() -> Decoder:
    return random_decoder(TINY)


@pytest.fixture(scope="package")
def half_tiny() -> Decoder:
    return random_decoder(TINY, dtype="bfloat16")
