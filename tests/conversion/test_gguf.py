"""GGUF files become the decoder of the Hugging Face folder they were made from, and broken ones a single ValueError."""

import struct
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

import checkpoints_conversion._gguf_file as gguf_file_module
from checkpoints_conversion import GgufSource, load_checkpoint, load_gguf, save_checkpoint
from checkpoints_conversion._gguf_file import GgufFile
from checkpoints_conversion._stored import read_inventory
from kinetics_jax.models import Decoder
from kinetics_jax.specs import Llama3Rope, ModelSpec, YarnRope
from tests.conversion.gguf_files import (
    folder_as_gguf,
    gguf_tensors,
    metadata_of,
    permuted,
    read_folder,
    write_gguf,
)

Q8_0 = gguf.GGMLQuantizationType.Q8_0
_LLAMA = {"family": "Llama", "qk_norm": False}
_QWEN2 = {"family": "Qwen2", "qk_norm": False, "qkv_bias": True}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama-tied": _LLAMA,
    "llama-untied-mha": _LLAMA | {"tied_embeddings": False, "num_kv_heads": 6},
    "qwen2-tied-mqa": _QWEN2 | {"num_kv_heads": 1},
    "qwen2-untied-yarn": _QWEN2
    | {"tied_embeddings": False, "rope_scaling": YarnRope(factor=4.0, original_max_len=16, beta_fast=16.0)},
    "qwen3-tied": {},
    "qwen3-untied": {"tied_embeddings": False},
}
QUERY = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture
def make_folder(tiny_spec: ModelSpec, random_decoder: Callable[..., Decoder], tmp_path: Path) -> Callable[..., Path]:
    """Return a maker of Hugging Face folders of tiny float32 models, changed from `tiny_spec`."""

    def make(**changes: Any) -> Path:
        save_checkpoint(random_decoder(replace(tiny_spec, **changes)), tmp_path / "tiny", dtype="float32")
        return tmp_path / "tiny"

    return make


@pytest.fixture
def llama_folder(make_folder: Callable[..., Path]) -> Path:
    return make_folder(**_LLAMA)


def assert_same_leaves(ours: Decoder, wanted: Decoder) -> None:
    assert ours.spec == wanted.spec
    assert nnx.graphdef(ours) == nnx.graphdef(wanted)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(ours), nnx.state(wanted))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_file_holds_the_decoder_of_the_folder(make_folder: Callable[..., Path], tmp_path: Path, family: str):
    folder = make_folder(**FAMILIES[family])
    assert_same_leaves(load_gguf(folder_as_gguf(folder, tmp_path / "tiny.gguf")), load_checkpoint(folder))


def test_the_source_shows_the_folder(llama_folder: Path, tmp_path: Path):
    source = GgufSource(folder_as_gguf(llama_folder, tmp_path / "tiny.gguf"))
    config, tensors = read_folder(llama_folder)
    wanted = read_inventory(llama_folder, [])
    shown = source.inventory()
    assert {name: (stored.dtype, stored.shape) for name, stored in shown.items()} == {
        name: (stored.dtype, stored.shape) for name, stored in wanted.items()
    }
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(source.read(name), tensor)
    assert ModelSpec.from_hf_config(source.config) == ModelSpec.from_hf_config(config)
    kind, stored = source.stored(QUERY)
    assert (kind, stored.tobytes()) == ("F32", permuted(tensors[QUERY], 6).tobytes())


def test_query_rows_by_hand(make_folder: Callable[..., Path], tmp_path: Path):
    """One head of 4: llama.cpp turns the pairs (0, 2) and (1, 3) of Hugging Face as neighbours."""
    folder = make_folder(**_LLAMA, num_heads=1, num_kv_heads=1, head_dim=4)
    config, tensors = read_folder(folder)
    written = gguf_tensors(config, tensors)
    rows = np.arange(4, dtype=np.float32)[:, None] * np.ones((1, 12), np.float32)
    written["blk.1.attn_q.weight"] = rows[[0, 2, 1, 3]]
    path = write_gguf(tmp_path / "tiny.gguf", "llama", metadata_of(config), written)
    np.testing.assert_array_equal(GgufSource(path).read(QUERY), rows)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_read_as_it_is(llama_folder: Path, tmp_path: Path, dtype: str):
    config, tensors = read_folder(llama_folder)
    halved = {name: tensor.astype(dtype) for name, tensor in tensors.items()}
    path = write_gguf(tmp_path / "tiny.gguf", "llama", metadata_of(config), gguf_tensors(config, halved))
    source = GgufSource(path)
    for name, tensor in halved.items():
        read = source.read(name)
        assert read.dtype == tensor.dtype
        np.testing.assert_array_equal(read, tensor)
    leaves = jax.tree.leaves(load_gguf(path, dtype=jnp.bfloat16))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype(ml_dtypes.bfloat16)}


