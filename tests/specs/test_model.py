"""Model geometry against published figures, typed from PAPER.md."""

import dataclasses

import pytest

from kinetics_jax.specs import MODELS

MINI = [spec for spec in MODELS.values() if spec.family == "Kinetics-Mini"]


# PAPER.md section 6 ("parameters as published") and errata 13, in 1e9, to the digits printed there.
@pytest.mark.parametrize(
    ("name", "stored", "unique", "digits"),
    [
        ("Qwen3-0.6B", 0.752, 0.596, 3),
        ("Qwen3-1.7B", 2.03, 1.72, 2),
        ("Qwen3-4B", 4.02, 4.02, 2),
        ("Qwen3-8B", 8.19, 8.19, 2),
        ("Qwen3-14B", 14.77, 14.77, 2),
        ("Qwen3-32B", 32.76, 32.76, 2),
    ],
)
def test_parameters_equal_the_published_counts(name: str, stored: float, unique: float, digits: int):
    spec = MODELS[name]
    assert round(spec.num_stored_params / 1e9, digits) == stored
    assert round(spec.num_params / 1e9, digits) == unique


def test_unique_parameters_of_1_7b_to_four_digits():
    assert round(MODELS["Qwen3-1.7B"].num_params / 1e9, 3) == 1.721  # errata 13


# PAPER.md section 6: KV at 32,768 tokens in bfloat16 [GiB]; 14B is 5.0, not the printed 6 (errata 1).
@pytest.mark.parametrize(
    ("name", "gib"),
    [
        ("Qwen3-0.6B", 3.5),
        ("Qwen3-1.7B", 3.5),
        ("Qwen3-4B", 4.5),
        ("Qwen3-8B", 4.5),
        ("Qwen3-14B", 5.0),
        ("Qwen3-32B", 8.0),
    ],
)
def test_kv_cache_equals_the_papers_table(name: str, gib: float):
    assert MODELS[name].kv_elements_per_token * 2 * 32_768 / 2**30 == gib


def test_matmul_parameters_leave_out_the_input_embedding_only():
    tied, untied = MODELS["Qwen3-4B"], MODELS["Qwen3-8B"]
    assert tied.num_matmul_params == tied.num_params  # the one table is the output head, too
    assert untied.num_params - untied.num_matmul_params == 151_936 * 4096


def test_mini_parameters_by_hand():
    """Kinetics-Mini-0.1M: 64 words, 2 layers of width 64, MLP 192, 4 query and 2 KV heads of 32."""
    attention = 64 * (4 * 32) + 2 * 64 * (2 * 32) + (4 * 32) * 64
    layer = attention + 3 * 64 * 192 + 2 * 64 + 2 * 32
    assert MODELS["Kinetics-Mini-0.1M"].num_params == 64 * 64 + 2 * layer + 64


def test_mini_family_spans_50x_while_kv_grows_far_slower():
    params = [spec.num_params for spec in MINI]
    kv = [spec.kv_elements_per_token for spec in MINI]
    assert len(MINI) >= 4
    assert params == sorted(params)
    assert params[-1] >= 50 * params[0]
    assert kv == sorted(kv)
    assert kv[-1] <= 5 * kv[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layers": 0}, "num_layers must be at least 1; got 0 in model 'Qwen3-0.6B'"),
        ({"max_len": -1}, "max_len must be at least 1; got -1"),
        ({"num_kv_heads": 5}, "num_kv_heads must divide num_heads; got 5 and 16"),
        ({"head_dim": 127}, "head_dim must be even"),
    ],
)
def test_impossible_geometry_is_refused(change: dict[str, int], message: str):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(MODELS["Qwen3-0.6B"], **change)
