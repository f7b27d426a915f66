"""config.json both ways: published files give the named models, every field is handled, the rest is refused."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinetics_jax.specs import MODELS, Llama3Rope, ModelSpec, YarnRope

# The config.json of each repository on the hub, typed in.
PUBLISHED = {file.stem: json.loads(file.read_text()) for file in Path(__file__).parent.glob("hf_configs/*.json")}
QWEN2, QWEN3 = PUBLISHED["Qwen2.5-7B-Instruct"], PUBLISHED["Qwen3-0.6B"]
QWEN3_MOE, LLAMA = PUBLISHED["Qwen3-30B-A3B"], PUBLISHED["Llama-3.2-1B-Instruct"]
RUNNABLE = [name for name, spec in MODELS.items() if spec.gated_mlp]

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}
LLAMA3 = LLAMA["rope_scaling"]


def read(config: dict[str, Any], **changes: Any) -> ModelSpec:
    return ModelSpec.from_hf_config(config | changes)


def without(config: dict[str, Any], *fields: str) -> dict[str, Any]:
    assert set(fields) <= set(config)
    return {field: value for field, value in config.items() if field not in fields}


def test_all_families_are_published_here():
    assert len(PUBLISHED) >= 7
    assert {config["model_type"] for config in PUBLISHED.values()} == {"qwen2", "qwen3", "qwen3_moe", "llama"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_config_gives_the_named_model(name: str):
    assert ModelSpec.from_hf_config(PUBLISHED[name], name=name) is MODELS[name]


@pytest.mark.parametrize("name", sorted(set(PUBLISHED) - {"DeepSeek-R1-Distill-Llama-8B"}))
def test_geometry_alone_tells_the_name(name: str):
    assert ModelSpec.from_hf_config(PUBLISHED[name]) is MODELS[name]
    assert ModelSpec.from_hf_config(PUBLISHED[name], name="a fine-tune of it") is MODELS[name]


def test_models_of_one_geometry_are_told_apart_by_name():
    config, names = PUBLISHED["DeepSeek-R1-Distill-Llama-8B"], ["Llama-3.1-8B-Instruct", "DeepSeek-R1-Distill-Llama-8B"]
    assert [ModelSpec.from_hf_config(config, name=name).name for name in names] == names
    assert ModelSpec.from_hf_config(config).name == names[0]


@pytest.mark.parametrize("name", RUNNABLE)
def test_every_model_survives_the_round_trip(name: str):
    config = json.loads(json.dumps(MODELS[name].to_hf_config()))
    assert ModelSpec.from_hf_config(config, name=name) is MODELS[name]


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        ("Qwen3-0.6B", "Qwen3ForCausalLM"),
        ("Kinetics-Mini-0.1M", "Qwen3ForCausalLM"),
        ("Qwen3-235B-A22B", "Qwen3MoeForCausalLM"),
        ("Qwen2.5-3B-Instruct", "Qwen2ForCausalLM"),
        ("DeepSeek-R1-Distill-Qwen-32B", "Qwen2ForCausalLM"),
        ("Llama-3.1-70B-Instruct", "LlamaForCausalLM"),
    ],
)
def test_what_is_written_names_its_architecture(name: str, architecture: str):
    assert MODELS[name].to_hf_config()["architectures"] == [architecture]


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_is_written_equals_the_published_file(name: str):
    """In every field that both state, but for those that change no logit; a window that is not used is null."""
    ours, theirs = MODELS[name].to_hf_config(), dict(PUBLISHED[name]) | {"sliding_window": None}
    ids = {"bos_token_id", "eos_token_id", "pad_token_id"}
    assert {field: ours[field] for field in set(ours) & set(theirs) - ids} == {
        field: theirs[field] for field in set(ours) & set(theirs) - ids
    }


scalings = st.one_of(
    st.none(),
    st.builds(
        Llama3Rope,
        factor=st.floats(1, 64),
        low_freq_factor=st.floats(0.5, 2),
        high_freq_factor=st.floats(3, 8),
        original_max_len=st.integers(1, 10**6),
    ),
    st.builds(
        YarnRope,
        factor=st.floats(1, 64),
        original_max_len=st.integers(1, 10**6),
        beta_fast=st.floats(8, 64),
        beta_slow=st.floats(0.5, 4),
        attention_factor=st.none() | st.floats(0.1, 2),
    ),
)


@st.composite
def geometries(draw: st.DrawFn) -> ModelSpec:
    sizes = st.integers(1, 5000)
    num_kv_heads, num_experts = draw(st.integers(1, 8)), draw(st.integers(1, 64))
    qk_norm, qkv_bias, mixture = draw(
        st.sampled_from([(True, False, False), (True, False, True), (False, True, False), (False, False, False)])
    )
    return ModelSpec(
        name="mine",
        family={(True, True): "Qwen3-MoE", (True, False): "Qwen3", (False, True): "Qwen2"}.get(
            (qk_norm, mixture or qkv_bias), "Llama"
        ),
        num_layers=draw(sizes),
        d_model=draw(sizes),
        mlp_dim=draw(sizes),
        num_heads=num_kv_heads * draw(st.integers(1, 8)),
        num_kv_heads=num_kv_heads,
        head_dim=2 * draw(sizes),
        vocab_size=draw(sizes),
        max_len=draw(sizes),
        rope_theta=draw(st.floats(1, 1e8)),
        rope_scaling=draw(scalings),
        norm_eps=draw(st.floats(1e-9, 1e-3)),
        tied_embeddings=draw(st.booleans()),
        qk_norm=qk_norm,
        qkv_bias=qkv_bias,
        num_experts=num_experts if mixture else 0,
        num_active_experts=draw(st.integers(1, num_experts)) if mixture else 0,
        norm_topk_prob=draw(st.booleans()) if mixture else True,
    )


@given(geometries())
def test_any_geometry_survives_the_round_trip(spec: ModelSpec):
    config = json.loads(json.dumps(spec.to_hf_config()))
    assert ModelSpec.from_hf_config(config, name="mine") == spec


def test_a_custom_geometry_is_named_after_its_family():
    assert read(QWEN3, vocab_size=7).name == "Qwen3-custom"
    assert read(QWEN3_MOE, vocab_size=7).name == "Qwen3-MoE-custom"
    assert (read(LLAMA, vocab_size=7).family, read(QWEN2, vocab_size=7).family) == ("Llama", "Qwen2")


def test_token_ids_and_dtype_are_written():
    config = MODELS["Qwen3-0.6B"].to_hf_config(bos_token_id=1, eos_token_id=2, pad_token_id=0, dtype="float32")
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (1, 2, 0)
    assert config["torch_dtype"] == "float32"


def test_what_is_written_is_the_callers_own():
    MODELS["Qwen3-30B-A3B"].to_hf_config()["mlp_only_layers"].append(0)
    assert MODELS["Qwen3-30B-A3B"].to_hf_config()["mlp_only_layers"] == []


# What transformers 5.23 writes for the same models.
V5_QWEN3 = without(QWEN3, "rope_theta", "rope_scaling", "torch_dtype") | {
    "dtype": "bfloat16",
    "layer_types": ["full_attention"] * 28,
    "pad_token_id": None,
    "rope_parameters": {"rope_theta": 1_000_000.0, "rope_type": "default"},
}
V5_QWEN3_MOE = without(QWEN3_MOE, "rope_theta", "rope_scaling", "torch_dtype", "num_experts", "max_window_layers") | {
    "dtype": "bfloat16",
    "num_local_experts": 128,
    "rope_parameters": {"rope_theta": 1_000_000.0, "rope_type": "default"},
}
V5_LLAMA = without(LLAMA, "rope_theta", "rope_scaling", "torch_dtype") | {
    "dtype": "bfloat16",
    "rope_parameters": LLAMA3 | {"rope_theta": 500_000.0},
}


@pytest.mark.parametrize(
    ("config", "name"),
    [(V5_QWEN3, "Qwen3-0.6B"), (V5_QWEN3_MOE, "Qwen3-30B-A3B"), (V5_LLAMA, "Llama-3.2-1B-Instruct")],
)
def test_configs_of_transformers_5(config: dict[str, Any], name: str):
    assert ModelSpec.from_hf_config(config) is MODELS[name]


@pytest.mark.parametrize(
    ("config", "fields", "same"),
    [
        (QWEN2, {"head_dim": 128}, True),  # 3584 / 28
        (QWEN2, {"head_dim": None}, True),
        (LLAMA, {"head_dim": None}, True),  # 2048 / 32
        (QWEN3, {"head_dim": None}, True),  # transformers' default of Qwen3 is 128, not 1024 / 16
        (QWEN3_MOE, {"head_dim": None}, False),  # here it is 2048 / 32
        (LLAMA, {"num_key_value_heads": None}, False),
        (QWEN2, {"use_mrope": False, "attention_bias": True}, True),
        (QWEN3_MOE, {"mlp_only_layers": None}, True),
        (QWEN3_MOE, {"norm_topk_prob": False}, False),
        (QWEN3_MOE, {"num_local_experts": 128}, True),
    ],
)
def test_optional_fields(config: dict[str, Any], fields: dict[str, Any], same: bool):
    assert (read(config, **fields) == read(config)) == same


def test_absent_fields_mean_what_transformers_takes():
    assert read(QWEN3_MOE, head_dim=None).head_dim == 64
    assert read(LLAMA, num_key_value_heads=None).num_kv_heads == 32
    assert read(without(LLAMA, "rope_theta", "rope_scaling")).rope_theta == 10_000.0
    assert read(without(QWEN3_MOE, "norm_topk_prob")).norm_topk_prob is False
    assert read(without(LLAMA, "rms_norm_eps")).norm_eps == 1e-6
    assert read(without(LLAMA, "tie_word_embeddings")).tied_embeddings is False


YARN_SPEC = YarnRope(factor=4.0, original_max_len=32_768)


@pytest.mark.parametrize(
    ("fields", "scaling"),
    [
        ({"rope_scaling": YARN}, YARN_SPEC),
        ({"rope_scaling": {"type": "yarn", "factor": 4, "original_max_position_embeddings": 32_768}}, YARN_SPEC),
        ({"rope_scaling": YARN | {"type": "yarn"}}, YARN_SPEC),
        ({"rope_scaling": YARN | {"truncate": True, "beta_fast": None, "beta_slow": 1}}, YARN_SPEC),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}, "max_position_embeddings": 32_768}, YARN_SPEC),
        ({"rope_parameters": YARN | {"rope_theta": 1e6}}, YARN_SPEC),
        ({"rope_scaling": YARN, "rope_parameters": YARN | {"rope_theta": 1e6}}, YARN_SPEC),
        ({"rope_scaling": YARN | {"attention_factor": 1.5}}, dataclasses.replace(YARN_SPEC, attention_factor=1.5)),
        ({"rope_scaling": {"rope_type": "default"}}, None),
        ({"rope_scaling": {}}, None),
        (
            {"rope_scaling": LLAMA3},
            Llama3Rope(factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_len=8192),
        ),
    ],
)
def test_rope_scaling_is_read(fields: dict[str, Any], scaling: Any):
    spec = read(QWEN3, **fields)
    assert spec.rope_scaling == scaling
    assert spec.rope_theta == 1e6


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (QWEN3, {"model_type": "gpt2"}, "model_type must be one of 'qwen2', 'qwen3', 'qwen3_moe', 'llama'; got 'gpt2'"),
        (QWEN3, {"model_type": ["qwen3"]}, "got ['qwen3']"),
        (QWEN3, {"model_type": None}, "got None"),
        (QWEN3, {"architectures": ["Qwen3MoeForCausalLM"]}, "architectures must be ['Qwen3ForCausalLM']; got"),
        (LLAMA, {"architectures": ["LlamaForSequenceClassification"]}, "architectures must be ['LlamaForCausalLM']"),
        (QWEN3, {"hidden_act": "gelu"}, "hidden_act must be 'silu'; got 'gelu'"),
        (QWEN3, {"attention_bias": True}, "attention_bias must be False; got True"),
        (QWEN3, {"attention_bias": 0}, "attention_bias must be False; got 0"),
        (LLAMA, {"attention_bias": True}, "attention_bias must be False; got True"),
        (LLAMA, {"mlp_bias": True}, "mlp_bias must be False; got True"),
        (QWEN2, {"attention_bias": False}, "attention_bias must be True; got False"),
        (QWEN2, {"use_mrope": True}, "use_mrope must be False; got True"),
        (QWEN2, {"use_sliding_window": True}, "use_sliding_window must be False; got True"),
        (QWEN2, {"use_sliding_window": True}, "sliding_window must be None; got 131072"),
        (LLAMA, {"sliding_window": 4096}, "unknown field 'sliding_window'"),
        (QWEN3_MOE, {"decoder_sparse_step": 2}, "decoder_sparse_step must be 1; got 2"),
        (QWEN3_MOE, {"mlp_only_layers": [0]}, "mlp_only_layers must be []; got [0]"),
        (QWEN3_MOE, {"num_local_experts": 64}, "num_local_experts is 64, but num_experts is 128"),
        (QWEN3_MOE, {"num_experts_per_tok": 129}, "num_active_experts must lie in 1..num_experts"),
        (QWEN3_MOE, {"norm_topk_prob": "yes"}, "norm_topk_prob must be true or false; got 'yes'"),
        (QWEN3, {"num_experts": 8}, "unknown field 'num_experts'"),
        (QWEN3, {"rms_norm_eps": 0}, "rms_norm_eps must be a positive number; got 0"),
        (QWEN3, {"num_hidden_layers": 28.0}, "num_hidden_layers must be a whole number of at least 1; got 28.0"),
        (QWEN3, {"num_hidden_layers": True}, "num_hidden_layers must be a whole number"),
        (QWEN3, {"vocab_size": -1}, "vocab_size must be a whole number of at least 1; got -1"),
        (QWEN3, {"num_key_value_heads": 5}, "num_kv_heads must divide num_heads; got 5 and 16"),
        (QWEN3, {"head_dim": 127}, "head_dim must be even"),
        (QWEN2, {"hidden_size": 3585}, "head_dim must be a whole number of at least 1; got None"),
        (QWEN3, {"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false; got 'yes'"),
        (QWEN3, {"layer_types": ["sliding_attention"] * 28}, "layer_types must all be 'full_attention'"),
        (QWEN3, {"layer_types": ["full_attention"] * 3}, "one entry per layer; got 3 for 28"),
        (QWEN3, {"quantization_config": {"bits": 4}}, "unknown field 'quantization_config'"),
        (QWEN2, {"auto_map": {}}, "unknown field 'auto_map'"),
        (QWEN3, {"rope_theta": "big"}, "rope_theta must be a positive number; got 'big'"),
        (QWEN3, {"rope_theta": None}, "rope_theta must be a positive number; got None"),
        (QWEN3, {"rope_parameters": {"rope_theta": 5.0}}, "rope_theta is 1000000, but rope_parameters says 5.0"),
        (QWEN3, {"rope_parameters": {"rope_theta": 1e6, "factor": 2}}, "rope_parameters has unknown fields factor"),
        (QWEN3, {"rope_scaling": "yarn"}, "rope_scaling must be an object or null; got 'yarn'"),
        (QWEN3, {"rope_scaling": YARN | {"rope_type": "linear"}}, "rope_scaling.rope_type must be one of 'default', "),
        (QWEN3, {"rope_scaling": YARN | {"rope_type": ["yarn"]}}, "got ['yarn']"),
        (QWEN3, {"rope_scaling": YARN | {"type": "default"}}, "'llama3', 'yarn'; got 'yarn' and 'default'"),
        (QWEN3, {"rope_scaling": YARN | {"mscale": 1.0}}, "rope_scaling has unknown fields mscale"),
        (QWEN3, {"rope_scaling": YARN | {"truncate": False}}, "rope_scaling.truncate must be True; got False"),
        (QWEN3, {"rope_scaling": YARN, "rope_theta": 1.0}, "rope_theta must be above 1 for yarn"),
        (QWEN3, {"rope_scaling": {"rope_type": "yarn"}}, "rope_scaling.factor must be a positive number; got None"),
        (QWEN3, {"rope_scaling": YARN | {"factor": 0.5}}, "rope_scaling: factor must be at least 1; got 0.5"),
        (QWEN3, {"rope_scaling": YARN | {"beta_slow": 40}}, "rope_scaling: beta_fast must exceed beta_slow"),
        (
            QWEN3,
            {"rope_scaling": YARN | {"original_max_position_embeddings": 4096.5}},
            "rope_scaling.original_max_position_embeddings must be a whole number",
        ),
        (QWEN3, {"rope_scaling": YARN, "rope_parameters": {"rope_theta": 1e6}}, "must agree where both are given"),
        (
            LLAMA,
            {"rope_scaling": without(LLAMA3, "original_max_position_embeddings")},
            "rope_scaling.original_max_position_embeddings must be a whole number of at least 1; got None",
        ),
        (LLAMA, {"rope_scaling": LLAMA3 | {"low_freq_factor": 4}}, "high_freq_factor must exceed low_freq_factor"),
    ],
)
def test_bad_fields_are_named(config: dict[str, Any], changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=r"^cannot read config\.json: ") as caught:
        read(config, **changes)
    assert message in str(caught.value)


@pytest.mark.parametrize("field", ["num_hidden_layers", "hidden_size", "vocab_size", "max_position_embeddings"])
@pytest.mark.parametrize("config", [QWEN2, QWEN3, QWEN3_MOE, LLAMA])
def test_a_missing_size_is_named(config: dict[str, Any], field: str):
    with pytest.raises(ValueError, match=f"{field} must be a whole number of at least 1; got None"):
        read(without(config, field))


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_family_refuses_a_field_it_does_not_know(name: str):
    with pytest.raises(ValueError, match=r"config\.json: unknown field 'attention_sinks': it may change what"):
        read(PUBLISHED[name], attention_sinks=4)


def test_all_problems_come_in_one_error():
    """Fields, rope, geometry and unknown names together."""
    changes = {
        "hidden_act": "gelu",
        "quantization_config": {},
        "num_key_value_heads": 5,
        "rope_scaling": {"type": "ntk"},
    }
    with pytest.raises(ValueError, match=r"^cannot read config\.json: 4 problems\n  - ") as caught:
        read(QWEN3, **changes)
    assert all(word in str(caught.value) for word in ("'gelu'", "quantization_config", "got 5 and 16", "'ntk'"))


values = st.none() | st.booleans() | st.integers(-2, 2) | st.floats() | st.text(max_size=3)
anything = st.recursive(
    values, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
)


@given(st.sampled_from(list(PUBLISHED)), st.data())
def test_any_value_gives_a_spec_or_a_value_error(name: str, data: st.DataObject):
    fields = {*PUBLISHED[name], "head_dim", "rope_parameters", "rope_scaling", "layer_types"}
    changes = {data.draw(st.sampled_from(sorted(fields))): data.draw(anything)}
    try:
        spec = read(PUBLISHED[name], **changes)
    except ValueError:
        with pytest.raises(ValueError, match=r"^cannot read config\.json: "):
            read(PUBLISHED[name], **changes)
    else:
        assert ModelSpec.from_hf_config(spec.to_hf_config(), name=spec.name) == spec


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("OPT-125M", {}, "no Hugging Face family computes 'OPT-125M' .*has_biases=True.*Known.*LlamaForCausalLM"),
        ("Qwen3-8B", {"qkv_bias": True}, "no Hugging Face family computes 'Qwen3-8B' .*qk_norm=True, qkv_bias=True"),
        ("Qwen3-30B-A3B", {"qk_norm": False}, "no Hugging Face family computes .*num_experts=128"),
    ],
)
def test_a_geometry_of_no_family_is_not_written(name: str, changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(MODELS[name], **changes).to_hf_config()