def test_a_q8_0_block_by_hand(tmp_path: Path):
    """A half-precision scale, then 32 signed bytes."""
    block = struct.pack("<e32b", 0.5, *range(-16, 16))
    data = np.frombuffer(block * 2, np.uint8).reshape(2, 34)
    path = write_gguf(tmp_path / "block.gguf", "llama", {}, {"x": data}, quantised={"x": Q8_0})
    np.testing.assert_array_equal(GgufFile(path).read("x"), np.tile(np.arange(-16, 16) * 0.5, (2, 1)))


@pytest.mark.parametrize("chunk_bytes", [1, 100, 1 << 20])
@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K", "Q2_K", "Q3_K", "IQ4_XS"])
def test_every_block_type_is_dequantised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, chunk_bytes: int):
    monkeypatch.setattr(gguf_file_module, "_CHUNK_BYTES", chunk_bytes)
    type_ = gguf.GGMLQuantizationType[kind]
    block_len, block_bytes = gguf.GGML_QUANT_SIZES[type_]
    blocks = np.random.default_rng(0).integers(0, 60, (5, 3 * block_bytes)).astype(np.uint8)  # no scale overflows
    path = write_gguf(tmp_path / "blocks.gguf", "llama", {}, {"x": blocks}, quantised={"x": type_})
    file = GgufFile(path)
    assert (file.tensors["x"].shape, file.tensors["x"].dtype) == ((5, 3 * block_len), "F32")
    assert file.stored_bytes("x").tobytes() == blocks.tobytes()
    np.testing.assert_array_equal(file.read("x"), gguf.dequantize(blocks, type_))


@pytest.mark.parametrize("family", [_LLAMA, _QWEN2], ids=["llama", "qwen2"])
def test_a_quantised_model_is_off_by_half_a_step(make_folder: Callable[..., Path], tmp_path: Path, family: dict):
    folder = make_folder(**family, d_model=32, mlp_dim=64, num_heads=2, num_kv_heads=1, head_dim=32)
    config, tensors = read_folder(folder)
    written = gguf_tensors(config, tensors)
    quantised = {name: Q8_0 for name, tensor in written.items() if tensor.ndim == 2}
    written |= {name: gguf.quantize(written[name], Q8_0) for name in quantised}
    path = write_gguf(tmp_path / "tiny.gguf", config["model_type"], metadata_of(config), written, quantised=quantised)
    source = GgufSource(path)
    for name, tensor in tensors.items():
        blocks = tensor.reshape(-1, 32) if tensor.ndim == 2 else tensor[None]
        step = np.abs(blocks).max(axis=1, keepdims=True) / 127 if tensor.ndim == 2 else 0.0
        # half a step, and the step itself is rounded to float16
        error = np.abs(source.read(name).reshape(blocks.shape) - blocks)
        assert (error <= 0.5 * step + 127 * step * 2.0**-11 + 1e-9).all(), name
    assert load_gguf(path).spec == load_checkpoint(folder).spec


def test_our_header_is_that_of_the_package(llama_folder: Path, tmp_path: Path):
    path = folder_as_gguf(llama_folder, tmp_path / "tiny.gguf")
    file, theirs = GgufFile(path), gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert list(file.metadata) == list(fields)
    for name, value in fields.items():
        ours = file.metadata[name]
        assert ours == (pytest.approx(value, rel=1e-7) if isinstance(value, float) else value), name
    assert file.metadata["llama.attention.layer_norm_rms_epsilon"] == 1e-6, "not 9.99999997e-07"
    for tensor in theirs.tensors:
        mine = file.tensors[tensor.name]
        assert (mine.shape, mine.type_name) == (tuple(tensor.shape.tolist())[::-1], tensor.tensor_type.name)
        assert (mine.start, mine.num_bytes) == (tensor.data_offset, tensor.n_bytes)
        np.testing.assert_array_equal(file.read(tensor.name), tensor.data)


