"""Model geometry against published figures, typed from the hub and from PAPER.md."""

import dataclasses
from typing import Any

import pytest

from kinetics_jax.specs import MODELS, Llama3Rope, ModelSpec, YarnRope

MINI = [spec for spec in MODELS.values() if spec.family == "Kinetics-Mini"]

# Parameters in the published safetensors files, as the hub counts them.
STORED = {
    "Qwen3-0.6B": 751_632_384,
    "Qwen3-1.7B": 2_031_739_904,
    "Qwen3-4B": 4_022_468_096,
    "Qwen3-8B": 8_190_735_360,
    "Qwen3-14B": 14_768_307_200,
    "Qwen3-32B": 32_762_123_264,
    "Qwen3-30B-A3B": 30_532_122_624,
    "Qwen3-235B-A22B": 235_093_634_560,
    "Qwen2.5-0.5B-Instruct": 494_032_768,
    "Qwen2.5-1.5B-Instruct": 1_543_714_304,
    "Qwen2.5-3B-Instruct": 3_085_938_688,
    "Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen2.5-14B-Instruct": 14_770_033_664,
    "Qwen2.5-32B-Instruct": 32_763_876_352,
    "Qwen2.5-72B-Instruct": 72_706_203_648,
    "DeepSeek-R1-Distill-Qwen-1.5B": 1_777_088_000,
    "DeepSeek-R1-Distill-Qwen-7B": 7_615_616_512,
    "DeepSeek-R1-Distill-Qwen-14B": 14_770_033_664,
    "DeepSeek-R1-Distill-Qwen-32B": 32_763_876_352,
    "Llama-3.2-1B-Instruct": 1_235_814_400,
    "Llama-3.2-3B-Instruct": 3_212_749_824,
    "Llama-3.1-8B-Instruct": 8_030_261_248,
    "Llama-3.1-70B-Instruct": 70_553_706_496,
    "Llama-3.1-405B-Instruct": 405_853_388_800,
    "DeepSeek-R1-Distill-Llama-8B": 8_030_261_248,
    "OPT-125M": 125_239_296,
    "OPT-1.3B": 1_315_758_080,
    "OPT-2.7B": 2_651_596_800,
    "OPT-6.7B": 6_658_473_984,
    "OPT-13B": 12_853_473_280,
    "OPT-30B": 29_974_540_288,
}
NOMINAL = {"OPT-66B": 66e9, "OPT-175B": 175e9}  # in the names alone


def test_every_published_model_is_counted_here():
    assert {*STORED, *NOMINAL} == {*MODELS} - {spec.name for spec in MINI}


@pytest.mark.parametrize("name", STORED)
def test_stored_parameters_equal_the_published_files(name: str):
    assert MODELS[name].num_stored_params == STORED[name]


@pytest.mark.parametrize("name", NOMINAL)
def test_stored_parameters_agree_with_the_name(name: str):
    assert MODELS[name].num_stored_params == pytest.approx(NOMINAL[name], rel=5e-3)


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
def test_parameters_equal_the_papers(name: str, stored: float, unique: float, digits: int):
    spec = MODELS[name]
    assert round(spec.num_stored_params / 1e9, digits) == stored
    assert round(spec.num_params / 1e9, digits) == unique


def test_unique_parameters_of_1_7b_to_four_digits():
    assert round(MODELS["Qwen3-1.7B"].num_params / 1e9, 3) == 1.721  # errata 13


@pytest.mark.parametrize("name", MODELS)
def test_only_two_published_models_store_a_tied_head_twice(name: str):
    spec = MODELS[name]
    repeated = spec.vocab_size * spec.d_model if name in ("Qwen3-0.6B", "Qwen3-1.7B") else 0
    assert spec.num_stored_params - spec.num_params == repeated
    assert spec.num_active_stored_params - spec.num_active_params == repeated


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
        ("DeepSeek-R1-Distill-Qwen-1.5B", 0.875),
        ("DeepSeek-R1-Distill-Qwen-7B", 1.75),
        ("DeepSeek-R1-Distill-Qwen-14B", 6.0),
        ("DeepSeek-R1-Distill-Qwen-32B", 8.0),
    ],
)
def test_kv_cache_equals_the_papers_table(name: str, gib: float):
    assert MODELS[name].kv_elements_per_token * 2 * 32_768 / 2**30 == gib


# Qwen3 technical report, Table 2 and its title: total and activated parameters.
@pytest.mark.parametrize(
    ("name", "printed", "by_hand", "expert"),
    [
        # layers x (attention + its norms + router + 8 experts) + embedding and head + final norm
        ("Qwen3-30B-A3B", 3.3e9, 48 * (18_878_720 + 128 * 2048 + 8 * 4_718_592) + 622_329_856 + 2048, 3 * 2048 * 768),
        ("Qwen3-235B-A22B", 22e9, 94 * (71_311_616 + 128 * 4096 + 8 * 18_874_368) + 1_244_659_712 + 4096, 18_874_368),
    ],
)
def test_active_parameters_of_a_mixture(name: str, printed: float, by_hand: int, expert: int):
    spec = MODELS[name]
    assert spec.num_active_params == spec.num_active_stored_params == by_hand
    assert by_hand == pytest.approx(printed, rel=0.02)
    assert spec.num_expert_params == expert
    assert spec.num_params - spec.num_active_params == spec.num_layers * 120 * expert
    assert spec.num_active_params - spec.num_active_matmul_params == spec.vocab_size * spec.d_model
    assert spec.num_params - spec.num_matmul_params == spec.vocab_size * spec.d_model


