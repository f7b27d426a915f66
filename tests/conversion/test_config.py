"""config.json both ways: every field is handled, and what Decoder does not compute is refused."""

from dataclasses import replace
from typing import Any

import pytest

from checkpoints_conversion import spec_from_hf_config, spec_to_hf_config
from kinetics_jax.specs import MODELS, ModelSpec

# The published config.json of Qwen3-0.6B, typed in.
QWEN3_0_6B = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}


@pytest.mark.parametrize("name", list(MODELS))
def test_every_known_model_survives_the_round_trip(name: str):
    assert spec_from_hf_config(spec_to_hf_config(MODELS[name])) == MODELS[name]


def test_unknown_geometry_keeps_the_given_name(tiny_spec: ModelSpec):
    assert spec_from_hf_config(spec_to_hf_config(tiny_spec), name="tiny") == tiny_spec


def test_published_config_of_transformers_4():
    assert spec_from_hf_config(QWEN3_0_6B) is MODELS["Qwen3-0.6B"]


def test_config_of_transformers_5():
    config: dict[str, Any] = dict(QWEN3_0_6B)
    for field in ("rope_theta", "rope_scaling", "torch_dtype"):
        del config[field]
    config |= {
        "dtype": "bfloat16",
        "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
        "layer_types": ["full_attention"] * 28,
        "pad_token_id": None,
    }
    assert spec_from_hf_config(config) is MODELS["Qwen3-0.6B"]


def test_token_ids_are_written():
    config = spec_to_hf_config(MODELS["Qwen3-0.6B"], bos_token_id=1, eos_token_id=2, pad_token_id=0)
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (1, 2, 0)
    assert config["architectures"] == ["Qwen3ForCausalLM"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "model_type must be 'qwen3'; got 'llama'"),
        ({"architectures": ["Qwen3MoeForCausalLM"]}, "architectures must be"),
        ({"hidden_act": "gelu"}, "hidden_act must be 'silu'; got 'gelu'"),
        ({"attention_bias": True}, "attention_bias must be False; got True"),
        ({"use_sliding_window": True, "sliding_window": 4096}, "use_sliding_window must be False; got True"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_scaling must be None"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}}, "rope_type 'default'"),
        ({"rope_parameters": {"rope_theta": 5.0}}, "rope_theta is 1000000, but rope_parameters says 5.0"),
        ({"rope_parameters": {"rope_theta": 1e6, "factor": 2}}, "unknown fields factor"),
        ({"rope_theta": "big"}, "rope_theta must be a positive number; got 'big'"),
        ({"rope_theta": None}, "rope_theta must be a positive number; got None"),
        ({"rms_norm_eps": 0}, "rms_norm_eps must be a positive number; got 0"),
        ({"num_hidden_layers": 28.0}, "num_hidden_layers must be a whole number"),
        ({"num_hidden_layers": True}, "num_hidden_layers must be a whole number"),
        ({"vocab_size": -1}, "vocab_size must be a whole number of at least 1; got -1"),
        ({"num_key_value_heads": 5}, "num_kv_heads must divide num_heads; got 5 and 16"),
        ({"head_dim": 127}, "head_dim must be even"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false; got 'yes'"),
        ({"layer_types": ["sliding_attention"] * 28}, "layer_types must all be 'full_attention'"),
        ({"layer_types": ["full_attention"] * 3}, "one entry per layer; got 3 for 28"),
        ({"quantization_config": {"bits": 4}}, "unknown field 'quantization_config'"),
    ],
)
def test_bad_fields_are_named(changes: dict, message: str):
    with pytest.raises(ValueError, match=r"cannot read config\.json") as caught:
        spec_from_hf_config(QWEN3_0_6B | changes)
    assert message in str(caught.value)


def test_all_problems_come_in_one_error():
    config = {field: value for field, value in QWEN3_0_6B.items() if field != "head_dim"}
    with pytest.raises(ValueError, match="3 problems") as caught:
        spec_from_hf_config(config | {"hidden_act": "gelu", "quantization_config": {}})
    assert all(word in str(caught.value) for word in ("head_dim", "gelu", "quantization_config"))


def test_a_model_without_qk_norm_is_no_qwen3(tiny_spec: ModelSpec):
    with pytest.raises(ValueError, match="always has QK-norm"):
        spec_to_hf_config(replace(tiny_spec, qk_norm=False))
