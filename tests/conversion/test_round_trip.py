"""Ours to Hugging Face and back: nothing is lost, nothing is left half-written."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import checkpoints_conversion._save as save_module
from checkpoints_conversion import load_checkpoint, save_checkpoint, weights_hash
from checkpoints_conversion._rules import tensor_rules
from kinetics_jax.models import Decoder, abstract_decoder
from kinetics_jax.specs import MODELS, Llama3Rope, ModelSpec

LLAMA_3_1 = Llama3Rope(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_len=8192)


def leaves_of(model: Decoder) -> dict[tuple, np.ndarray]:
    return {path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(nnx.state(model))}


def assert_same_weights(got: Decoder, wanted: Decoder) -> None:
    got_leaves, wanted_leaves = leaves_of(got), leaves_of(wanted)
    assert set(got_leaves) == set(wanted_leaves)
    for path, leaf in wanted_leaves.items():
        np.testing.assert_array_equal(got_leaves[path], leaf, err_msg=str(path), strict=True)


def make_shards(folder: Path) -> None:
    """Spread the tensors of model.safetensors over two shards with an index, as large models are published."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        shard = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / shard, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


ONE_OF_EACH = (
    "Qwen3-0.6B",
    "Qwen3-32B",
    "Qwen3-235B-A22B",
    "Qwen2.5-0.5B-Instruct",
    "DeepSeek-R1-Distill-Qwen-32B",
    "Llama-3.1-8B-Instruct",
    "Kinetics-Mini-7M",
)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_table_of_tensors_is_a_bijection(name: str):
    """Every leaf of the real size is filled once, in every part, by tensors with names of their own; layers repeat."""
    spec = replace(MODELS[name], num_layers=2)
    leaves = {path: leaf.shape for path, leaf in nnx.to_flat_state(nnx.state(abstract_decoder(spec)))}
    rules = tensor_rules(spec)
    assert {rule.path: rule.leaf_shape for rule in rules} == leaves
    assert len({rule.hf_name for rule in rules}) == len({(rule.path, rule.slot) for rule in rules}) == len(rules)
    assert sum(int(np.prod(rule.hf_shape)) for rule in rules) == spec.num_params


def test_kernels_turn_as_drawn_by_hand(tiny_spec: ModelSpec):
    """Row n*H + h of q_proj.weight is column (n, h) of ours; column n*H + h of o_proj.weight is row (n, h)."""
    rules = {rule.hf_name: rule for rule in tensor_rules(tiny_spec)}
    q_rule, o_rule = (rules[f"model.layers.1.self_attn.{which}_proj.weight"] for which in "qo")
    assert (q_rule.hf_shape, q_rule.leaf_shape) == ((48, 12), (12, 6, 8))
    assert (o_rule.hf_shape, o_rule.leaf_shape) == ((12, 48), (6, 8, 12))
    stored = np.arange(48 * 12).reshape(48, 12)
    assert q_rule.to_leaf(stored)[5, 2, 3] == stored[2 * 8 + 3, 5]
    assert o_rule.to_leaf(stored.T)[2, 3, 5] == stored.T[5, 2 * 8 + 3]
    for rule, tensor in ((q_rule, stored), (o_rule, stored.T)):
        np.testing.assert_array_equal(rule.to_stored(rule.to_leaf(tensor)), tensor)


def test_experts_and_biases_turn_as_drawn_by_hand(tiny_spec: ModelSpec):
    """Row f of an expert's gate_proj.weight is column f of ours; entry n*H + h of q_proj.bias is entry (n, h)."""
    spec = replace(tiny_spec, qkv_bias=True, num_experts=5, num_active_experts=2)
    rules = {rule.hf_name: rule for rule in tensor_rules(spec)}
    rule = rules["model.layers.1.mlp.experts.3.gate_proj.weight"]
    assert (rule.path, rule.slot) == (("layers", 1, "mlp", "gate_proj"), (3,))
    assert (rule.hf_shape, rule.leaf_shape) == ((20, 12), (5, 12, 20))
    leaf = np.random.default_rng(0).normal(size=rule.leaf_shape)
    np.testing.assert_array_equal(rule.to_stored(leaf), leaf[3].T)
    np.testing.assert_array_equal(rule.to_leaf(leaf[3].T), leaf[3])
    router = rules["model.layers.0.mlp.gate.weight"]
    assert (router.hf_shape, router.leaf_shape, router.slot) == ((5, 12), (12, 5), ())
    bias = rules["model.layers.0.self_attn.q_proj.bias"]
    assert (bias.hf_shape, bias.leaf_shape) == ((48,), (6, 8))
    assert bias.to_leaf(np.arange(48))[2, 3] == 2 * 8 + 3
    np.testing.assert_array_equal(bias.to_stored(np.arange(48).reshape(6, 8)), np.arange(48))


@pytest.fixture(params=["Qwen2", "Qwen3-MoE", "Llama"])
def family_spec(request: pytest.FixtureRequest, tiny_spec: ModelSpec) -> ModelSpec:
    changes = {
        "Qwen2": {"qk_norm": False, "qkv_bias": True},
        "Qwen3-MoE": {"num_experts": 5, "num_active_experts": 2, "tied_embeddings": False},
        "Llama": {"qk_norm": False, "rope_scaling": LLAMA_3_1},
    }
    return replace(tiny_spec, family=request.param, **changes[request.param])


def test_every_family_survives_the_round_trip_in_one_file_and_in_shards(
    family_spec: ModelSpec, random_decoder, tmp_path: Path
):
    """The shards split the experts of a layer between them."""
    model = random_decoder(family_spec)
    save_checkpoint(model, tmp_path / "tiny", dtype="float32")
    loaded = load_checkpoint(tmp_path / "tiny")
    assert loaded.spec == family_spec
    assert_same_weights(loaded, model)
    make_shards(tmp_path / "tiny")
    assert_same_weights(load_checkpoint(tmp_path / "tiny"), model)