def llama3_divisors(scaling: Llama3Rope, theta: float, head_dim: int) -> np.ndarray:
    """Return what llama.cpp's converter stores, by wavelength."""
    divisors = []
    for pair in range(head_dim // 2):
        wavelength = 2 * np.pi * theta ** (2 * pair / head_dim)
        if wavelength < scaling.original_max_len / scaling.high_freq_factor:
            divisors.append(1.0)
        elif wavelength > scaling.original_max_len / scaling.low_freq_factor:
            divisors.append(scaling.factor)
        else:
            smooth = scaling.original_max_len / wavelength - scaling.low_freq_factor
            smooth /= scaling.high_freq_factor - scaling.low_freq_factor
            divisors.append(1 / ((1 - smooth) / scaling.factor + smooth))
    return np.array(divisors, np.float32)


def write_scaled(
    make_folder: Callable[..., Path], path: Path, scaling: Llama3Rope, **changes: Any
) -> tuple[Path, Path]:
    folder = make_folder(**{**_LLAMA, "head_dim": 32, "rope_theta": 5e5, "rope_scaling": scaling, **changes})
    config, tensors = read_folder(folder)
    written = gguf_tensors(config, tensors) | {"rope_freqs.weight": llama3_divisors(scaling, 5e5, 32)}
    return folder, write_gguf(path, config["model_type"], metadata_of(config), written)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_the_scaling_of_llama_3_is_found_in_its_divisors(
    make_folder: Callable[..., Path], tmp_path: Path, factor: float
):
    scaling = Llama3Rope(factor=factor, low_freq_factor=1.0, high_freq_factor=4.0, original_max_len=8192)
    folder, path = write_scaled(make_folder, tmp_path / "tiny.gguf", scaling)
    assert load_gguf(path).spec.rope_scaling == scaling
    assert_same_leaves(load_gguf(path), load_checkpoint(folder))


def test_other_divisors_are_refused(make_folder: Callable[..., Path], tmp_path: Path):
    scaling = Llama3Rope(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_len=4096)
    _, path = write_scaled(make_folder, tmp_path / "tiny.gguf", scaling)
    with pytest.raises(ValueError, match=r"rope_freqs\.weight \[16\] is no scaling of Llama 3"):
        load_gguf(path)


def message_of(path: Path, what: str = "cannot (load|read)") -> str:
    with pytest.raises(ValueError, match=what) as caught:
        load_gguf(path)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"general.architecture": "gemma3"}, "general.architecture must be one of 'llama', 'qwen2', 'qwen3'"),
        ({"llama.logit_scale": 2.0}, "unknown metadata llama.logit_scale"),
        ({"llama.expert_count": 8}, "llama.expert_count must be 0; got 8"),
        ({"llama.attention.value_length": 16}, "llama.attention.value_length must be 8; got 16"),
        ({"llama.rope.dimension_count": 4}, "llama.rope.dimension_count must be 8; got 4"),
        ({"llama.vocab_size": 33}, "llama.vocab_size must be 32; got 33"),
        ({"llama.block_count": None}, "llama.block_count must be a positive whole number; got None"),
        ({"llama.attention.head_count": [6, 6]}, "llama.attention.head_count must be a positive whole number"),
        ({"llama.attention.layer_norm_rms_epsilon": None}, "layer_norm_rms_epsilon must be a number; got None"),
        ({"llama.attention.layer_norm_rms_epsilon": -1.0}, "rms_norm_eps"),
        ({"llama.rope.scaling.type": "linear"}, "llama.rope.scaling.type must be 'none' or 'yarn'; got 'linear'"),
        ({"llama.rope.scaling.factor": 2.0}, "unknown metadata llama.rope.scaling.factor"),
        ({"llama.attention.head_count_kv": 6}, "k_proj.weight in tiny.gguf must have shape [48, 12]"),
        ({"llama.block_count": 3}, "tensor model.layers.2.input_layernorm.weight [12] is missing"),
        ({"llama.block_count": 10**9}, "1000000000 layers"),
        ({"llama.block_count": 1}, "model.layers.1.mlp.up_proj.weight in tiny.gguf has no place in this model"),
        ({"split.count": 3}, "one part of several"),
    ],
)
def test_what_the_metadata_gets_wrong_is_named(
    llama_folder: Path, tmp_path: Path, changes: dict[str, Any], problem: str
):
    if changes == {"general.architecture": "gemma3"}:
        config, tensors = read_folder(llama_folder)
        path = write_gguf(tmp_path / "tiny.gguf", "gemma3", metadata_of(config), gguf_tensors(config, tensors))
    else:
        path = folder_as_gguf(llama_folder, tmp_path / "tiny.gguf", **changes)
    assert problem in message_of(path)


