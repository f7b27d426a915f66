"""Whatever is broken, loading says so in one ValueError that names tensor and file; never a crash, never silence."""

import json
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from checkpoints_conversion import load_checkpoint, save_checkpoint, weights_hash
from kinetics_jax.models import Decoder

WEIGHTS = "model.safetensors"
NORM, QUERY = "model.layers.1.input_layernorm.weight", "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def fuzz_folder(tiny_model: Decoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint whose weight file each fuzz example overwrites."""
    folder = tmp_path_factory.mktemp("fuzz") / "tiny"
    save_checkpoint(tiny_model, folder)
    return folder


@pytest.fixture(scope="module")
def whole(fuzz_folder: Path) -> bytes:
    return (fuzz_folder / WEIGHTS).read_bytes()


def rewrite(folder: Path, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def message_of(folder: Path) -> str:
    with pytest.raises(ValueError, match="cannot load") as caught:
        load_checkpoint(folder)
    return str(caught.value)


@given(share=st.floats(0, 1, exclude_max=True))
def test_truncated_weights_are_refused(fuzz_folder: Path, whole: bytes, share: float):
    (fuzz_folder / WEIGHTS).write_bytes(whole[: int(share * len(whole))])
    assert "model.safetensors is no whole safetensors file" in message_of(fuzz_folder)
    with pytest.raises(ValueError, match=r"model\.safetensors is no whole"):
        weights_hash(fuzz_folder)


@given(extra=st.binary(min_size=1, max_size=64))
def test_appended_bytes_are_refused(fuzz_folder: Path, whole: bytes, extra: bytes):
    (fuzz_folder / WEIGHTS).write_bytes(whole + extra)
    assert "model.safetensors is no whole safetensors file" in message_of(fuzz_folder)


@pytest.mark.parametrize("part", ["length", "header"])
@given(data=st.data())
def test_flipped_bytes_before_the_payload_are_refused(fuzz_folder: Path, whole: bytes, part: str, data: st.DataObject):
    """A flip in the padding after the header may still be white space: then the header must say the same."""
    end = 8 + int.from_bytes(whole[:8], "little")
    start, stop = (0, 8) if part == "length" else (8, end)
    place = data.draw(st.integers(start, stop - 1))
    flip = data.draw(st.integers(1, 255))
    broken = bytearray(whole)
    broken[place] ^= flip
    (fuzz_folder / WEIGHTS).write_bytes(broken)
    try:
        same = part == "header" and json.loads(broken[8:end]) == json.loads(whole[8:end])
    except ValueError:
        same = False
    if same:
        load_checkpoint(fuzz_folder)
    else:
        assert WEIGHTS in message_of(fuzz_folder)


@given(content=st.binary(max_size=200))
def test_noise_is_no_checkpoint(fuzz_folder: Path, content: bytes):
    (fuzz_folder / WEIGHTS).write_bytes(content)
    assert "model.safetensors is no whole safetensors file" in message_of(fuzz_folder)


@given(data=st.data())
def test_broken_config_never_crashes(fuzz_folder: Path, whole: bytes, data: st.DataObject):
    """A flip may leave a config that means the same or renames a default; anything else is a ValueError."""
    file = fuzz_folder / "config.json"
    (fuzz_folder / WEIGHTS).write_bytes(whole)
    good = file.read_bytes()
    broken = bytearray(good)
    broken[data.draw(st.integers(0, len(good) - 1))] ^= data.draw(st.integers(1, 255))
    file.write_bytes(broken)
    try:
        load_checkpoint(fuzz_folder)
    except ValueError as error:
        assert "cannot load" in str(error)  # noqa: PT017
    finally:
        file.write_bytes(good)


def test_missing_extra_misshapen_and_integer_tensors_come_in_one_error(tiny_folder: Path):
    def change(tensors: dict[str, np.ndarray]) -> None:
        del tensors[NORM]
        tensors["model.layers.2.mlp.bias"] = np.zeros(3, np.float32)
        tensors[QUERY] = tensors[QUERY].T.copy()
        tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.int32)

    rewrite(tiny_folder, change)
    message = message_of(tiny_folder)
    assert "4 problems" in message
    assert f"tensor {NORM} [12] is missing" in message
    assert "tensor model.layers.2.mlp.bias in model.safetensors has no place" in message
    assert f"tensor {QUERY} in model.safetensors must have shape [48, 12] by config.json; got [12, 48]" in message
    assert "tensor model.norm.weight in model.safetensors must be one of F32, BF16, F16; got I32" in message


def test_config_and_weight_problems_come_together(tiny_folder: Path, edit_config):
    edit_config(hidden_act="gelu")
    (tiny_folder / WEIGHTS).write_bytes(b"short")
    message = message_of(tiny_folder)
    assert "hidden_act must be 'silu'" in message
    assert "model.safetensors is no whole safetensors file" in message


def test_missing_files_are_named(tiny_folder: Path):
    (tiny_folder / WEIGHTS).unlink()
    (tiny_folder / "config.json").unlink()
    message = message_of(tiny_folder)
    assert "config.json is missing" in message
    assert "model.safetensors is missing" in message
    assert "no such folder" in message_of(tiny_folder / "deeper")


@pytest.mark.parametrize("content", ["", "{", "[1]", "null", '"text"', "\x00\x01", "[" * 100_000])
def test_config_that_is_no_json_object(tiny_folder: Path, content: str):
    (tiny_folder / "config.json").write_text(content)
    assert "config.json" in message_of(tiny_folder)


def test_config_of_another_size_is_refused_quickly(tiny_folder: Path, edit_config):
    """A broken layer count must not build a billion rules."""
    edit_config(num_hidden_layers=10**9)
    assert "config.json has 1000000000 layers, but the files hold 24 tensors" in message_of(tiny_folder)
    edit_config(num_hidden_layers=3)
    assert "11 problems" in message_of(tiny_folder)


def test_untied_config_needs_a_head(tiny_folder: Path, edit_config):
    edit_config(tie_word_embeddings=False)
    assert "tensor lm_head.weight [32, 12] is missing" in message_of(tiny_folder)


def test_weights_of_another_framework_are_refused(tiny_folder: Path):
    """transformers asks for format 'pt' as well."""
    save_file(load_file(tiny_folder / WEIGHTS), tiny_folder / WEIGHTS, metadata={"format": "tf"})
    assert "metadata format 'pt'" in message_of(tiny_folder)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({}, "has no weight_map"),
        ([1], "has no weight_map"),
        ({NORM: "../model.safetensors"}, "no safetensors file of this folder"),
        ({NORM: "weights.bin"}, "no safetensors file of this folder"),
        ({NORM: "model-00001-of-00002.safetensors"}, "model-00001-of-00002.safetensors is missing"),
        ({NORM: "part.safetensors"}, f"part.safetensors holds tensor {QUERY}, which"),
    ],
)
def test_bad_index_is_refused(tiny_folder: Path, weight_map: object, message: str):
    (tiny_folder / WEIGHTS).rename(tiny_folder / "part.safetensors")
    (tiny_folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert message in message_of(tiny_folder)


def test_long_lists_of_problems_are_cut(tiny_folder: Path):
    rewrite(tiny_folder, lambda tensors: tensors.update({f"extra.{i}": np.zeros(1, np.float32) for i in range(50)}))
    message = message_of(tiny_folder)
    assert "50 problems" in message
    assert message.endswith("... and 30 more")


def test_integer_dtype_is_refused(tiny_folder: Path):
    with pytest.raises(ValueError, match="dtype must be a floating dtype; got int8"):
        load_checkpoint(tiny_folder, dtype=jnp.int8)
