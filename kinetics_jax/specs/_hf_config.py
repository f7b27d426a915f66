"""config.json of Hugging Face and the fields of a `ModelSpec`: one table of families, read in both directions.

Called by `ModelSpec.from_hf_config` and `to_hf_config`. Every field of a config is read, or checked against what
`models` computes, or listed as one that changes no logit. Quantised weights, sliding windows, biases beyond QKV and
layers of mixed kinds are refused.
"""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from ._hf_rope import ROPE_FIELDS, read_rope, write_rope
from ._hf_values import is_size, read_positive, read_size

_Fields = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class _Family:
    """Say how one `model_type` writes a geometry.

    Attributes:
        model_type: What config.json calls the family.
        architecture: The class of transformers.
        name: What we call it where the geometry has no published name.
        sizes: Field of config.json: field of ModelSpec, whole numbers.
        fixed: Fields with the one value that `models` computes, which an absent field means, too.
        spec: Fields of ModelSpec that all its members share; with `num_experts` in `sizes`, they identify it.
        ignored: Fields beyond `_IGNORED` that change no logit.
        absent: Sizes that may be absent or null, with what transformers takes for them.
        default_theta: The rotary base of a config that states none; None refuses it.
    """

    model_type: str
    architecture: str
    name: str
    sizes: Mapping[str, str]
    fixed: Mapping[str, Any]
    spec: Mapping[str, Any]
    ignored: frozenset[str]
    absent: Mapping[str, Callable[[Mapping[str, Any]], int | None]]
    default_theta: float | None = None

    @property
    def is_mixture(self) -> bool:
        return "num_experts" in self.sizes


_SIZES = {
    "num_hidden_layers": "num_layers",
    "hidden_size": "d_model",
    "intermediate_size": "mlp_dim",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "head_dim": "head_dim",
    "vocab_size": "vocab_size",
    "max_position_embeddings": "max_len",
}
_MIXTURE_SIZES = {theirs: ours for theirs, ours in _SIZES.items() if theirs != "intermediate_size"} | {
    "moe_intermediate_size": "mlp_dim",
    "num_experts": "num_experts",
    "num_experts_per_tok": "num_active_experts",
}
_RENAMED = {"num_local_experts": "num_experts"}  # transformers 5 writes the first and reads both

_PLAIN = {"hidden_act": "silu", "is_encoder_decoder": False}
_QWEN = _PLAIN | {"use_sliding_window": False, "sliding_window": None}
_UNBIASED_GATED = {"gated_mlp": True, "has_biases": False, "num_positions": 0}

# Initialisation, training, bookkeeping, and token ids, which belong to the tokenizer and the sampler.
_IGNORED = frozenset(
    {
        *("_name_or_path", "architectures", "model_type", "transformers_version", "dtype", "torch_dtype"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "id2label", "label2id", "problem_type"),
        *("attention_dropout", "initializer_range", "use_cache", "return_dict", "chunk_size_feed_forward"),
        *("output_attentions", "output_hidden_states"),
    }
)


def _shared_width(config: Mapping[str, Any]) -> int | None:
    """Return the width of heads that share d_model."""
    width, heads = config.get("hidden_size"), config.get("num_attention_heads")
    return width // heads if is_size(width) and is_size(heads) and width % heads == 0 else None


def _one_kv_head_each(config: Mapping[str, Any]) -> int | None:
    """Return the KV heads of attention without groups."""
    heads = config.get("num_attention_heads")
    return heads if is_size(heads) else None


_FAMILIES = {
    family.model_type: family
    for family in (
        _Family(
            model_type="qwen2",
            architecture="Qwen2ForCausalLM",
            name="Qwen2",
            sizes=_SIZES,
            fixed=_QWEN | {"use_mrope": False, "attention_bias": True},
            spec=_UNBIASED_GATED | {"qk_norm": False, "qkv_bias": True},
            ignored=frozenset({"max_window_layers"}),
            absent={"head_dim": _shared_width},
        ),
        _Family(
            model_type="qwen3",
            architecture="Qwen3ForCausalLM",
            name="Qwen3",
            sizes=_SIZES,
            fixed=_QWEN | {"attention_bias": False},
            spec=_UNBIASED_GATED | {"qk_norm": True, "qkv_bias": False},
            ignored=frozenset({"max_window_layers"}),
            absent={"head_dim": lambda _: 128},  # not shared: Qwen3-0.6B has 16 heads of 128 in a width of 1024
        ),
        _Family(
            model_type="qwen3_moe",
            architecture="Qwen3MoeForCausalLM",
            name="Qwen3-MoE",
            sizes=_MIXTURE_SIZES,
            fixed=_QWEN | {"attention_bias": False, "decoder_sparse_step": 1, "mlp_only_layers": []},
            spec=_UNBIASED_GATED | {"qk_norm": True, "qkv_bias": False},
            # intermediate_size is the width of layers without experts, of which there are none.
            ignored=frozenset(
                {"max_window_layers", "intermediate_size", "router_aux_loss_coef", "output_router_logits"}
            ),
            absent={"head_dim": _shared_width},
        ),
        _Family(
            model_type="llama",
            architecture="LlamaForCausalLM",
            name="Llama",
            sizes=_SIZES,
            fixed=_PLAIN | {"attention_bias": False, "mlp_bias": False},
            spec=_UNBIASED_GATED | {"qk_norm": False, "qkv_bias": False},
            ignored=frozenset({"pretraining_tp"}),
            absent={"head_dim": _shared_width, "num_key_value_heads": _one_kv_head_each},
            default_theta=1e4,  # Llama 1 and 2
        ),
    )
}


