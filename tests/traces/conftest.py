"""Traces for the tests of this folder."""

from collections.abc import Callable

import pytest

from kinetics_jax.traces import Trace


def build_trace(**changes: object) -> Trace:
    """Return a valid trace: right after 3 of 5 tokens, unless changed."""
    fields: dict = {
        "run": "mini-dense",
        "model": "Kinetics-Mini-1.7M",
        "weights_hash": "c0ffee",
        "task": "pathfind",
        "problem": "p0",
        "difficulty": 3,
        "trial": 0,
        "seed": 7,
        "attention": "dense",
        "sampling": "SamplingSpec(temperature=1.0)",
        "max_gen_len": 8,
        "prompt_ids": (1, 2, 3, 63),
        "output_ids": (4, 5, 6, 7, 0),
        "finish_reason": "eos",
        "answer": "4 5\n\u2028é",
        "score": 1.0,
        "solved_len": 3,
        "time_s": 0.25,
    }
    return Trace(**{**fields, **changes})


@pytest.fixture
def make_trace() -> Callable[..., Trace]:
    return build_trace


@pytest.fixture
def traces() -> list[Trace]:
    """Two problems with three trials each: right, wrong and ungradable."""
    outcomes = [{}, {"score": 0.0, "solved_len": None, "answer": None}, {"score": None, "solved_len": None}]
    return [
        build_trace(problem=problem, difficulty=difficulty, trial=trial, **outcome)
        for problem, difficulty in (("p0", 3), ("p1", 4))
        for trial, outcome in enumerate(outcomes)
    ]
