"""From `Decoder` to a Hugging Face folder: everything is written beside, then renamed into place."""

import json
import os
import shutil
import tempfile
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
from flax import nnx
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from kinetics_jax.models import Decoder

from ._rules import tensor_rules
from ._stored import INDEX_FILE, SINGLE_FILE, read_json_object
from ._tokenizer import write_tokenizer


def save_checkpoint(
    model: Decoder,
    folder: str | PathLike[str],
    *,
    tokenizer: Tokenizer | None = None,
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
    bos_token_id: int | None = None,
    eos_token_id: int | None = None,
    pad_token_id: int | None = None,
) -> None:
    """Write the decoder as a folder that transformers loads as the architecture of its spec, say Qwen3ForCausalLM.

    A failure leaves the folder as it was. In an existing folder other files (a card, recorded logits) stay.

    Args:
        model: The decoder.
        folder: Where to; made if it does not exist.
        tokenizer: Written as tokenizer.json with the config that AutoTokenizer reads; None leaves tokenizers alone.
        dtype: Dtype of the stored weights; rounding to bfloat16 is to nearest even.
        bos_token_id: First token of a text, if the model has one.
        eos_token_id: Token that ends a text, if the model has one.
        pad_token_id: Token that fills a batch, if the model has one.

    Raises:
        ValueError: If `folder` is a file, no Hugging Face family computes the geometry, or the dtype is not listed.
        OSError: If the disk refuses.

    References:
        The layout of the table in `_rules.py`.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"cannot save to {folder}: it is a file. Use a folder.")
    if dtype not in ("bfloat16", "float32"):
        raise ValueError(f"dtype must be 'bfloat16' or 'float32'; got {dtype!r}")
    token_ids = {"bos_token_id": bos_token_id, "eos_token_id": eos_token_id, "pad_token_id": pad_token_id}
    config = model.spec.to_hf_config(dtype=dtype, **token_ids)

    folder.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
    try:
        if tokenizer is not None:
            write_tokenizer(tokenizer, staged, **token_ids)
        save_file(_stored_tensors(model, dtype), staged / SINGLE_FILE, metadata={"format": "pt"})
        _write_json(staged / "config.json", config)
        _move_into_place(staged, folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _stored_tensors(model: Decoder, dtype: str) -> dict[str, np.ndarray]:
    leaves = dict(nnx.to_flat_state(nnx.state(model)))
    rules = tensor_rules(model.spec)
    assert set(leaves) == {rule.path for rule in rules}, "the table of tensors is no bijection"
    stored = {}
    for rule in rules:
        leaf = np.asarray(leaves[rule.path][...])
        assert leaf.shape == rule.leaf_shape, (rule.path, leaf.shape, rule.leaf_shape)
        # safetensors writes a buffer front to back: a transposed view would be written in the wrong order.
        stored[rule.hf_name] = np.ascontiguousarray(rule.to_stored(leaf.astype(dtype)))
    return stored


def _move_into_place(staged: Path, folder: Path) -> None:
    """Rename the whole folder, or, where one exists, file by file with config.json last."""
    for file in staged.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
        file.chmod(0o644)  # safetensors and mkdtemp make private ones
    staged.chmod(0o755)
    if not folder.exists():
        staged.rename(folder)
        return
    for file in sorted(staged.iterdir(), key=lambda file: file.name == "config.json"):
        file.replace(folder / file.name)
    _remove_old_shards(folder)


def _remove_old_shards(folder: Path) -> None:
    if not (folder / INDEX_FILE).exists():
        return
    weight_map: Any = read_json_object(folder / INDEX_FILE, []).get("weight_map")
    shards = set(weight_map.values()) if isinstance(weight_map, dict) else set()
    (folder / INDEX_FILE).unlink()
    for shard in shards - {SINGLE_FILE}:
        if Path(shard).name == shard and shard.endswith(".safetensors"):
            (folder / shard).unlink(missing_ok=True)


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
