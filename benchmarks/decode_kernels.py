"""Where does a decode step spend its time? Its kernels on a GPU by name, as the device's own events (CUPTI) time them.

    python benchmarks/decode_kernels.py Qwen3-8B --attention block_topk:16x64 --context-len 16384 --batch-size 17

Random weights of true size, as `kinetics bench decode`. Kernels are named by XLA and by Pallas; a matrix product is a
`gemm_fusion` or a library's kernel. What the sum lacks of the step are the gaps between kernels.
"""

import argparse
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import jax

from kinetics_jax.cli._gpu_memory import allow_whole_gpu
from kinetics_jax.sampling import DecodeTimer, random_model
from kinetics_jax.specs import MODELS, parse_attention

NUM_STEPS = 16


def kernel_times(call: Any) -> list[tuple[str, float]]:
    """Return name and seconds of every kernel of one call.

    Raises:
        RuntimeError: If there is no GPU to ask.
    """
    from jax.experimental.mosaic.gpu import profiler

    if jax.default_backend() != "gpu" or profiler.mosaic_gpu_lib is None:
        raise RuntimeError(f"kernels are timed by CUPTI, on an NVIDIA GPU; got {jax.default_backend()}")
    # `profiler.measure` calls twice with the same arguments, which a program that donates them does not take.
    events: Any = profiler.mosaic_gpu_lib._mosaic_gpu_ext
    call()
    events._cupti_init()
    call()
    return [(name, 1e-3 * milliseconds) for name, milliseconds in events._cupti_get_timings(True)]


def main() -> None:
    """Time what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model by name")
    parser.add_argument("--attention", default="dense")
    parser.add_argument("--context-len", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--num-rows", type=int, default=20, help="kernels listed")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    allow_whole_gpu()
    sizes = {"context_len": options.context_len, "batch_size": options.batch_size}
    timer = DecodeTimer(MODELS[options.model], parse_attention(options.attention), **sizes, num_steps=NUM_STEPS)
    model = random_model(MODELS[options.model])
    step_s = timer.time(model).step_s
    seconds: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for name, time_s in kernel_times(timer.start(model)):
        family = re.sub(r"(_\d+)+$", "", name.removesuffix("_mosaic_gpu_kernel")) if "gemm" not in name else name
        seconds[family] += time_s / NUM_STEPS
        counts[family] += 1
    total, num_kernels = seconds.total(), counts.total() / NUM_STEPS
    print(
        f"{options.model} {options.attention}, {options.batch_size} x {options.context_len:,} tokens: step "
        f"{1e3 * step_s:.2f} ms, kernels {1e3 * total:.2f} ms ({num_kernels:.0f} of them)"
    )
    rows = [
        {"kernel": name, "count": counts[name] / NUM_STEPS, "step_s": time_s}
        for name, time_s in seconds.most_common(options.num_rows)
    ]
    for row in rows:
        print(
            f"{row['kernel'][:60]:60s} {row['count']:6.1f} x {1e6 * row['step_s'] / row['count']:8.2f} us = "
            f"{1e6 * row['step_s']:8.1f} us {row['step_s'] / total:6.1%}"
        )
    if options.out:
        about = {"device": jax.devices()[0].device_kind, "model": options.model, "attention": options.attention}
        content = about | sizes | {"step_s": step_s, "kernels_s": total, "num_kernels": num_kernels, "rows": rows}
        options.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
