"""Tiny GGUF files, written by the package `gguf` from Hugging Face tensors, as llama.cpp's converter would."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np

from checkpoints_conversion._stored import read_inventory, read_json_object, stream_tensors

KeyTypes = dict[str, Callable[[gguf.GGUFWriter, str, Any], None]]
_ADD: KeyTypes = {
    "bool": gguf.GGUFWriter.add_bool,
    "int": gguf.GGUFWriter.add_uint32,
    "float": gguf.GGUFWriter.add_float32,
    "str": gguf.GGUFWriter.add_string,
    "list": gguf.GGUFWriter.add_array,
}
DTYPES = {
    np.dtype(np.float32): gguf.GGMLQuantizationType.F32,
    np.dtype(np.float16): gguf.GGMLQuantizationType.F16,
    np.dtype(ml_dtypes.bfloat16): gguf.GGMLQuantizationType.BF16,
}


def read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return config and tensors of a Hugging Face folder."""
    problems: list[str] = []
    config = read_json_object(folder / "config.json", problems)
    inventory = read_inventory(folder, problems)
    assert not problems
    return config, {stored.name: tensor for stored, tensor in stream_tensors(list(inventory.values()))}


def metadata_of(config: dict[str, Any]) -> dict[str, Any]:
    """Return the metadata that llama.cpp's converter writes for a config."""
    architecture = config["model_type"]
    rope = config["rope_scaling"] or {}
    own = {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": config["head_dim"],
        "attention.value_length": config["head_dim"],
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "rope.freq_base": config["rope_theta"],
        "rope.dimension_count": config["head_dim"],
        "vocab_size": config["vocab_size"],
    }
    if rope.get("rope_type") == "yarn":
        own |= {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": rope["factor"],
            "rope.scaling.original_context_length": rope["original_max_position_embeddings"],
            "rope.scaling.yarn_beta_fast": rope["beta_fast"],
            "rope.scaling.yarn_beta_slow": rope["beta_slow"],
        }
    general = {"general.name": "a tiny model", "general.file_type": 0, "general.languages": ["en", "fr"]}
    return general | {f"{architecture}.{key}": value for key, value in own.items()}


def gguf_name(architecture: str, name: str, num_layers: int) -> str:
    """Return what the package calls a Hugging Face tensor."""
    numbers = {value: key for key, value in gguf.MODEL_ARCH_NAMES.items()}
    stem, _, ending = name.rpartition(".")
    found = gguf.get_tensor_name_map(numbers[architecture], num_layers).get_name(stem)
    assert found is not None, name
    return f"{found}.{ending}"


def permuted(rows: np.ndarray, num_heads: int) -> np.ndarray:
    """Return query or key rows as llama.cpp stores them for `llama`: halves of a head interleaved."""
    halves = rows.reshape(num_heads, 2, rows.shape[0] // num_heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def gguf_tensors(config: dict[str, Any], tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the tensors under the names and in the row order of a GGUF file."""
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    written = {}
    for name, tensor in tensors.items():
        projection = name.split(".")[-2]
        if config["model_type"] == "llama" and projection in heads:
            tensor = permuted(tensor, heads[projection])
        written[gguf_name(config["model_type"], name, config["num_hidden_layers"])] = tensor
    return written


def write_gguf(
    path: Path,
    architecture: str,
    metadata: dict[str, Any],
    tensors: dict[str, np.ndarray],
    *,
    quantised: dict[str, gguf.GGMLQuantizationType] | None = None,
) -> Path:
    """Write a file; a tensor named in `quantised` is given as the bytes of that type."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in metadata.items():
        _ADD[type(value).__name__](writer, key, value)
    for name, tensor in tensors.items():
        kind = (quantised or {}).get(name) or DTYPES[tensor.dtype]
        data = tensor.view(np.uint8) if kind == gguf.GGMLQuantizationType.BF16 else tensor
        writer.add_tensor(name, np.ascontiguousarray(data), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def folder_as_gguf(folder: Path, target: Path, **changes: Any) -> Path:
    """Write the GGUF file of a Hugging Face folder; `changes` go to the metadata, None removes a key."""
    config, tensors = read_folder(folder)
    metadata = {key: value for key, value in (metadata_of(config) | changes).items() if value is not None}
    return write_gguf(target, config["model_type"], metadata, gguf_tensors(config, tensors))
