"""Convert a checkpoint of the true Qwen3-0.6B shape and compare with transformers, on the accelerator of this machine.

`PYTHONPATH=. python benchmarks/convert_qwen3.py [--tiny] [--folder DIR] [--out out/benchmarks/convert_qwen3.json]`

Needs torch and transformers, no network: transformers makes the model with random weights (bfloat16, shards of 512 MB)
and says what it computes in float32. Every step runs in a process of its own, so that its peak memory is its own:

    make      the Hugging Face folder; golden logits in float32, transformers' own logits in bfloat16
    read      the same bytes, twice: with the page cache dropped, and from it
    write     as many bytes into one new file, until the disk has them
    convert   to our format, the source's page cache dropped; again as int8
    run       load, compare logits in bfloat16, float32 (all at once and token by token) and int8
    mesh      where two devices are there: the same logits from a (1, 2) mesh
    export    back to a Hugging Face folder, every byte equal

Targets: host memory grows by the largest tensor and 512 MB at most; 70% of the disk's read rate. Converting writes as
much as it reads, so its share of the slower of the two rates is shown as well. Leaves out downloads.
"""

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from convert_qwen3_table import FLOAT32_TOLERANCE, rows_of, show

from kinetics_jax.specs import MODELS, ModelSpec

SPEC = MODELS["Qwen3-0.6B"]
TINY = {"num_layers": 2, "d_model": 64, "mlp_dim": 128, "num_heads": 4, "num_kv_heads": 2, "head_dim": 32}
TOKENS_SHAPE, PROMPT_LEN = (2, 32), 24
BLOCK_BYTES = 1 << 24


def make(folder: Path, spec: ModelSpec) -> dict[str, Any]:
    """Write the Hugging Face folder with random weights and what transformers says of it."""
    import torch
    import transformers

    from checkpoints_conversion import write_golden

    config = transformers.AutoConfig.for_model(**spec.to_hf_config())
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    random = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        drawn = torch.empty(weight.shape)
        if weight.ndim == 1:
            drawn.uniform_(0.5, 1.5, generator=random)
        else:
            std = 0.05 if "embed" in name else weight.shape[1] ** -0.5
            drawn.normal_(0.0, std, generator=random)
        weight.data.copy_(drawn)
    model.save_pretrained(source_of(folder), max_shard_size="512MB")

    token_ids = np.random.default_rng(0).integers(0, spec.vocab_size, TOKENS_SHAPE)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.no_grad():
        logits = model.to(device).eval()(torch.as_tensor(token_ids, device=device), use_cache=False).logits
    np.save(peer_of(folder), logits.float().cpu().numpy())
    del model
    write_golden(source_of(folder), golden_of(folder), token_ids=token_ids, engine="transformers")
    return {
        "bytes": sum(file.stat().st_size for file in shards(folder)),
        "shards": len(shards(folder)),
        "peer_device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }


def read(folder: Path, spec: ModelSpec) -> dict[str, Any]:
    """Time reading the shards, from the disk and from the page cache."""
    seconds = {}
    for how in ("disk", "cache"):
        if how == "disk":
            drop_page_cache(shards(folder))
        start = time.perf_counter()
        for file in shards(folder):
            with file.open("rb", buffering=0) as opened:
                while opened.read(BLOCK_BYTES):
                    pass
        seconds[f"{how}_s"] = time.perf_counter() - start
    return seconds


def write(folder: Path, spec: ModelSpec) -> dict[str, Any]:
    """Time writing as many bytes as the shards have: in sequence, and synced, as what is converted is."""
    left = sum(file.stat().st_size for file in shards(folder))
    block = np.random.default_rng(0).bytes(BLOCK_BYTES)  # no disk makes them fewer
    target = folder / "written"
    drop_page_cache(shards(folder))
    start = time.perf_counter()
    with target.open("wb", buffering=0) as opened:
        while left:
            left -= opened.write(block[:left])
        os.fsync(opened.fileno())
    seconds = time.perf_counter() - start
    target.unlink()
    return {"disk_s": seconds}


def convert(folder: Path, spec: ModelSpec) -> dict[str, Any]:
    """Convert, and say how much memory it took beyond what importing takes."""
    return _convert(folder, int8=False)


def convert_int8(folder: Path, spec: ModelSpec) -> dict[str, Any]:
    """Convert to int8 weights."""
    return _convert(folder, int8=True)


def _convert(folder: Path, *, int8: bool) -> dict[str, Any]:
    import tensorstore  # noqa: F401  (what converting imports late is no growth)

    from checkpoints_conversion import convert_checkpoint

    target = target_of(folder, int8=int8)
    drop_page_cache(shards(folder))
    before = peak_rss_bytes()
    start = time.perf_counter()
    convert_checkpoint(source_of(folder), target, int8=int8)
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "target_bytes": sum(file.stat().st_size for file in target.rglob("*") if file.is_file()),
        "peak_rss_bytes": peak_rss_bytes(),
        "grown_bytes": peak_rss_bytes() - before,
        "largest_tensor_bytes": largest_tensor_bytes(folder),
    }


