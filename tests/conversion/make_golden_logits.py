"""Write the golden logits: what transformers says each embedded model computes, in float32 on CPU.

    python -m tests.conversion.make_golden_logits [FOLDER]      (needs torch and transformers)

One safetensors file a model: two held-out prompts with a reference thought each, and the logits at positions spread
over prompt and thought. `test_golden.py` reads them, so that the comparison runs where torch is not installed.
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
DEPTH = (4, 8)
THOUGHT_LEN = 64
POSITIONS_EACH = 16


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


def transformers_logits(folder: Path, token_ids: np.ndarray) -> np.ndarray:
    """Return the float32 logits [B, T, V] of transformers' Qwen3ForCausalLM; every tensor must find its place."""
    torch: Any = importlib.import_module("torch")
    transformers: Any = importlib.import_module("transformers")
    model, report = transformers.Qwen3ForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    wrong = {field: report[field] for field in ("missing_keys", "unexpected_keys", "mismatched_keys") if report[field]}
    if wrong:
        raise ValueError(f"transformers cannot fill Qwen3ForCausalLM from {folder}: {wrong}")
    with torch.no_grad():
        return model.eval()(torch.from_numpy(token_ids)).logits.numpy()


def main(folder: Path) -> None:
    """Write one file a model of the zoo."""
    folder.mkdir(parents=True, exist_ok=True)
    token_ids, prompt_len = held_out_sequences()
    positions = golden_positions(prompt_len, token_ids.shape[1])
    for name in MINI_MODELS:
        logits = transformers_logits(model_folder(name), token_ids)
        tensors = {
            "token_ids": token_ids,
            "prompt_len": np.asarray([prompt_len]),
            "positions": positions,
            "logits": np.ascontiguousarray(logits[:, positions]),
        }
        versions = {module: importlib.import_module(module).__version__ for module in ("torch", "transformers")}
        metadata = {"weights_hash": weights_hash(model_folder(name)), **versions}
        target = folder / f"{name}.safetensors"
        save_file(tensors, target, metadata=metadata)
        target.chmod(0o644)  # safetensors makes private files
        print(f"{name}: logits {tensors['logits'].shape}, largest {np.abs(logits).max():.2f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else GOLDEN)
