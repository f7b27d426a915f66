"""Strategies and sampling: limits, and one trial for a long thought."""

from typing import Any

import pytest

from kinetics_jax.specs import BestOfN, LongCoT, SamplingSpec


def test_a_long_thought_is_one_trial():
    assert LongCoT(max_gen_len=7).num_trials == 1
    assert BestOfN(num_trials=4, max_gen_len=7).num_trials == 4


@pytest.mark.parametrize(
    ("build", "sizes", "message"),
    [
        (LongCoT, {"max_gen_len": 0}, "max_gen_len must be at least 1; got 0"),
        (BestOfN, {"max_gen_len": -5, "num_trials": 1}, "max_gen_len must be at least 1; got -5"),
        (BestOfN, {"max_gen_len": 5, "num_trials": 0}, "num_trials must be at least 1; got 0"),
        (SamplingSpec, {"temperature": -0.1}, "temperature must be zero .* or positive; got -0.1"),
        (SamplingSpec, {"temperature": float("nan")}, "temperature must be"),
        (SamplingSpec, {"top_k": -1}, "top_k must be zero .* or positive; got -1"),
        (SamplingSpec, {"top_p": 0.0}, r"top_p must lie in \(0, 1\]; got 0.0"),
        (SamplingSpec, {"top_p": 1.1}, r"top_p must lie in \(0, 1\]; got 1.1"),
        (SamplingSpec, {"min_p": 1.0}, r"min_p must lie in \[0, 1\); got 1.0"),
    ],
)
def test_values_out_of_range_are_named(build: Any, sizes: dict[str, float], message: str):
    with pytest.raises(ValueError, match=message):
        build(**sizes)
