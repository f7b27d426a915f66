"""config.json and `ModelSpec`: every field is read, checked against what `Decoder` computes, or listed as harmless.

Handled: dense Qwen3. Other families, quantised weights, sliding windows and scaled rotary embeddings are refused.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from kinetics_jax.specs import MODELS, ModelSpec

from ._problems import raise_problems

_SIZES = {  # field of config.json: field of ModelSpec
    "num_hidden_layers": "num_layers",
    "hidden_size": "d_model",
    "intermediate_size": "mlp_dim",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "head_dim": "head_dim",
    "vocab_size": "vocab_size",
    "max_position_embeddings": "max_len",
}

_FIXED: dict[str, Any] = {  # what Decoder computes; an absent field means the same
    "architectures": ["Qwen3ForCausalLM"],
    "hidden_act": "silu",
    "attention_bias": False,
    "use_sliding_window": False,
    "sliding_window": None,
    "rope_scaling": None,
    "is_encoder_decoder": False,
}

# Change no logit: initialisation, training, bookkeeping, and token ids that belong to the tokenizer and the sampler.
_IGNORED = frozenset(
    {
        "_name_or_path",
        "attention_dropout",
        "bos_token_id",
        "dtype",
        "eos_token_id",
        "initializer_range",
        "max_window_layers",
        "pad_token_id",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)

_READ = frozenset(_SIZES) | {
    "model_type",
    "rms_norm_eps",
    "rope_theta",
    "rope_parameters",
    "tie_word_embeddings",
    "layer_types",
}


def spec_from_hf_config(config: Mapping[str, Any], *, name: str = "") -> ModelSpec:
    """Return the geometry that a Hugging Face config describes.

    A geometry of the table `MODELS` comes back under its published name.

    Args:
        config: The parsed config.json of a Qwen3ForCausalLM.
        name: Name for a geometry that is not in `MODELS`; empty takes "Qwen3-custom".

    Returns:
        The spec.

    Raises:
        ValueError: If fields are missing, malformed, unknown or ask for what `Decoder` lacks; lists them all.

    Example:
        >>> spec_from_hf_config(spec_to_hf_config(MODELS["Qwen3-8B"])).name
        'Qwen3-8B'
        >>> spec_from_hf_config({"model_type": "gpt2"})
        Traceback (most recent call last):
        ...
        ValueError: cannot read config.json: model_type must be 'qwen3'; got 'gpt2'
    """
    if config.get("model_type") != "qwen3":
        raise_problems("cannot read config.json", [f"model_type must be 'qwen3'; got {config.get('model_type')!r}"])
    problems: list[str] = []
    sizes: dict[str, Any] = {ours: _size(config, field, problems) for field, ours in _SIZES.items()}
    eps = _positive(config.get("rms_norm_eps", 1e-6), "rms_norm_eps", problems)
    theta = _rope_theta(config, problems)
    tied = config.get("tie_word_embeddings", False)
    if not isinstance(tied, bool):
        problems.append(f"tie_word_embeddings must be true or false; got {tied!r}")
    _check_fixed(config, problems)
    raise_problems("cannot read config.json", problems)

    try:
        spec = ModelSpec(
            name=name or "Qwen3-custom",
            family="Qwen3",
            rope_theta=theta,
            norm_eps=eps,
            tied_embeddings=tied,
            **sizes,
        )
    except ValueError as error:
        raise ValueError(f"cannot read config.json: {error}") from error
    return _published(spec)


def spec_to_hf_config(
    spec: ModelSpec,
    *,
    dtype: str = "bfloat16",
    bos_token_id: int | None = None,
    eos_token_id: int | None = None,
    pad_token_id: int | None = None,
) -> dict[str, Any]:
    """Return the config.json that transformers loads as Qwen3ForCausalLM.

    Args:
        spec: The geometry.
        dtype: Dtype of the stored weights.
        bos_token_id: First token of a text, if the model has one.
        eos_token_id: Token that ends a text, if the model has one.
        pad_token_id: Token that fills a batch, if the model has one.

    Returns:
        A dictionary for JSON. The rotary base is written as `rope_theta`, which transformers 4 and 5 both read.

    Raises:
        ValueError: If the geometry is none of Qwen3's (it always has QK-norm).

    Example:
        >>> spec_to_hf_config(MODELS["Qwen3-0.6B"])["head_dim"]
        128
    """
    if not spec.qk_norm:
        raise ValueError(
            f"Qwen3ForCausalLM always has QK-norm; got qk_norm=False in {spec.name!r}. Train it with QK-norm."
        )
    return {
        "model_type": "qwen3",
        **_FIXED,
        **{field: getattr(spec, ours) for field, ours in _SIZES.items()},
        "rms_norm_eps": spec.norm_eps,
        "rope_theta": spec.rope_theta,
        "tie_word_embeddings": spec.tied_embeddings,
        "bos_token_id": bos_token_id,
        "eos_token_id": eos_token_id,
        "pad_token_id": pad_token_id,
        "torch_dtype": dtype,
    }


def _published(spec: ModelSpec) -> ModelSpec:
    """Return the spec of `MODELS` with this geometry, or `spec` itself."""
    for known in MODELS.values():
        if replace(known, name=spec.name, family=spec.family, hf_repo=spec.hf_repo) == spec:
            return known
    return spec


def _size(config: Mapping[str, Any], field: str, problems: list[str]) -> int:
    value = config.get(field)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    problems.append(f"{field} must be a whole number of at least 1; got {value!r}")
    return 1


def _positive(value: Any, field: str, problems: list[str]) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf"):
        return float(value)
    problems.append(f"{field} must be a positive number; got {value!r}")
    return 1.0


def _rope_theta(config: Mapping[str, Any], problems: list[str]) -> float:
    """Read the rotary base from where transformers 4 (`rope_theta`) or 5 (`rope_parameters`) keeps it."""
    parameters = config.get("rope_parameters") or {}
    if not isinstance(parameters, dict) or parameters.get("rope_type", "default") != "default":
        problems.append(f"rope_parameters must be of rope_type 'default'; got {parameters!r}")
        return 1.0
    if extra := sorted(set(parameters) - {"rope_theta", "rope_type"}):
        problems.append(f"rope_parameters has unknown fields {', '.join(extra)}")
    stated = [source["rope_theta"] for source in (config, parameters) if "rope_theta" in source]
    if len(stated) == 2 and stated[0] != stated[1]:
        problems.append(f"rope_theta is {stated[0]!r}, but rope_parameters says {stated[1]!r}")
    return _positive(stated[0] if stated else None, "rope_theta", problems)


def _check_fixed(config: Mapping[str, Any], problems: list[str]) -> None:
    for field, wanted in _FIXED.items():
        got = config.get(field, wanted)
        unused_window = field == "sliding_window" and config.get("use_sliding_window", False) is False
        if (got != wanted or type(got) is not type(wanted)) and not unused_window:
            problems.append(f"{field} must be {wanted!r}; got {got!r}")
    layer_types = config.get("layer_types") or []
    if not isinstance(layer_types, list) or any(kind != "full_attention" for kind in layer_types):
        problems.append(f"layer_types must all be 'full_attention'; got {layer_types!r}")
    elif layer_types and len(layer_types) != config.get("num_hidden_layers"):
        problems.append(
            f"layer_types must have one entry per layer; got {len(layer_types)} for {config.get('num_hidden_layers')}"
        )
    known = _READ | _IGNORED | frozenset(_FIXED)
    problems.extend(
        f"unknown field {field!r}: it may change what the model computes" for field in sorted(set(config) - known)
    )
