"""Which implementations the contract runs: those that run here, or the one named on the command line."""

import os
from collections.abc import Iterator

import jax
import numpy as np
import pytest

from pallas_kernels import _dispatch
from pallas_kernels._interpret import gpu_params, interpreted
from tests.kernels.cases import Effort
from tests.kernels.contract import is_native

if jax.__version_info__ >= (0, 12):
    # JAX interprets the warpgroups of a Mosaic GPU kernel as threads of XLA's pool, which has one thread a core: they
    # wait for each other, and where there are fewer cores than warpgroups they wait for ever.
    os.environ.setdefault("NPROC", "8")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--kernel-implementation",
        choices=["xla", *_dispatch._PLATFORMS],
        help="hold this implementation alone to the contract, at more sizes; interpreted where its device is not here",
    )


def named_implementation(config: pytest.Config) -> str | None:
    return config.getoption("--kernel-implementation", default=None)


def implementations(config: pytest.Config) -> list[str]:
    name = named_implementation(config)
    if name is not None:
        return [name]
    return ["xla", *(name for name in ("mosaic_tpu", "mosaic_gpu") if _dispatch._load(name) and _runs_here(name))]


def _runs_here(name: str) -> bool:
    if is_native(name) or name != "mosaic_gpu":
        return True
    try:
        with interpreted():
            return bool(gpu_params())
    except NotImplementedError:
        return False


def effort_of(implementation: str, config: pytest.Config) -> Effort:
    is_named = named_implementation(config) is not None
    # Interpreting a kernel compiles for ten seconds.
    level = 2 if is_named and is_native(implementation) else int(is_named or is_native(implementation))
    return Effort(level, is_native(implementation), implementation)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Fill in `implementation`, with every `layout` that it is tried with, or with the first (quantised) one."""
    if "implementation" not in metafunc.fixturenames:
        return
    efforts = {name: effort_of(name, metafunc.config) for name in implementations(metafunc.config)}
    for fixture, options in {
        "layout": lambda effort: effort.layouts,
        "one_layout": lambda effort: effort.layouts[:1],
        "quantised_layout": lambda effort: effort.quantised_layouts[:1],
        "real_size": lambda effort: effort.real_sizes,
    }.items():
        if fixture in metafunc.fixturenames:
            pairs = [(name, option) for name, effort in efforts.items() for option in options(effort)]
            metafunc.parametrize(("implementation", fixture), pairs, ids=_name)


def _name(part: object) -> str:
    return "-".join(map(_name, part)) if isinstance(part, tuple) else str(part)


@pytest.fixture
def effort(implementation: str, request: pytest.FixtureRequest) -> Effort:
    return effort_of(implementation, request.config)


@pytest.fixture
def rng(key: jax.Array) -> np.random.Generator:
    return np.random.default_rng(np.asarray(jax.random.key_data(key)))


@pytest.fixture(autouse=True)
def no_races(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Fail a test in which the interpreter of kernels reported a race: it only prints it."""
    yield
    assert "RACE DETECTED" not in capfd.readouterr().out
