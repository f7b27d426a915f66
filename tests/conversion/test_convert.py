"""Hugging Face to a converted checkpoint, to `Decoder`, and back: every number, name and setting survives."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from checkpoints_conversion import (
    convert_checkpoint,
    export_checkpoint,
    load_checkpoint,
    save_checkpoint,
    weights_hash,
    word_tokenizer,
)
from checkpoints_conversion._orbax import MAX_CHUNK_BYTES, chunk_shape
from checkpoints_conversion._rules import tensor_rules
from kinetics_jax.models import ModelFile, load_model
from kinetics_jax.specs import ModelSpec
from tests.conversion.families import (
    FAMILIES,
    HEAD,
    MIXTURE,
    QWEN3,
    WEIGHTS,
    assert_same_weights,
    files_of,
    keep_norms_in_float32,
    leaves_of,
    make_shards,
    store_head_twice,
)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_round_trip_is_bit_equal(family: str, random_decoder, tmp_path: Path):
    source, converted, back = tmp_path / "source", tmp_path / "mine", tmp_path / "back"
    model = random_decoder(FAMILIES[family], dtype=jnp.bfloat16)
    tokenizer = word_tokenizer([f"w{i}" for i in range(32)], unknown="w0")
    save_checkpoint(model, source, tokenizer=tokenizer, eos_token_id=2)
    (source / "generation_config.json").write_text('{"eos_token_id": [2, 3]}')
    make_shards(source)
    before = files_of(source)

    assert convert_checkpoint(source, converted) == converted
    assert ModelFile.read(converted) == ModelFile(spec=model.spec, dtype="bfloat16")
    loaded = load_model(converted)
    assert loaded.spec == model.spec
    assert_same_weights(loaded, model)
    assert export_checkpoint(converted, back) == back
    after = files_of(back)
    assert set(after) == set(before)
    assert json.loads(after["config.json"]) == json.loads(before["config.json"])
    assert ModelSpec.from_hf_config(json.loads(after["config.json"]), name="source") == model.spec
    for name in before:
        if name.endswith(".safetensors"):
            assert_same_tensors(back / name, source / name)
        elif name != "config.json":
            assert after[name] == before[name] or json.loads(after[name]) == json.loads(before[name]), name
    assert files_of(source) == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["back", "mine", "source"]


def assert_same_tensors(got: Path, wanted: Path) -> None:
    with safe_open(got, framework="numpy") as ours, safe_open(wanted, framework="numpy") as theirs:
        assert ours.metadata() == theirs.metadata()
        assert set(ours.keys()) == set(theirs.keys())
        for name in theirs.keys():  # noqa: SIM118
            np.testing.assert_array_equal(ours.get_tensor(name), theirs.get_tensor(name), strict=True)


@pytest.mark.parametrize("is_sharded", [False, True])
def test_tied_head_stored_twice_comes_back_twice(random_decoder, tmp_path: Path, is_sharded: bool):
    model = random_decoder(QWEN3)
    save_checkpoint(model, tmp_path / "source", dtype="float32")
    store_head_twice(tmp_path / "source")
    if is_sharded:
        make_shards(tmp_path / "source")
    convert_checkpoint(tmp_path / "source", tmp_path / "mine")
    assert_same_weights(load_model(tmp_path / "mine"), model)
    export_checkpoint(tmp_path / "mine", tmp_path / "back")
    assert weights_hash(tmp_path / "back") == weights_hash(tmp_path / "source")
    assert {file.name for file in (tmp_path / "back").iterdir()} == {f.name for f in (tmp_path / "source").iterdir()}


def test_manifest_tells_where_every_number_came_from(random_decoder, tmp_path: Path):
    save_checkpoint(random_decoder(MIXTURE), tmp_path / "source", dtype="float32")
    convert_checkpoint(tmp_path / "source", tmp_path / "mine")
    manifest = json.loads((tmp_path / "mine" / "manifest.json").read_text())
    assert manifest["source"] == {"folder": "source"}
    assert manifest["weights_hash"] == weights_hash(tmp_path / "source")
    by_name = {entry["name"]: entry for entry in manifest["tensors"]}
    assert set(by_name) == {rule.hf_name for rule in tensor_rules(MIXTURE)}
    expert = by_name["model.layers.1.mlp.experts.3.up_proj.weight"]
    sha256 = expert.pop("sha256")
    assert expert == {
        "name": "model.layers.1.mlp.experts.3.up_proj.weight",
        "leaf": "layers.1.mlp.up_proj",
        "index": 3,
        "file": WEIGHTS,
        "dtype": "F32",
        "shape": [10, 12],
    }
    assert len(sha256) == 64
    tokenizer_files = {"hf_config.json", "manifest.json", "model.json", "weights"}
    assert {file.name for file in (tmp_path / "mine").iterdir()} == tokenizer_files


@pytest.mark.parametrize("wanted", ["float32", "bfloat16"])
def test_a_dtype_rounds_to_nearest_even_and_is_exported_as_such(random_decoder, tmp_path: Path, wanted: str):
    model = random_decoder(MIXTURE)
    stored = "float32" if wanted == "bfloat16" else "bfloat16"
    save_checkpoint(model, tmp_path / "source", dtype=stored)
    convert_checkpoint(tmp_path / "source", tmp_path / "mine", dtype=wanted)
    loaded = load_model(tmp_path / "mine")
    assert loaded.dtype == wanted
    for path, leaf in leaves_of(model).items():
        rounded = leaf.astype(jnp.bfloat16).astype(wanted)
        np.testing.assert_array_equal(leaves_of(loaded)[path], rounded, strict=True)
    export_checkpoint(tmp_path / "mine", tmp_path / "back")
    assert json.loads((tmp_path / "back" / "config.json").read_text())["torch_dtype"] == wanted
    assert_same_weights(load_checkpoint(tmp_path / "back", dtype=wanted), loaded)


def test_each_weight_keeps_its_dtype(random_decoder, tmp_path: Path):
    save_checkpoint(random_decoder(QWEN3), tmp_path / "source")
    keep_norms_in_float32(tmp_path / "source")
    convert_checkpoint(tmp_path / "source", tmp_path / "mine")
    loaded = load_model(tmp_path / "mine")
    assert loaded.dtype == "bfloat16"
    dtypes = {path[-1]: leaf.dtype.name for path, leaf in leaves_of(loaded).items()}
    assert dtypes == {"embedding": "bfloat16", "kernel": "bfloat16", "scale": "float32"}
    with jax.numpy_dtype_promotion("standard"):  # jax.nn.dot_product_attention widens bfloat16
        logits = nnx.eval_shape(lambda model: model(jnp.zeros((2, 5), jnp.int32)), loaded)
    assert (logits.shape, logits.dtype) == ((2, 5, QWEN3.vocab_size), jnp.float32)
    export_checkpoint(tmp_path / "mine", tmp_path / "back")
    assert weights_hash(tmp_path / "back") == weights_hash(tmp_path / "source")


def test_loading_in_another_dtype_rounds_as_numpy_does(random_decoder, tmp_path: Path):
    model = random_decoder(QWEN3)
    save_checkpoint(model, tmp_path / "source", dtype="float32")
    convert_checkpoint(tmp_path / "source", tmp_path / "mine")
    loaded = load_model(tmp_path / "mine", dtype="bfloat16")
    assert loaded.dtype == "bfloat16"
    for path, leaf in leaves_of(model).items():
        np.testing.assert_array_equal(leaves_of(loaded)[path], leaf.astype(jnp.bfloat16), strict=True)
    with pytest.raises(ValueError, match="dtype must be a floating dtype; got int8"):
        load_model(tmp_path / "mine", dtype="int8")


def test_float16_stays_float16(random_decoder, tmp_path: Path):
    save_checkpoint(random_decoder(QWEN3), tmp_path / "source", dtype="float32")
    tensors = load_file(tmp_path / "source" / WEIGHTS)
    halves = {name: tensor.astype(np.float16) for name, tensor in tensors.items()}
    save_file(halves, tmp_path / "source" / WEIGHTS, metadata={"format": "pt"})
    convert_checkpoint(tmp_path / "source", tmp_path / "mine")
    assert {leaf.dtype for leaf in leaves_of(load_model(tmp_path / "mine")).values()} == {np.dtype(np.float16)}
    export_checkpoint(tmp_path / "mine", tmp_path / "back")
    assert weights_hash(tmp_path / "back") == weights_hash(tmp_path / "source")


def test_weights_are_one_orbax_checkpoint_of_dotted_leaves(random_decoder, tmp_path: Path):
    model = random_decoder(MIXTURE)
    save_checkpoint(model, tmp_path / "source", dtype="float32")
    convert_checkpoint(tmp_path / "source", tmp_path / "a folder, named %20 ü")
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(tmp_path / "a folder, named %20 ü" / "weights")
    wanted = {".".join(map(str, path)): leaf for path, leaf in leaves_of(model).items()}
    assert set(restored) == set(wanted)
    for name, leaf in wanted.items():
        np.testing.assert_array_equal(restored[name], leaf, strict=True)
    assert_same_weights(load_model(tmp_path / "a folder, named %20 ü"), model)


def test_replacing_is_asked_for_and_leaves_nothing_behind(random_decoder, tmp_path: Path):
    for seed in (0, 1):
        save_checkpoint(random_decoder(QWEN3, seed=seed), tmp_path / f"source{seed}", dtype="float32")
    convert_checkpoint(tmp_path / "source0", tmp_path / "mine")
    before = files_of(tmp_path / "mine")
    with pytest.raises(ValueError, match=r"the target .*mine exists and is not empty; choose another, or force"):
        convert_checkpoint(tmp_path / "source1", tmp_path / "mine")
    assert files_of(tmp_path / "mine") == before
    convert_checkpoint(tmp_path / "source1", tmp_path / "mine", force=True)
    assert_same_weights(load_model(tmp_path / "mine"), random_decoder(QWEN3, seed=1))
    export_checkpoint(tmp_path / "mine", tmp_path / "source0", force=True)
    assert weights_hash(tmp_path / "source0") == weights_hash(tmp_path / "source1")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["mine", "source0", "source1"]


def test_an_empty_target_is_free(random_decoder, tmp_path: Path):
    save_checkpoint(random_decoder(QWEN3), tmp_path / "source", dtype="float32")
    (tmp_path / "mine").mkdir()
    convert_checkpoint(tmp_path / "source", tmp_path / "mine")
    assert load_model(tmp_path / "mine").spec == QWEN3


def test_progress_counts_every_stored_byte(random_decoder, tmp_path: Path):
    save_checkpoint(random_decoder(QWEN3), tmp_path / "source", dtype="float32")
    for run, target in ((convert_checkpoint, "mine"), (export_checkpoint, "back")):
        seen: list[tuple[int, int]] = []
        source = tmp_path / ("source" if run is convert_checkpoint else "mine")
        run(source, tmp_path / target, on_progress=lambda done, total, seen=seen: seen.append((done, total)))
        assert seen[0] == (0, 4 * QWEN3.num_params)
        assert seen[-1] == (4 * QWEN3.num_params, 4 * QWEN3.num_params)
        assert [done for done, _ in seen] == sorted(done for done, _ in seen)


@pytest.mark.parametrize(
    ("shape", "is_stack", "wanted"),
    [
        ((5120, 25600), False, (5120, 1600)),  # MLP width
        ((25600, 5120), False, (1600, 5120)),
        ((5120, 64, 128), False, (5120, 8, 128)),  # heads
        ((64, 128, 5120), False, (8, 128, 5120)),
        ((5120, 8, 128), False, (5120, 1, 128)),  # 8 devices find a KV head each
        ((151936, 5120), False, (1187, 5120)),  # vocabulary
        ((128, 5120, 768), True, (1, 5120, 768)),  # one expert
        ((8, 5120, 16384), True, (1, 5120, 1024)),
        ((5120,), False, (5120,)),
        ((24, 10), False, (24, 10)),
    ],
)
def test_chunks_follow_the_axis_that_a_mesh_splits(shape: tuple, is_stack: bool, wanted: tuple):
    chunk = chunk_shape(shape, 2, d_model=5120, is_stack=is_stack)
    assert chunk == wanted
    assert 2 * np.prod(chunk) <= MAX_CHUNK_BYTES


def test_experts_of_different_dtypes_ask_for_one(random_decoder, tmp_path: Path):
    save_checkpoint(random_decoder(MIXTURE), tmp_path / "source", dtype="float32")
    tensors = load_file(tmp_path / "source" / WEIGHTS)
    odd = "model.layers.0.mlp.experts.2.gate_proj.weight"
    tensors[odd] = tensors[odd].astype(np.float16)
    save_file(tensors, tmp_path / "source" / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"tensor {odd} in {WEIGHTS} is float16, the experts before it float32"):
        convert_checkpoint(tmp_path / "source", tmp_path / "mine")
    convert_checkpoint(tmp_path / "source", tmp_path / "mine", dtype="float32")
    stack = leaves_of(load_model(tmp_path / "mine"))[("layers", 0, "mlp", "gate_proj")]
    np.testing.assert_array_equal(stack[2], tensors[odd].T.astype(np.float32))


def test_untied_head_is_no_copy_of_the_embedding(random_decoder, tmp_path: Path):
    model = random_decoder(replace(QWEN3, tied_embeddings=False))
    save_checkpoint(model, tmp_path / "source", dtype="float32")
    convert_checkpoint(tmp_path / "source", tmp_path / "mine")
    export_checkpoint(tmp_path / "mine", tmp_path / "back")
    np.testing.assert_array_equal(
        load_file(tmp_path / "back" / WEIGHTS)[HEAD], np.asarray(model.lm_head.kernel[...]).T, strict=True
    )