def run(folder: Path, spec: ModelSpec) -> dict[str, Any]:
    """Load and compare, on the default device."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from checkpoints_conversion import logit_error, verify_checkpoint
    from kinetics_jax.models import Decoder, load_model

    golden, peer = load_golden(folder), np.load(peer_of(folder))
    token_ids = jnp.asarray(golden["token_ids"], jnp.int32)
    forward = jax.jit(Decoder.__call__)

    start = time.perf_counter()
    model = load_model(target_of(folder))
    jax.block_until_ready(nnx.state(model))
    load_s = time.perf_counter() - start
    assert str(model.dtype) == "bfloat16", model.dtype
    half = forward(model, token_ids)
    del model
    int8 = forward(load_model(target_of(folder, int8=True)), token_ids)
    errors = {
        "bfloat16": logit_error(golden["logits"], half),
        "transformers bfloat16": logit_error(golden["logits"], peer),
        "int8": logit_error(golden["logits"], int8),
        "float32": verify_checkpoint(target_of(folder), against=golden_of(folder), tolerance=FLOAT32_TOLERANCE).error,
    }
    with jax.default_matmul_precision("highest"):
        decoded = decode(load_model(target_of(folder), dtype="float32"), token_ids)
    errors["float32, token by token"] = logit_error(golden["logits"], decoded)
    return {
        "device": jax.devices()[0].device_kind,
        "versions": {"jax": jax.__version__},
        "load_s": load_s,
        "peak_rss_bytes": peak_rss_bytes(),
        "largest_logit": float(np.abs(golden["logits"]).max()),
        "errors": {name: vars(error) for name, error in errors.items()},
    }


def decode(model: Any, token_ids: Any) -> np.ndarray:
    """Prefill the start of each sequence, feed the rest token by token, return all logits [B, T, V]."""
    import jax
    import jax.numpy as jnp

    from kinetics_jax.attention import init_shared_cache, write_prompt
    from kinetics_jax.models import Decoder
    from kinetics_jax.specs import Dense

    prefill, step = jax.jit(Decoder.prefill), jax.jit(Decoder.decode_step, static_argnums=3)
    rows = []
    for row in token_ids:
        hidden, keys, values = prefill(model, row[None, :PROMPT_LEN])
        gen_len = row.shape[0] - PROMPT_LEN
        cache = init_shared_cache(
            model.spec, num_trials=1, max_prompt_len=PROMPT_LEN, max_gen_len=gen_len, dtype=model.dtype
        )
        cache = write_prompt(cache, keys[:, 0], values[:, 0], PROMPT_LEN)
        logits = [model.next_logits(hidden[0])]
        for token in row[PROMPT_LEN:]:
            step_logits, cache = step(model, token[None], cache, Dense())
            logits.append(step_logits)
        rows.append(jnp.concatenate(logits))
    return np.stack(rows)


def mesh(folder: Path, spec: ModelSpec) -> dict[str, Any]:
    """Restore onto two devices and compare with one, in bfloat16 and float32."""
    import jax
    import jax.numpy as jnp

    from checkpoints_conversion import logit_error
    from kinetics_jax.models import Decoder, load_model

    if len(jax.devices()) < 2:
        return {"num_devices": len(jax.devices())}
    golden = load_golden(folder)
    token_ids = jnp.asarray(golden["token_ids"], jnp.int32)
    two = jax.make_mesh((1, 2), ("data", "model"), devices=jax.devices()[:2])
    errors = {}
    with jax.default_matmul_precision("highest"):
        for dtype in ("bfloat16", "float32"):
            one, both = (
                np.asarray(jax.jit(Decoder.__call__)(load_model(target_of(folder), dtype=dtype, mesh=m), token_ids))
                for m in (None, two)
            )
            errors[f"{dtype}, 2 devices against 1"] = vars(logit_error(one, both))
    return {"num_devices": 2, "errors": errors}


def export(folder: Path, spec: ModelSpec) -> dict[str, Any]:
    """Write a Hugging Face folder again; every tensor must be what it was."""
    from checkpoints_conversion import export_checkpoint, weights_hash

    target = folder / "exported"
    start = time.perf_counter()
    export_checkpoint(target_of(folder), target)
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "peak_rss_bytes": peak_rss_bytes(),
        "bit_equal": weights_hash(target) == weights_hash(source_of(folder)),
    }


STEPS: dict[str, Callable[[Path, ModelSpec], dict[str, Any]]] = {
    "make": make,
    "read": read,
    "write": write,
    "convert": convert,
    "convert_int8": convert_int8,
    "run": run,
    "mesh": mesh,
    "export": export,
}


def source_of(folder: Path) -> Path:
    return folder / "hf"


def target_of(folder: Path, *, int8: bool = False) -> Path:
    return folder / ("int8" if int8 else "converted")


def golden_of(folder: Path) -> Path:
    return folder / "golden.safetensors"


def peer_of(folder: Path) -> Path:
    return folder / "transformers_bfloat16.npy"


def shards(folder: Path) -> list[Path]:
    return sorted(source_of(folder).glob("*.safetensors"))


def load_golden(folder: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(golden_of(folder))


def largest_tensor_bytes(folder: Path) -> int:
    """Return the size of the largest tensor as stored, from the headers."""
    sizes = []
    for file in shards(folder):
        with file.open("rb") as opened:
            header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
        offsets = [entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"]
        sizes += [stop - start for start, stop in offsets]
    return max(sizes)


def drop_page_cache(files: Sequence[Path]) -> None:
    """Make the next read come from the disk, where the system lets us."""
    for file in files:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def peak_rss_bytes() -> int:
    """Return the largest resident memory so far; Linux counts it in kilobytes, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def run_step(step: str, folder: Path, *, tiny: bool) -> dict[str, Any]:
    """Run a step in a process of its own; what it returns is on the last line that it prints."""
    print(f"{step} ...", flush=True)
    command = [sys.executable, str(Path(__file__).resolve()), "--step", step, "--folder", str(folder)]
    done = subprocess.run([*command, *(["--tiny"] if tiny else [])], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"step {step} failed with exit code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def commit() -> str | None:
    """Return the commit that was measured, with a + if files have changed since; None outside of a repository."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if changed else "")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Convert a model of the true Qwen3-0.6B shape and compare.")
    parser.add_argument("--tiny", action="store_true", help="a model of 0.2M parameters, to try the script")
    parser.add_argument("--folder", type=Path, help="where the checkpoints go; a temporary folder if left out")
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks/convert_qwen3.json"))
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    spec = replace(SPEC, **TINY, vocab_size=512, stores_tied_head=False) if options.tiny else SPEC
    if options.step:
        print(json.dumps(STEPS[options.step](options.folder, spec)))
        return
    folder = options.folder or Path(tempfile.mkdtemp(prefix="convert_qwen3."))
    try:
        results = {step: run_step(step, folder, tiny=options.tiny) for step in STEPS}
    finally:
        if options.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    rows = rows_of(results)
    report = {
        "benchmark": "convert_qwen3",
        "device": results["run"]["device"],
        "machine": f"{platform.system()} {platform.machine()}",
        "num_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "versions": {"python": platform.python_version(), **results["make"]["versions"], **results["run"]["versions"]},
        "commit": commit(),
        "shapes": {"model": spec.name, "token_ids": TOKENS_SHAPE, "prompt_len": PROMPT_LEN},
        "steps": results,
        "rows": [dict(zip(("what", "measured", "wanted", "met"), row, strict=True)) for row in rows],
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {options.out}")
    show(spec, results["make"]["bytes"], rows)
    failed = [what for what, _, _, met in rows if met is False]
    if failed:
        sys.exit(f"not met: {', '.join(what.strip() for what in failed)}")


if __name__ == "__main__":
    main()
