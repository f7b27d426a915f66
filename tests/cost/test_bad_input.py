"""Bad Python numbers and names are refused at call time, with the value and the way out."""

from typing import Any

import pytest

from kinetics_jax.cost import (
    break_even_budget_len,
    eflops,
    entries_read,
    entries_searched,
    iso_cost_len,
    phi,
    request_cost,
)
from kinetics_jax.specs import HARDWARE, MODELS, Dense, TopK

MODEL, B200 = MODELS["Kinetics-Mini-1.7M"], HARDWARE["PAPER_B200"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt_len": -1}, "prompt_len must be finite and at least 0; got -1"),
        ({"gen_len": -0.5}, "gen_len must be finite and at least 0; got -0.5"),
        ({"gen_len": float("nan")}, "gen_len must be finite and at least 0; got nan"),
        ({"prompt_len": float("inf")}, "prompt_len must be finite and at least 0; got inf"),
        ({"num_trials": 0}, "num_trials must be finite and at least 1; got 0"),
        ({"batch_size": 0}, "batch_size must be finite and at least 1; got 0"),
        ({"kv_dtype": "int3"}, "unknown kv_dtype 'int3'. Known: float32, bfloat16"),
        ({"weight_dtype": "bf16"}, "unknown weight_dtype 'bf16'. Known: float32, bfloat16"),
    ],
)
def test_request_cost_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        request_cost(MODEL, Dense(), **{"prompt_len": 5, "gen_len": 7, **options})


def test_more_dense_layers_than_layers_are_refused() -> None:
    message = "dense_layers must not exceed the 4 layers of the model; got topk:4,dense_layers=5"
    with pytest.raises(ValueError, match=message):
        request_cost(MODEL, TopK(budget_len=4, dense_layers=5), prompt_len=5, gen_len=7)


@pytest.mark.parametrize("count", [entries_read, entries_searched])
def test_counts_refuse_negative_lengths(count: Any) -> None:
    with pytest.raises(ValueError, match="gen_len must be finite and at least 0; got -3"):
        count(TopK(budget_len=4), prompt_len=0, gen_len=-3)


@pytest.mark.parametrize("combine", [0.5, -1.0, float("nan")])
def test_eflops_refuses_a_norm_below_one(combine: float) -> None:
    cost = request_cost(MODEL, Dense(), prompt_len=5, gen_len=7)
    with pytest.raises(ValueError, match=r"combine must be 'add', 'max' or a norm p >= 1; got"):
        eflops(cost, B200, combine=combine)


def test_eflops_lists_the_dtypes_of_the_chip() -> None:
    cost = request_cost(MODEL, Dense(), prompt_len=5, gen_len=7)
    with pytest.raises(ValueError, match=r"T4 has no peak for 'bfloat16', .*Known: float32, float16"):
        eflops(cost, HARDWARE["T4"])


def test_iso_and_phi_refuse() -> None:
    with pytest.raises(ValueError, match="target_eflops must be finite and at least 0; got -1"):
        iso_cost_len(MODEL, Dense(), B200, -1, prompt_len=0)
    with pytest.raises(ValueError, match="num_trials must be finite and at least 1; got 0"):
        phi(MODEL, B200, gen_len=5, num_trials=0)
    with pytest.raises(ValueError, match="unknown kv_dtype 'fp4'"):
        break_even_budget_len(MODEL, B200, kv_dtype="fp4")