def test_a_broken_number_of_experts_builds_no_rules(tiny_spec: ModelSpec, random_decoder, tmp_path: Path):
    save_checkpoint(random_decoder(replace(tiny_spec, num_experts=5, num_active_experts=2)), tmp_path / "tiny")
    file = tmp_path / "tiny" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_experts": 10**9}))
    with pytest.raises(ValueError, match="has 2 layers of 1000000000 experts, but the files hold 50 tensors"):
        load_checkpoint(tmp_path / "tiny")


@pytest.mark.parametrize("tied", [True, False])
def test_float32_round_trip_is_exact(tiny_spec: ModelSpec, random_decoder, tmp_path: Path, tied: bool):
    spec = replace(tiny_spec, tied_embeddings=tied)
    model = random_decoder(spec)
    save_checkpoint(model, tmp_path / "tiny", dtype="float32")
    loaded = load_checkpoint(tmp_path / "tiny")
    assert loaded.spec == spec
    assert_same_weights(loaded, model)
    token_ids = jnp.arange(10).reshape(2, 5)
    np.testing.assert_array_equal(loaded(token_ids), model(token_ids))


def test_bfloat16_round_trip_is_exact(tiny_spec: ModelSpec, random_decoder, tmp_path: Path):
    model = random_decoder(tiny_spec, dtype=jnp.bfloat16)
    save_checkpoint(model, tmp_path / "tiny")
    with safe_open(tmp_path / "tiny" / "model.safetensors", framework="numpy") as opened:
        assert {opened.get_slice(name).get_dtype() for name in opened.keys()} == {"BF16"}  # noqa: SIM118
    assert_same_weights(load_checkpoint(tmp_path / "tiny", dtype=jnp.bfloat16), model)
    widened = load_checkpoint(tmp_path / "tiny", dtype="float32")
    as_float32 = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), nnx.state(model))
    assert_same_weights(widened, nnx.merge(nnx.graphdef(widened), as_float32))


def test_storing_bfloat16_rounds_to_nearest_even(tiny_model: Decoder, tmp_path: Path):
    save_checkpoint(tiny_model, tmp_path / "tiny")
    loaded = leaves_of(load_checkpoint(tmp_path / "tiny"))
    for path, leaf in leaves_of(tiny_model).items():
        np.testing.assert_array_equal(loaded[path], leaf.astype(jnp.bfloat16).astype(np.float32))


def test_shards_equal_one_file(tiny_folder: Path, tiny_model: Decoder):
    before = weights_hash(tiny_folder)
    make_shards(tiny_folder)
    assert_same_weights(load_checkpoint(tiny_folder), tiny_model)
    assert weights_hash(tiny_folder) == before


def test_hash_changes_with_any_weight_and_not_with_the_config(tiny_folder: Path, edit_config):
    before = weights_hash(tiny_folder)
    assert len(before) == 64
    edit_config(rope_theta=1.0)
    assert weights_hash(tiny_folder) == before
    file = tiny_folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert weights_hash(tiny_folder) != before


@pytest.mark.parametrize("same", [True, False])
def test_tied_head_stored_twice_must_equal_the_embedding(tiny_folder: Path, tiny_model: Decoder, same: bool):
    """The published files of Qwen3-0.6B and 1.7B hold it."""
    file = tiny_folder / "model.safetensors"
    tensors = load_file(file)
    head = tensors["model.embed_tokens.weight"].copy()
    head[3, 4] += 0 if same else 1
    save_file(tensors | {"lm_head.weight": head}, file, metadata={"format": "pt"})
    if same:
        assert_same_weights(load_checkpoint(tiny_folder), tiny_model)
    else:
        with pytest.raises(ValueError, match=r"lm_head.weight in model.safetensors differs from model.embed_tokens"):
            load_checkpoint(tiny_folder)


def test_saving_again_replaces_the_model_and_keeps_other_files(tiny_folder: Path, tiny_spec: ModelSpec, random_decoder):
    assert {oct(file.stat().st_mode & 0o777) for file in tiny_folder.iterdir()} == {"0o644"}
    (tiny_folder / "README.md").write_text("card")
    make_shards(tiny_folder)
    other = random_decoder(tiny_spec, seed=8)
    save_checkpoint(other, tiny_folder, dtype="float32")
    assert sorted(file.name for file in tiny_folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert [file.name for file in tiny_folder.parent.iterdir()] == ["tiny"]
    assert_same_weights(load_checkpoint(tiny_folder), other)


def test_a_failed_save_leaves_all_as_it_was(tiny_folder: Path, tiny_spec: ModelSpec, random_decoder, monkeypatch):
    before = {file.name: file.read_bytes() for file in tiny_folder.iterdir()}

    def full_disk(file: Path, content: dict) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(save_module, "_write_json", full_disk)
    other = random_decoder(tiny_spec, seed=8)
    for folder in (tiny_folder, tiny_folder.parent / "new"):
        with pytest.raises(OSError, match="no space left"):
            save_checkpoint(other, folder)
    assert {file.name: file.read_bytes() for file in tiny_folder.iterdir()} == before
    assert [file.name for file in tiny_folder.parent.iterdir()] == ["tiny"]


def test_saving_onto_a_file_is_refused(tiny_model: Decoder, tmp_path: Path):
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(ValueError, match=r"taken: it is a file"):
        save_checkpoint(tiny_model, tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "mine"