@pytest.mark.parametrize("name", [name for name, spec in MODELS.items() if not spec.num_experts])
def test_without_experts_all_parameters_are_active(name: str):
    spec = MODELS[name]
    assert spec.num_active_params == spec.num_params
    assert spec.num_active_stored_params == spec.num_stored_params
    assert spec.num_active_matmul_params == spec.num_matmul_params


def test_matmul_parameters_leave_out_the_look_ups_only():
    tied, untied, learned = MODELS["Qwen3-4B"], MODELS["Qwen3-8B"], MODELS["OPT-125M"]
    assert tied.num_matmul_params == tied.num_params  # the one table is the output head, too
    assert untied.num_params - untied.num_matmul_params == 151_936 * 4096
    assert learned.num_params - learned.num_matmul_params == 2050 * 768  # positions; the embedding is the head


def test_layers_add_up_to_the_model():
    for spec in MODELS.values():
        tables = (1 if spec.tied_embeddings else 2) * spec.num_embedding_params + spec.num_positions * spec.d_model
        final_norm = spec.num_params - tables - spec.num_layers * spec.num_layer_params
        assert final_norm == (2 if spec.has_biases else 1) * spec.d_model, spec.name


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
    ("name", "group_size", "kv_elements"),
    [
        ("Qwen3-32B", 8, 131_072),
        ("Qwen3-235B-A22B", 16, 96_256),
        ("Qwen2.5-0.5B-Instruct", 7, 6144),
        ("OPT-13B", 1, 409_600),
    ],
)
def test_groups_and_kv_elements(name: str, group_size: int, kv_elements: int):
    assert MODELS[name].group_size == group_size
    assert MODELS[name].kv_elements_per_token == kv_elements


def test_models_are_values():
    twin = dataclasses.replace(MODELS["Llama-3.1-8B-Instruct"])
    assert hash(twin) == hash(MODELS["Llama-3.1-8B-Instruct"])
    assert {twin, *MODELS.values()} == set(MODELS.values())
    assert len({*MODELS.values()}) == len(MODELS)
    spec: Any = twin
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.num_layers = 3


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("Qwen3-0.6B", {"num_layers": 0}, "num_layers must be at least 1; got 0 in model 'Qwen3-0.6B'"),
        ("Qwen3-0.6B", {"max_len": -1}, "max_len must be at least 1; got -1"),
        (
            "Qwen3-0.6B",
            {"num_kv_heads": 5},
            "num_kv_heads must divide .*; got 5 and 16 .*Use a divisor of 16",
        ),
        ("Qwen3-0.6B", {"head_dim": 127}, "head_dim must be even"),
        ("Qwen3-0.6B", {"rope_theta": 0.0}, "rope_theta must be positive; got 0.0 in model 'Qwen3-0.6B'"),
        ("Qwen3-0.6B", {"norm_eps": float("nan")}, "norm_eps must be positive; got nan"),
        ("OPT-125M", {"num_positions": -1}, "num_positions must not be negative; got -1"),
        ("Qwen3-0.6B", {"num_experts": 4}, "num_active_experts must lie in 1..num_experts, or both be 0; got 0 and 4"),
        (
            "Qwen3-30B-A3B",
            {"num_active_experts": 129},
            "num_active_experts must lie in .*; got 129 and 128",
        ),
        ("Qwen3-8B", {"stores_tied_head": True}, "stores_tied_head needs tied_embeddings; 'Qwen3-8B' has"),
    ],
)
def test_impossible_geometry_is_refused(name: str, change: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(MODELS[name], **change)


LLAMA3 = Llama3Rope(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_len=8192)
YARN = YarnRope(factor=4.0, original_max_len=32_768)


@pytest.mark.parametrize(
    ("scaling", "change", "message"),
    [
        (LLAMA3, {"factor": 0.5}, "factor must be at least 1; got 0.5"),
        (LLAMA3, {"high_freq_factor": 1.0}, "high_freq_factor must exceed low_freq_factor.*got 1.0 and 1.0"),
        (LLAMA3, {"low_freq_factor": 0.0}, "and both be positive; got 4.0 and 0.0"),
        (YARN, {"original_max_len": 0}, "original_max_len must be at least 1; got 0"),
        (YARN, {"beta_fast": 1.0}, "beta_fast must exceed beta_slow, and both be positive; got 1.0 and 1.0"),
        (YARN, {"attention_factor": 0.0}, "attention_factor must be positive, or None; got 0.0"),
    ],
)
def test_impossible_rope_scaling_is_refused(scaling: Any, change: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(scaling, **change)


def test_specs_of_one_family_share_their_switches():
    """One slip in a row of the table (a bias, a norm) would show here."""
    switches = ("rope_theta", "qk_norm", "qkv_bias", "gated_mlp", "has_biases", "vocab_size")
    for family in ("Qwen3", "Qwen3-MoE", "Kinetics-Mini", "Llama-3", "OPT"):
        members: list[ModelSpec] = [spec for spec in MODELS.values() if spec.family == family]
        assert len({tuple(getattr(spec, switch) for switch in switches) for spec in members}) == 1, family
