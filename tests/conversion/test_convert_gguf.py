"""A GGUF file is a source like any other: converted, loaded, and exported as a Hugging Face folder."""

import json
from dataclasses import replace
from pathlib import Path

import gguf
import jax.numpy as jnp
import numpy as np
import pytest

import checkpoints_conversion._gguf_file as gguf_file_module
from checkpoints_conversion import convert_checkpoint, export_checkpoint, load_checkpoint, load_gguf, save_checkpoint
from kinetics_jax.models import load_model
from tests.conversion.families import LLAMA, QWEN2, QWEN3, assert_same_weights
from tests.conversion.gguf_files import folder_as_gguf, gguf_tensors, metadata_of, read_folder, write_gguf

FAMILIES = {
    "Llama, rows permuted": replace(LLAMA, rope_scaling=None),
    "Qwen2, biases": QWEN2,
    "Qwen3, tied": QWEN3,
}


@pytest.mark.parametrize(
    ("family", "chunk_bytes"),
    [("Llama, rows permuted", 1), ("Llama, rows permuted", 2000), ("Qwen2, biases", 1 << 22), ("Qwen3, tied", 1)],
)
def test_a_file_becomes_what_its_folder_becomes(
    family: str, chunk_bytes: int, random_decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(gguf_file_module, "_CHUNK_BYTES", chunk_bytes)  # of rows; a head is never torn
    save_checkpoint(random_decoder(FAMILIES[family]), tmp_path / "tiny", dtype="float32")
    path = folder_as_gguf(tmp_path / "tiny", tmp_path / "tiny.gguf")
    convert_checkpoint(path, tmp_path / "mine")
    assert_same_weights(load_model(tmp_path / "mine"), load_checkpoint(tmp_path / "tiny"))
    assert load_model(tmp_path / "mine").spec == load_gguf(path).spec
    manifest = json.loads((tmp_path / "mine" / "manifest.json").read_text())
    assert manifest["source"] == {"file": "tiny.gguf"}
    export_checkpoint(tmp_path / "mine", tmp_path / "back")
    assert sorted(file.name for file in (tmp_path / "back").iterdir()) == ["config.json", "model.safetensors"]
    assert_same_weights(load_checkpoint(tmp_path / "back"), load_checkpoint(tmp_path / "tiny"))


def test_quantised_tensors_are_noted_as_stored_and_dequantised(random_decoder, tmp_path: Path):
    spec = replace(QWEN3, d_model=64, vocab_size=96)
    save_checkpoint(random_decoder(spec), tmp_path / "tiny", dtype="float32")
    config, tensors = read_folder(tmp_path / "tiny")
    kind = gguf.GGMLQuantizationType.Q8_0
    stored = gguf_tensors(config, tensors)
    stored["token_embd.weight"] = gguf.quantize(stored["token_embd.weight"], kind)
    path = write_gguf(
        tmp_path / "tiny.gguf", "qwen3", metadata_of(config), stored, quantised={"token_embd.weight": kind}
    )
    convert_checkpoint(path, tmp_path / "mine", dtype="bfloat16")
    wanted = np.asarray(load_gguf(path).embed.embedding[...]).astype(jnp.bfloat16)
    np.testing.assert_array_equal(load_model(tmp_path / "mine").embed.embedding[...], wanted)
    manifest = json.loads((tmp_path / "mine" / "manifest.json").read_text())
    (entry,) = [entry for entry in manifest["tensors"] if entry["leaf"] == "embed.embedding"]
    assert (entry["name"], entry["dtype"], entry["shape"]) == ("model.embed_tokens.weight", "Q8_0", [96, 64])