def test_absent_metadata_has_the_defaults_of_llama_cpp(make_folder: Callable[..., Path], tmp_path: Path):
    folder = make_folder(**_LLAMA, d_model=48, num_kv_heads=6, rope_theta=1e4)
    absent = ("attention.head_count_kv", "attention.key_length", "rope.freq_base", "vocab_size", "rope.dimension_count")
    path = folder_as_gguf(folder, tmp_path / "tiny.gguf", **{f"llama.{key}": None for key in absent})
    assert_same_leaves(load_gguf(path), load_checkpoint(folder))


def test_all_problems_come_in_one_error(llama_folder: Path, tmp_path: Path):
    changes = {"llama.expert_count": 2, "llama.logit_scale": 2.0, "llama.embedding_length": None}
    message = message_of(folder_as_gguf(llama_folder, tmp_path / "tiny.gguf", **changes))
    assert message.startswith(f"cannot load {tmp_path / 'tiny.gguf'}: 3 problems")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda tensors: tensors.pop("token_embd.weight"), "tensor token_embd.weight is missing"),
        (lambda tensors: tensors.pop("blk.1.attn_q.weight"), f"tensor {QUERY} [48, 12] is missing"),
        (lambda tensors: tensors.update(x=np.ones(3, np.float32)), "tensor x in tiny.gguf has no place in this model"),
        (
            lambda tensors: tensors.update({"blk.0.attn_q.bias": np.ones(48, np.float32)}),
            "q_proj.bias in tiny.gguf has",
        ),
        (lambda tensors: tensors.update({"output.bias": np.ones(32, np.float32)}), "lm_head.bias in tiny.gguf has"),
    ],
)
def test_tensors_are_a_bijection(
    llama_folder: Path, tmp_path: Path, change: Callable[[dict[str, np.ndarray]], Any], problem: str
):
    config, tensors = read_folder(llama_folder)
    written = gguf_tensors(config, tensors)
    change(written)
    assert problem in message_of(write_gguf(tmp_path / "tiny.gguf", "llama", metadata_of(config), written))


def test_types_that_cannot_be_dequantised_are_refused(tmp_path: Path):
    type_ = gguf.GGMLQuantizationType.Q8_K
    blocks = np.zeros((1, gguf.GGML_QUANT_SIZES[type_][1]), np.uint8)
    path = write_gguf(tmp_path / "x.gguf", "llama", {}, {"x": blocks}, quantised={"x": type_})
    assert "it has Q8_K tensors, which `gguf` cannot dequantise" in message_of(path)


