"""GGUF metadata as the config.json of Hugging Face: every key of the architecture is read, checked or refused.

Called by `_gguf`. Mixtures of experts and sliding windows are left out.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

_ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
ROPE_DIVISORS = "rope_freqs.weight"
"""Llama 3.1 and later: what each rotary frequency is divided by [H / 2]."""

_SIZES = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "context_length": "max_position_embeddings",
}
_KV_HEADS, _HEAD_DIM = "attention.head_count_kv", "attention.key_length"
_SAME_AS_HEAD_DIM = ("attention.value_length", "rope.dimension_count")
_FLOATS = {"attention.layer_norm_rms_epsilon": ("rms_norm_eps", None), "rope.freq_base": ("rope_theta", 1e4)}
_FIXED = {"expert_count": 0, "expert_used_count": 0, "attention.causal": True}
_YARN = {
    "rope.scaling.factor": "factor",
    "rope.scaling.original_context_length": "original_max_position_embeddings",
    "rope.scaling.yarn_beta_fast": "beta_fast",
    "rope.scaling.yarn_beta_slow": "beta_slow",
}
_SCALING = "rope.scaling.type"
_FIXED_YARN = {
    "rope.scaling.attn_factor": 1.0,
    "rope.scaling.yarn_attn_factor": 1.0,
    "rope.scaling.yarn_ext_factor": 1.0,
}
_IGNORED = ("rope.scaling.finetuned", "tensor_data_layout")
_TOKEN_IDS = {"bos": "bos_token_id", "eos": "eos_token_id", "padding": "pad_token_id"}

# The file keeps the divisors alone; these numbers of their formula are the same in every published Llama.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_DIVISOR_TOLERANCE = 1e-4
"""llama.cpp's converter computes them in float32."""


def hf_config(
    metadata: Mapping[str, Any], *, vocab_size: int, tied: bool, rope_divisors: np.ndarray | None, problems: list[str]
) -> dict[str, Any]:
    """Return the config that `ModelSpec.from_hf_config` reads; add what is wrong with the metadata to `problems`.

    Args:
        metadata: Values by key.
        vocab_size: Rows of the embedding.
        tied: Whether the file has no output head.
        rope_divisors: The tensor `ROPE_DIVISORS`, if the file has it [H / 2].
        problems: What is wrong is added here.
    """
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in _ARCHITECTURES:
        known = ", ".join(repr(known) for known in _ARCHITECTURES)
        problems.append(f"general.architecture must be one of {known}; got {architecture!r}")
        return {}
    own = {key.removeprefix(f"{architecture}."): key for key in metadata if key.startswith(f"{architecture}.")}
    values = {short: metadata[key] for short, key in own.items()}
    config: dict[str, Any] = {
        "model_type": architecture,
        "architectures": [_ARCHITECTURES[architecture]],
        **_read_sizes(values, architecture, problems),
        "vocab_size": vocab_size,
        "tie_word_embeddings": tied,
        **{
            theirs: metadata[f"tokenizer.ggml.{ours}_token_id"]
            for ours, theirs in _TOKEN_IDS.items()
            if f"tokenizer.ggml.{ours}_token_id" in metadata
        },
    }
    for short, (field, default) in _FLOATS.items():
        config[field] = values.get(short, default)
        if not isinstance(config[field], float):
            problems.append(f"{architecture}.{short} must be a number; got {config[field]!r}")
    config["rope_scaling"] = _read_scaling(values, architecture, problems)
    if rope_divisors is not None and not problems:
        config["rope_scaling"] = _read_divisors(rope_divisors, config, problems)
    _check_rest(values, architecture, config, problems)
    return config


def _read_sizes(values: Mapping[str, Any], architecture: str, problems: list[str]) -> dict[str, int]:
    sizes: dict[str, Any] = {field: values.get(short) for short, field in _SIZES.items()}
    sizes["num_key_value_heads"] = values.get(_KV_HEADS, sizes["num_attention_heads"])
    width, heads = sizes["hidden_size"], sizes["num_attention_heads"]
    shared = width // heads if _is_size(width) and _is_size(heads) and width % heads == 0 else None
    sizes["head_dim"] = values.get(_HEAD_DIM, shared)
    names = {field: short for short, field in _SIZES.items()}
    names |= {"num_key_value_heads": _KV_HEADS, "head_dim": _HEAD_DIM}
    problems.extend(
        f"{architecture}.{names[field]} must be a positive whole number; got {size!r}"
        for field, size in sizes.items()
        if not _is_size(size)
    )
    return {field: size for field, size in sizes.items() if _is_size(size)}


def _read_scaling(values: Mapping[str, Any], architecture: str, problems: list[str]) -> dict[str, Any] | None:
    kind = values.get(_SCALING, "none")
    if kind == "yarn":
        return {"rope_type": "yarn", **{field: values[short] for short, field in _YARN.items() if short in values}}
    if kind != "none":
        problems.append(f"{architecture}.{_SCALING} must be 'none' or 'yarn'; got {kind!r}")
    return None


def _read_divisors(divisors: np.ndarray, config: Mapping[str, Any], problems: list[str]) -> dict[str, Any] | None:
    """Return the scaling of Llama 3 that gives these divisors.

    A frequency f turns 8192 f / 2 pi times over the original context: more than `high_freq_factor` times, and it stays;
    fewer than `low_freq_factor`, and it is divided by `factor`; between the two, 1 / divisor is interpolated.
    """
    half, factor = config["head_dim"] // 2, float(divisors.max())
    frequency = config["rope_theta"] ** (-np.arange(half) / half)
    low, high = _LLAMA3["low_freq_factor"], _LLAMA3["high_freq_factor"]
    turns = _LLAMA3["original_max_position_embeddings"] * frequency / (2 * np.pi)
    kept = np.clip((turns - low) / (high - low), 0, 1)
    wanted = 1 / (kept + (1 - kept) / factor)
    fits = divisors.shape == wanted.shape and np.allclose(divisors, wanted, rtol=_DIVISOR_TOLERANCE, atol=0)
    if config["model_type"] != "llama" or config["rope_scaling"] is not None or not fits:
        problems.append(
            f"{ROPE_DIVISORS} {list(divisors.shape)} is no scaling of Llama 3 (wavelengths of 8192 / 1 and 8192 / 4). "
            "Convert the Hugging Face folder, whose config.json says what it is."
        )
        return None
    return {"rope_type": "llama3", "factor": factor, **_LLAMA3}


def _check_rest(values: Mapping[str, Any], architecture: str, config: Mapping[str, Any], problems: list[str]) -> None:
    fixed = {"vocab_size": config["vocab_size"], **_FIXED}
    fixed |= dict.fromkeys(_SAME_AS_HEAD_DIM, config.get("head_dim"))
    is_yarn = values.get(_SCALING) == "yarn"
    fixed |= _FIXED_YARN if is_yarn else {}
    problems.extend(
        f"{architecture}.{short} must be {wanted!r}; got {values[short]!r}"
        for short, wanted in fixed.items()
        if short in values and values[short] != wanted
    )
    known = {*_SIZES, _KV_HEADS, _HEAD_DIM, *_FLOATS, _SCALING, *fixed, *(_YARN if is_yarn else ()), *_IGNORED}
    problems.extend(
        f"unknown metadata {architecture}.{short}: it may change what the model computes"
        for short in sorted(set(values) - known)
    )


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
