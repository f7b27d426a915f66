"""Write the golden greedy texts: what `generate` of transformers says with the weights that the tests have, in float32.

    python -m tests.sampling.make_golden_greedy      (needs torch and transformers)

`test_greedy.py` reads them, so that the comparison runs where torch is not installed.
"""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from checkpoints_conversion import weights_hash
from kinetics_jax.zoo import model_folder
from tests.conversion.make_golden_logits import GOLDEN, load_transformers

GREEDY = Path(__file__).parent / "golden_greedy.json"
GEN_LEN = 24
FOLDERS = {
    "Kinetics-Mini-0.1M": model_folder("Kinetics-Mini-0.1M"),
    "llama-gqa-llama3": GOLDEN / "llama-gqa-llama3",
    "qwen3moe-gqa-normalised": GOLDEN / "qwen3moe-gqa-normalised",
}


def transformers_greedy(folder: Path, prompt: list[int]) -> list[int]:
    """Return the greedy continuation that transformers generates, without a stop token."""
    torch: Any = importlib.import_module("torch")
    model = load_transformers(folder)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    said = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=GEN_LEN)
    return said[0, len(prompt) :].tolist()


def main() -> None:
    """Write the file."""
    random = np.random.default_rng(0)
    golden = {}
    for name, folder in FOLDERS.items():
        prompts = [random.integers(3, 32, length).tolist() for length in (3, 8, 13)]
        golden[name] = {
            "weights_hash": weights_hash(folder),
            "prompts": prompts,
            "said": [transformers_greedy(folder, prompt) for prompt in prompts],
        }
    GREEDY.write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    main()
