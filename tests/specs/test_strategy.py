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
        (SamplingSpec, {"temperature": float("inf")}, "temperature must be"),
        (SamplingSpec, {"repetition_penalty": 0.0}, "repetition_penalty must be positive, 1 does nothing; got 0.0"),
        (SamplingSpec, {"logit_bias": ((3, 1.0), (1, 1.0))}, r"each token id once, ascending .* got the ids \[3, 1\]"),
        (SamplingSpec, {"logit_bias": ((-1, 1.0),)}, r"ascending from 0; got the ids \[-1\]"),
        (SamplingSpec, {"logit_bias": ((1, float("nan")),)}, "a logit_bias must be a number or -inf; got"),
    ],
)
def test_values_out_of_range_are_named(build: Any, sizes: dict[str, float], message: str):
    with pytest.raises(ValueError, match=message):
        build(**sizes)


def test_the_text_of_a_sampling_spec_names_later_fields_only_where_they_matter():
    """Recorded traces hold the first form, and a run that goes on compares it."""
    first = "SamplingSpec(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0"
    assert str(SamplingSpec()) == repr(SamplingSpec()) == f"{first})"
    assert str(SamplingSpec(logit_bias=((7, -1.5),))) == f"{first}, logit_bias=((7, -1.5),))"
    spec = SamplingSpec(top_k=3, repetition_penalty=1.2)
    assert str(spec) == "SamplingSpec(temperature=1.0, top_k=3, top_p=1.0, min_p=0.0, repetition_penalty=1.2)"
    assert hash(spec) == hash(SamplingSpec(top_k=3, repetition_penalty=1.2))
