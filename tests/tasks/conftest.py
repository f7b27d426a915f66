"""Shared by the tests of this folder: one compiled batch of questions with reference thoughts, and two sandboxes."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kinetics_jax.tasks import (
    DEPTHS,
    Judge,
    Limits,
    NoIsolationError,
    OutputTests,
    PathfindBatch,
    Sandbox,
    reference_thoughts,
    require_isolation,
    sample_questions,
)
from kinetics_jax.tasks._sandbox import Isolation

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


SMALL_LIMITS = Limits(
    cpu_s=3.0, wall_s=20.0, memory_bytes=192 << 20, output_bytes=1 << 20, temp_bytes=2 << 20, num_threads=8
)


# Leaves all that a sandbox leaves, in a process that does nothing else; 0 if it is really elsewhere then.
LEAVE = (
    "import ctypes, os\nspace = os.stat('/proc/self/ns/mnt').st_ino\n"
    "failed = ctypes.CDLL(None).unshare(0x6E020000)\n"
    "os._exit(failed or os.stat('/proc/self/ns/mnt').st_ino == space)"
)


def may_make_namespaces() -> bool:
    """Say whether this is root whom nothing keeps from making namespaces, on a Linux that is new enough."""
    if sys.platform != "linux" or tuple(map(int, os.uname().release.split(".")[:2])) < (5, 12) or os.geteuid() != 0:
        return False
    return subprocess.run([sys.executable, "-S", "-c", LEAVE], check=False).returncode == 0


@pytest.fixture(scope="session")
def isolation() -> Isolation:
    """How this machine isolates programs; where it does not, what is tested is that it refuses them."""
    try:
        return require_isolation()
    except NoIsolationError as error:
        refused = "Permission denied" in str(error)  # by a security module; the kernel itself says "not permitted"
        if may_make_namespaces() and not refused:
            pytest.fail(f"this machine could isolate programs: {error}")
        with pytest.raises(NoIsolationError, match="unsafe_no_isolation=True"):
            Judge().judge("print(1)", OutputTests(pairs=(("", "1"),)))
        pytest.skip("nothing isolates programs here; the refusal was asserted")


@pytest.fixture(scope="session")
def whole(isolation: Isolation) -> Iterator[Sandbox]:
    """A whole sandbox, shared: each test proves again that the ones before did it no harm."""
    with Sandbox(isolation=isolation, limits=SMALL_LIMITS) as sandbox:
        yield sandbox


@pytest.fixture(scope="session")
def bare(isolation: Isolation) -> Iterator[Sandbox]:
    """Namespaces, limits and no capabilities, but every system call."""
    with Sandbox(isolation=isolation, limits=SMALL_LIMITS, filter_calls=False) as sandbox:
        yield sandbox


@pytest.fixture(params=["whole", "bare"])
def either(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """Each of the two in turn; after the test it must still work."""
    sandbox: Sandbox = request.getfixturevalue(request.param)
    yield sandbox
    run = sandbox.run("print(input())", "alive")
    assert (run.outcome, run.output) == ("ok", "alive\n"), "the attack broke the sandbox"
    sandbox.reset()
