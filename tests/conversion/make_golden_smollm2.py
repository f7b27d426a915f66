"""Write the golden tokens of SmolLM2-135M-Instruct: what transformers makes of the GGUF file, greedily, on CPU.

    python -m tests.conversion.make_golden_smollm2 SMOLLM2.gguf      (needs torch, transformers, accelerate and gguf)

transformers reads, dequantises, tokenises and computes by itself; of this house it takes the prompts alone.
`test_smollm2.py` reads the file.
"""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parent / "golden" / "smollm2_greedy.json"
GEN_LEN = 64
MIN_LEAD = 0.01
"""Two float32 programs agree to about 1e-4 logit; a token that won by less than this could flip."""
PROMPTS: dict[str, list[dict[str, str]] | str] = {
    "capital": [{"role": "user", "content": "What is the capital of France? Name three things to see there."}],
    "story": "Once upon a time, there was a little robot who",
    "days": [
        {"role": "system", "content": "You answer briefly."},
        {"role": "user", "content": "List the days of the week, numbered from 1 to 7."},
    ],
    "turns": [
        {"role": "user", "content": "Hello! Who are you?"},
        {"role": "assistant", "content": "I am SmolLM, a small language model."},
        {"role": "user", "content": "Explain in simple words why the sky is blue."},
    ],
}
"""A chat, or a text that the model continues."""


def main(gguf_file: Path) -> None:
    """Generate `GEN_LEN` tokens after each prompt; end-of-text does not stop them."""
    torch: Any = importlib.import_module("torch")
    transformers: Any = importlib.import_module("transformers")
    load = {"pretrained_model_name_or_path": gguf_file.parent, "gguf_file": gguf_file.name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(**load)
    model = transformers.AutoModelForCausalLM.from_pretrained(**load, dtype=torch.float32).eval()
    golden = {}
    for name, prompt in PROMPTS.items():
        if isinstance(prompt, str):
            prompt_ids = tokenizer(prompt)["input_ids"]
        else:
            prompt_ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
        token_ids, smallest_lead = _greedy(torch, model, prompt_ids)
        print(f"{name}: smallest lead {smallest_lead:.4f}\n{tokenizer.decode(prompt_ids + token_ids)}\n")
        if smallest_lead < MIN_LEAD:
            raise ValueError(f"a token of prompt {name!r} wins by less than {MIN_LEAD}: use another prompt")
        golden[name] = {"prompt_ids": prompt_ids, "token_ids": token_ids}
    versions = {module.__name__: module.__version__ for module in (torch, transformers)}
    GOLDEN.write_text(json.dumps({"versions": versions, "prompts": golden}) + "\n", encoding="utf-8")


def _greedy(torch: Any, model: Any, prompt_ids: list[int]) -> tuple[list[int], float]:
    """Return the likeliest tokens, and by how much logit the closest of them won."""
    token_ids: list[int] = []
    leads = []
    step_ids, cache = torch.tensor([prompt_ids]), None
    with torch.no_grad():
        for _ in range(GEN_LEN):
            output = model(step_ids, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            (first, second), (best, _) = (row.tolist() for row in output.logits[0, -1].topk(2))
            token_ids.append(best)
            leads.append(first - second)
            step_ids = torch.tensor([[best]])
    return token_ids, min(leads)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
