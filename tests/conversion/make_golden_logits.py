"""Write the golden logits: what transformers says each embedded model and each family computes, in float32 on CPU.

    python -m tests.conversion.make_golden_logits [FOLDER]      (needs torch and transformers)

For each embedded model one safetensors file: two held-out prompts with a reference thought each, and the logits at
positions spread over prompt and thought. For each family a folder: a tiny model with random weights as transformers
saves it, and beside it token ids and all logits. `test_golden.py` reads them, so that the comparison runs where torch
is not installed.
"""

import importlib
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from checkpoints_conversion import weights_hash
from kinetics_jax.tasks import problem_key, reference_thoughts, sample_questions
from kinetics_jax.zoo import MINI_MODELS, model_folder

GOLDEN = Path(__file__).parent / "golden"
FAMILY_LOGITS = "golden_logits.safetensors"
DEPTH = (4, 8)
THOUGHT_LEN = 64
POSITIONS_EACH = 16

_TINY = {
    "vocab_size": 32,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 1,  # compiles in half the time; the embedded models have up to 6
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,  # not 24 / 4
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
}
_ROPE = {"rope_type": "default", "rope_theta": 100.0}
_YARN = _ROPE | {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
_EXPERTS = {"moe_intermediate_size": 12, "num_experts": 6, "num_experts_per_tok": 2}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3-gqa-tied": ("Qwen3", {"tie_word_embeddings": True, "rope_parameters": _ROPE}),
    "qwen3-mqa-yarn": ("Qwen3", {"num_key_value_heads": 1, "rope_parameters": _YARN}),
    "qwen2-mha-tied": (
        "Qwen2",
        {"num_key_value_heads": 4, "head_dim": 6, "tie_word_embeddings": True, "rope_parameters": _ROPE},
    ),
    "qwen2-gqa-yarn": (
        "Qwen2",
        {
            "rope_parameters": _YARN
            | {
                "attention_factor": 0.8,
                "beta_fast": 1.0,
                "beta_slow": 0.25,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "llama-mqa-tied": ("Llama", {"num_key_value_heads": 1, "tie_word_embeddings": True, "rope_parameters": _ROPE}),
    "llama-gqa-llama3": (
        "Llama",
        {
            "rope_parameters": _ROPE
            | {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "qwen3moe-gqa-normalised": (
        "Qwen3Moe",
        _EXPERTS | {"num_hidden_layers": 2, "norm_topk_prob": True, "rope_parameters": _ROPE},
    ),
    "qwen3moe-mqa-unnormalised-tied-yarn": (
        "Qwen3Moe",
        _EXPERTS
        | {"norm_topk_prob": False, "num_key_value_heads": 1, "tie_word_embeddings": True, "rope_parameters": _YARN},
    ),
}
"""Folder: family of transformers, and how its config differs from `_TINY`."""


def held_out_sequences() -> tuple[np.ndarray, int]:
    """Return held-out prompts, each followed by the start of a reference thought [B, T], and the prompt length."""
    questions = sample_questions(problem_key("held_out", 0), jnp.asarray(DEPTH))
    thoughts = reference_thoughts(jax.random.key(0), questions, max_len=THOUGHT_LEN)
    token_ids = np.concatenate([questions.prompt_ids, thoughts], axis=1)
    return token_ids.astype(np.int64), questions.prompt_ids.shape[1]


def golden_positions(prompt_len: int, total_len: int) -> np.ndarray:
    """Return positions spread over the prompt, then over the thought; the last of each are among them."""
    prompt = np.linspace(0, prompt_len - 1, POSITIONS_EACH).astype(np.int64)
    return np.concatenate([prompt, np.linspace(prompt_len, total_len - 1, POSITIONS_EACH).astype(np.int64)])


def load_transformers(folder: Path) -> Any:
    """Return the float32 model that transformers loads from a folder; every tensor must find its place."""
    torch: Any = importlib.import_module("torch")
    transformers: Any = importlib.import_module("transformers")
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    wrong = {field: report[field] for field in ("missing_keys", "unexpected_keys", "mismatched_keys") if report[field]}
    if wrong:
        raise ValueError(f"transformers cannot fill {type(model).__name__} from {folder}: {wrong}")
    return model.eval()


def transformers_logits(folder: Path, token_ids: np.ndarray) -> np.ndarray:
    """Return the float32 logits [B, T, V] that transformers computes with the weights of a folder."""
    torch: Any = importlib.import_module("torch")
    model = load_transformers(folder)
    with torch.no_grad():
        return model(torch.from_numpy(token_ids)).logits.numpy()


def random_transformers(name: str, seed: int) -> Any:
    """Return a tiny model of a family; all its norms and biases are random, so that none can be swapped or dropped."""
    torch: Any = importlib.import_module("torch")
    transformers: Any = importlib.import_module("transformers")
    family, changes = FAMILIES[name]
    torch.manual_seed(seed)
    config = getattr(transformers, f"{family}Config")(**_TINY | changes)
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    with torch.no_grad():
        for weight_name, weight in model.named_parameters():
            if "norm" in weight_name:
                weight.uniform_(0.5, 1.5)
            else:
                weight.normal_(std=1.0 if weight.ndim == 1 else 1.5 * weight.shape[-1] ** -0.5)
    return model


def write_mini(name: str, target: Path) -> None:
    """Write the golden logits of an embedded model."""
    token_ids, prompt_len = held_out_sequences()
    positions = golden_positions(prompt_len, token_ids.shape[1])
    logits = transformers_logits(model_folder(name), token_ids)
    tensors = {
        "token_ids": token_ids,
        "prompt_len": np.asarray([prompt_len]),
        "positions": positions,
        "logits": np.ascontiguousarray(logits[:, positions]),
    }
    _save(tensors, target, weights=model_folder(name))


def write_family(name: str, folder: Path, seed: int) -> None:
    """Write a tiny model of a family and its golden logits."""
    random_transformers(name, seed).save_pretrained(folder)
    (folder / "generation_config.json").unlink()
    for file in folder.iterdir():
        file.chmod(0o644)
    token_ids = np.random.default_rng(seed).integers(0, _TINY["vocab_size"], (2, 21))
    logits = transformers_logits(folder, token_ids)
    _save({"token_ids": token_ids, "logits": logits}, folder / FAMILY_LOGITS, weights=folder)


def _save(tensors: dict[str, np.ndarray], target: Path, *, weights: Path) -> None:
    versions = {module: importlib.import_module(module).__version__ for module in ("torch", "transformers")}
    save_file(tensors, target, metadata={"weights_hash": weights_hash(weights), **versions})
    target.chmod(0o644)  # safetensors makes private files
    logits = tensors["logits"]
    print(f"{target}: logits {logits.shape}, spread {logits.std():.2f}, largest {np.abs(logits).max():.2f}")


def main(folder: Path) -> None:
    """Write one file a model of the zoo and one folder a family."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in MINI_MODELS:
        write_mini(name, folder / f"{name}.safetensors")
    for seed, name in enumerate(FAMILIES):
        write_family(name, folder / name, seed)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else GOLDEN)