@pytest.fixture(scope="module")
def whole(
    tiny_spec: ModelSpec, random_decoder: Callable[..., Decoder], tmp_path_factory: pytest.TempPathFactory
) -> bytes:
    folder = tmp_path_factory.mktemp("whole")
    save_checkpoint(random_decoder(replace(tiny_spec, **_LLAMA)), folder / "tiny", dtype="float32")
    return folder_as_gguf(folder / "tiny", folder / "tiny.gguf").read_bytes()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file that each fuzz example overwrites."""
    return tmp_path_factory.mktemp("fuzz") / "tiny.gguf"


@given(share=st.floats(0, 1, exclude_max=True))
def test_truncated_files_are_refused(scratch: Path, whole: bytes, share: float):
    scratch.write_bytes(whole[: int(share * (len(whole) - 32))])  # the end is padding
    assert "tiny.gguf: " in message_of(scratch, "cannot read")


def header_len(data: bytes, folder: Path) -> int:
    (folder / "whole.gguf").write_bytes(data)
    return min(tensor.start for tensor in GgufFile(folder / "whole.gguf").tensors.values())


@given(data=st.data())
def test_a_flipped_header_byte_never_crashes(scratch: Path, whole: bytes, data: st.DataObject):
    broken = bytearray(whole)
    place = data.draw(st.integers(0, header_len(whole, scratch.parent) - 1))
    broken[place] ^= data.draw(st.integers(1, 255))
    scratch.write_bytes(broken)
    try:
        model = load_gguf(scratch)
    except ValueError:
        message_of(scratch)
    else:
        assert sum(leaf.size for leaf in jax.tree.leaves(model)) == model.spec.num_params


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "the file is empty"),
        (b"PK\x03\x04 a zip file", "does not start with 'GGUF'"),
        (struct.pack(">4sIQQ", b"GGUF", 3, 0, 0), "must be 2 or 3, little-endian; got 50331648"),
        (struct.pack("<4sIQQ", b"GGUF", 1, 0, 0), "must be 2 or 3, little-endian; got 1"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 2**63, 0), "asks for 8 bytes at byte 24, but the file has 24"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 0, 2**63), "asks for 8 bytes at byte 24, but the file has 24"),
        (struct.pack("<4sIQQQ1sIIQ", b"GGUF", 3, 0, 1, 1, b"k", 9, 4, 2**60), f"asks for {2**60} bytes"),
        (struct.pack("<4sIQQQ1sIIQ", b"GGUF", 3, 0, 1, 1, b"k", 9, 8, 2**60), "asks for 8 bytes at byte 49"),
        (struct.pack("<4sIQQQ1sIIQ", b"GGUF", 3, 0, 1, 1, b"k", 9, 9, 1), "'k' is an array of type 9"),
        (struct.pack("<4sIQQQ1sI", b"GGUF", 3, 0, 1, 1, b"k", 99), "'k' is of type 99"),
        (struct.pack("<4sIQQQ1s", b"GGUF", 3, 0, 1, 1, b"\xff"), "utf-8"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 0, 2) + 2 * struct.pack("<Q1sIB", 1, b"k", 0, 1), "'k' occurs twice"),
        (struct.pack("<4sIQQQ1sI", b"GGUF", 3, 1, 0, 1, b"t", 9), "tensor t must have 1 to 4 axes; got 9"),
        (struct.pack("<4sIQQQ1sIQIQ", b"GGUF", 3, 1, 0, 1, b"t", 1, 8, 99, 0), "tensor t is of type 99"),
        (struct.pack("<4sIQQQ1sIQIQ", b"GGUF", 3, 1, 0, 1, b"t", 1, 0, 0, 0), "tensor t [0] holds no numbers"),
        (struct.pack("<4sIQQQ1sIQIQ", b"GGUF", 3, 1, 0, 1, b"t", 1, 8, 0, 64), "must start at byte 0 of the payload"),
        (struct.pack("<4sIQQQ1sIQIQ", b"GGUF", 3, 1, 0, 1, b"t", 1, 2**62, 0, 0), "copy or download it again"),
        (struct.pack("<4sIQQQ1sIQIQ", b"GGUF", 3, 1, 0, 1, b"t", 1, 33, 8, 0), "rows of whole Q8_0 blocks of 32"),
    ],
)
def test_broken_headers_are_named(tmp_path: Path, content: bytes, problem: str):
    (tmp_path / "tiny.gguf").write_bytes(content)
    assert problem in message_of(tmp_path / "tiny.gguf", "cannot read")


def test_what_is_no_file_is_refused(tmp_path: Path):
    assert message_of(tmp_path / "tiny.gguf").endswith("tiny.gguf: no such file")
    assert "Is a directory" in message_of(tmp_path)
    with pytest.raises(ValueError, match="dtype must be a floating dtype; got int8"):
        load_gguf(tmp_path / "tiny.gguf", dtype=jnp.int8)


def test_without_the_package_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ImportError, match=r"pip install 'kinetics-jax\[gguf\]'"):
        load_gguf(tmp_path / "tiny.gguf")