def read_hf_config(config: Mapping[str, Any]) -> tuple[_Fields, list[str]]:
    """Return the fields of ModelSpec that a config describes, all but `name`, and everything that is wrong with it.

    The fields are empty if a size is missing or malformed.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in _FAMILIES:
        known = ", ".join(repr(known) for known in _FAMILIES)
        return {}, [f"model_type must be one of {known}; got {model_type!r}"]
    family = _FAMILIES[model_type]
    problems: list[str] = []
    config = _completed(config, family, problems)
    sizes = {ours: read_size(config.get(theirs), theirs, problems) for theirs, ours in family.sizes.items()}
    fields: _Fields = {"family": family.name, **family.spec, **sizes}
    fields["norm_eps"] = read_positive(config.get("rms_norm_eps", 1e-6), "rms_norm_eps", problems)
    fields["rope_theta"], fields["rope_scaling"] = read_rope(config, problems, default_theta=family.default_theta)
    fields["tied_embeddings"] = _read_flag(config, "tie_word_embeddings", problems)
    if family.is_mixture:
        fields["norm_topk_prob"] = _read_flag(config, "norm_topk_prob", problems)
    _check_fixed(config, family, problems)
    return ({} if None in sizes.values() else fields), problems


def write_hf_config(spec: Mapping[str, Any], *, dtype: str, token_ids: Mapping[str, int | None]) -> _Fields:
    """Return the config.json of the fields of a spec, the inverse of `read_hf_config`.

    Raises:
        ValueError: If no family computes the geometry.
    """
    family = _family_of(spec)
    written = {theirs: spec[ours] for theirs, ours in family.sizes.items()}
    if family.is_mixture:
        written["norm_topk_prob"] = spec["norm_topk_prob"]
    return {
        "model_type": family.model_type,
        "architectures": [family.architecture],
        **deepcopy(dict(family.fixed)),
        **written,
        "rms_norm_eps": spec["norm_eps"],
        **write_rope(spec["rope_theta"], spec["rope_scaling"]),
        "tie_word_embeddings": spec["tied_embeddings"],
        **token_ids,
        "torch_dtype": dtype,
    }


def _family_of(spec: Mapping[str, Any]) -> _Family:
    for family in _FAMILIES.values():
        if family.is_mixture == (spec["num_experts"] > 0) and family.spec.items() <= spec.items():
            return family
    got = ", ".join(f"{name}={spec[name]}" for name in (*_UNBIASED_GATED, "qk_norm", "qkv_bias", "num_experts"))
    known = "; ".join(
        f"{family.architecture} (qk_norm={family.spec['qk_norm']}, qkv_bias={family.spec['qkv_bias']}"
        f"{', experts' if family.is_mixture else ''})"
        for family in _FAMILIES.values()
    )
    raise ValueError(
        f"no Hugging Face family computes {spec['name']!r} ({got}). Known, gated and without biases: {known}"
    )


def _completed(config: Mapping[str, Any], family: _Family, problems: list[str]) -> _Fields:
    """Return the config with absent sizes filled in and every field under its name of transformers 4."""
    completed = dict(config)
    for new, old in _RENAMED.items():
        if new in completed and old in family.sizes:
            value = completed.pop(new)
            if completed.setdefault(old, value) != value:
                problems.append(f"{new} is {value!r}, but {old} is {completed[old]!r}: they mean the same")
    filled = {name: rule(config) for name, rule in family.absent.items() if config.get(name) is None}
    return completed | filled


def _read_flag(config: Mapping[str, Any], field: str, problems: list[str]) -> bool:
    value = config.get(field, False)
    if not isinstance(value, bool):
        problems.append(f"{field} must be true or false; got {value!r}")
    return value is True


def _check_fixed(config: Mapping[str, Any], family: _Family, problems: list[str]) -> None:
    if config.get("architectures") not in (None, [family.architecture]):
        problems.append(f"architectures must be {[family.architecture]!r}; got {config['architectures']!r}")
    for name, wanted in family.fixed.items():
        got = config.get(name, wanted)
        unused_window = name == "sliding_window" and config.get("use_sliding_window", False) is False
        no_list = wanted == [] and got is None
        if (got != wanted or type(got) is not type(wanted)) and not (unused_window or no_list):
            problems.append(f"{name} must be {wanted!r}; got {got!r}")
    layer_types = config.get("layer_types") or []
    if not isinstance(layer_types, list) or any(kind != "full_attention" for kind in layer_types):
        problems.append(f"layer_types must all be 'full_attention'; got {layer_types!r}")
    elif layer_types and len(layer_types) != config.get("num_hidden_layers"):
        problems.append(
            f"layer_types must have one entry per layer; got {len(layer_types)} for {config.get('num_hidden_layers')}"
        )
    read = {*family.sizes, *ROPE_FIELDS, "rms_norm_eps", "tie_word_embeddings", "layer_types"}
    read |= {"norm_topk_prob"} if family.is_mixture else set()
    problems.extend(
        f"unknown field {name!r}: it may change what the model computes"
        for name in sorted(set(config) - read - _IGNORED - family.ignored - set(family.fixed))
    )
