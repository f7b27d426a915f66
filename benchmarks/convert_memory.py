"""How fast is converting, and how much host memory does it take? Model folders of zeros, measured in fresh processes.

    python benchmarks/convert_memory.py [--folder DIR] [--only dense]

Prints one row a model and direction: bytes, seconds, the growth of the peak resident memory, and what it may be: the
largest tensor and 512 MiB. Exit code 1 if one is above. The source is a hole in a file and reads faster than a disk.
"""

import argparse
import json
import math
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from kinetics_jax.specs import ModelSpec

MIB = 1 << 20
ALLOWED_BYTES = 512 * MIB
_BASE = ModelSpec(
    name="zeros",
    family="Qwen3",
    num_layers=4,
    d_model=4096,
    mlp_dim=8192,
    num_heads=2,
    num_kv_heads=1,
    head_dim=128,
    vocab_size=64,
    max_len=64,
)
MODELS = {
    "dense": _BASE,  # 12 tensors of 64 MiB
    "vocabulary": replace(_BASE, num_layers=1, mlp_dim=256, vocab_size=151_936),  # two of 1.2 GB, one of them turned
    "experts": replace(_BASE, family="Qwen3-MoE", num_layers=2, mlp_dim=1024, num_experts=16, num_active_experts=2),
}


def write_zeros(folder: Path, spec: ModelSpec) -> None:
    from checkpoints_conversion._rules import tensor_rules

    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for rule in tensor_rules(spec):
        end = offset + 2 * math.prod(rule.hf_shape)
        header[rule.hf_name] = {"dtype": "BF16", "shape": list(rule.hf_shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    folder.mkdir(parents=True)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)
    (folder / "config.json").write_text(json.dumps(spec.to_hf_config()))


def measure(direction: str, source: Path, target: Path) -> None:
    """Print seconds and growth of the peak, in a process of its own: a peak never falls."""
    import tensorstore  # noqa: F401 (libraries are not what is measured)

    from checkpoints_conversion import convert_checkpoint, export_checkpoint

    before, started = peak_bytes(), time.monotonic()
    {"convert": convert_checkpoint, "export": export_checkpoint}[direction](source, target)
    print(json.dumps([time.monotonic() - started, peak_bytes() - before]))


def peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure rate and memory of converting.")
    parser.add_argument("--folder", type=Path, help="a disk with room; the default is the temporary folder")
    parser.add_argument("--only", choices=list(MODELS))
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        direction, source, target = options.measure
        measure(direction, Path(source), Path(target))
        return
    is_above = False
    print(f"{'model':<12}{'direction':<11}{'bytes':>9}{'seconds':>9}{'MB/s':>7}{'growth':>10}{'allowed':>10}")
    for name in [options.only] if options.only else list(MODELS):
        spec = MODELS[name]
        work = Path(tempfile.mkdtemp(dir=options.folder))
        try:
            write_zeros(work / "source", spec)
            largest = 2 * max(spec.vocab_size, spec.mlp_dim) * spec.d_model
            for direction, source, target in (("convert", "source", "mine"), ("export", "mine", "back")):
                call = [sys.executable, __file__, "--measure", direction, str(work / source), str(work / target)]
                done = subprocess.run(call, capture_output=True, text=True, check=True)
                seconds, growth = json.loads(done.stdout.splitlines()[-1])
                num_bytes, allowed = 2 * spec.num_params, largest + ALLOWED_BYTES
                is_above |= growth > allowed
                rate = num_bytes / seconds / 1e6
                print(f"{name:<12}{direction:<11}{num_bytes / 1e9:>6.2f} GB{seconds:>9.1f}{rate:>7.0f}", end="")
                print(f"{growth / MIB:>6.0f} MiB{allowed / MIB:>6.0f} MiB{'  ABOVE' if growth > allowed else ''}")
        finally:
            shutil.rmtree(work)
    sys.exit(is_above)


if __name__ == "__main__":
    main()
