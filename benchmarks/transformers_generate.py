"""Decode steps of `generate` in transformers, the peer of `kinetics bench decode`: true shapes, random weights.

    python benchmarks/transformers_generate.py Qwen3-0.6B --batch-size 32 --prompt-len 512 4096 --out peer.json

Needs torch and transformers. Static cache, compiled; temperature 0.6, top-k 20, top-p 0.95. The time of a step is the
difference of two lengths, so that prefill does not count.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from kinetics_jax.specs import MODELS, ModelSpec

SHORT_LEN = 16


def build(spec: ModelSpec, device: str) -> Any:
    """Return the model of a Qwen3 spec with random weights."""
    config = transformers.Qwen3Config(
        vocab_size=spec.vocab_size,
        hidden_size=spec.d_model,
        intermediate_size=spec.mlp_dim,
        num_hidden_layers=spec.num_layers,
        num_attention_heads=spec.num_heads,
        num_key_value_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        tie_word_embeddings=spec.tied_embeddings,
        max_position_embeddings=spec.max_len,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = transformers.Qwen3ForCausalLM(config)
    return model.eval()


def step_s(model: Any, *, batch_size: int, prompt_len: int, gen_len: int, num_runs: int) -> float:
    """Return the median seconds of a decode step."""
    device = model.device
    prompts = torch.randint(0, model.config.vocab_size, (batch_size, prompt_len), device=device)
    settings = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "cache_implementation": "static"}

    def seconds(length: int) -> float:
        started = time.perf_counter()
        model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            min_new_tokens=length,
            max_new_tokens=length,
            pad_token_id=0,
            **settings,
        )
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    for length in (gen_len, SHORT_LEN, gen_len):  # compiles
        seconds(length)
    steps = [(seconds(gen_len) - seconds(SHORT_LEN)) / (gen_len - SHORT_LEN) for _ in range(num_runs)]
    return statistics.median(steps)


def main() -> None:
    """Time what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a Qwen3 model by name")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--prompt-len", type=int, nargs="+", default=[512, 4096])
    parser.add_argument("--gen-len", type=int, default=144)
    parser.add_argument("--num-runs", type=int, default=5)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    name = torch.cuda.get_device_name() if options.device == "cuda" else options.device
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    rows = []
    for prompt_len in options.prompt_len:
        # Anew each time: a model keeps its static cache while a longer one fits a shorter prompt too.
        model = build(MODELS[options.model], options.device)
        with torch.inference_mode():
            seconds = step_s(
                model,
                batch_size=options.batch_size,
                prompt_len=prompt_len,
                gen_len=options.gen_len,
                num_runs=options.num_runs,
            )
        del model
        rows.append(
            {
                "model": options.model,
                "context_len": prompt_len,
                "batch_size": options.batch_size,
                "step_s": seconds,
                "tokens_per_s": options.batch_size / seconds,
            }
        )
        rate = options.batch_size / seconds
        print(
            f"{options.model}, prompt {prompt_len:,}: {1e3 * seconds:.2f} ms a step, {rate:,.0f} tokens/s", flush=True
        )
        if options.out:
            about = {"device": name, "versions": versions, "gen_len": options.gen_len, "num_runs": options.num_runs}
            options.out.write_text(json.dumps(about | {"rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
