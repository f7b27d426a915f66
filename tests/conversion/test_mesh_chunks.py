"""Converted for a mesh: each device reads chunks of its own only, any mesh loads the result, none is refused late."""

import itertools
import math
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, Mesh

from checkpoints_conversion import _orbax, convert_checkpoint, export_checkpoint, save_checkpoint, weights_hash
from checkpoints_conversion._orbax import MAX_CHUNK_BYTES, Stores, chunk_shape
from kinetics_jax.models import abstract_decoder, decoder_shardings, leaf_name, leaf_shardings, load_model
from kinetics_jax.specs import MODELS, ModelSpec
from tests.conversion.families import MIXTURE, QWEN2, assert_same_weights, files_of

AXES = ("data", "model")
QWEN2_OF_8 = replace(QWEN2, num_heads=8, num_kv_heads=2, mlp_dim=40, tied_embeddings=False, vocab_size=72)
MIXTURE_OF_8 = replace(MIXTURE, num_heads=8, num_kv_heads=4, mlp_dim=24)


def num_read_and_owned(chunk: tuple[int, ...], shape: tuple[int, ...], shard: tuple[int, ...]) -> set[tuple[int, int]]:
    """Return, over the shards of a leaf, the entries in all chunks that a shard lies in, and its own."""
    counts = set()
    for corner in itertools.product(*(range(0, size, step) for size, step in zip(shape, shard, strict=True))):
        num_read = 1
        for start, size, step, end in zip(corner, shard, chunk, shape, strict=True):
            first, last = start // step, -(-(start + size) // step)
            num_read *= min(last * step, end) - first * step
        counts.add((num_read, math.prod(shard)))
    return counts


@pytest.mark.parametrize("num_model", [2, 8])
@pytest.mark.parametrize(("spec", "int8"), [(QWEN2_OF_8, False), (QWEN2_OF_8, True), (MIXTURE_OF_8, True)])
def test_each_device_reads_its_own_bytes_only(
    spec: ModelSpec, int8: bool, num_model: int, random_decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(_orbax, "MAX_CHUNK_BYTES", 200)  # so that chunks are smaller than shards, and cut twice
    save_checkpoint(random_decoder(spec), tmp_path / "source", dtype="float32")
    mesh = Mesh(np.full((1, num_model), jax.devices()[0]), AXES)  # one device many times: enough to ask what lies where
    convert_checkpoint(tmp_path / "source", tmp_path / "mine", int8=int8, mesh=mesh)
    stores, names = Stores(tmp_path / "mine" / "weights"), []
    for name, sharding in decoder_shardings(abstract_decoder(spec, int8=int8), mesh).items():
        shape, chunk = stores[name].shape, stores[name].chunk_layout.read_chunk.shape
        shard = sharding.shard_shape(shape)
        assert all(num_read == num_owned for num_read, num_owned in num_read_and_owned(chunk, shape, shard)), name
        names += [name] if shard != shape else []
    assert {"layers.1.q_proj.kernel", "layers.0.o_proj.kernel", "lm_head.kernel"} <= set(names)


def test_without_the_mesh_devices_would_read_more():
    shape = (25_600 * 3 // 4, 5120)
    shard = (shape[0] // 6, 5120)
    free, cut = (chunk_shape(shape, 2, d_model=5120, shard=part) for part in (None, shard))
    assert max(num_read / num_owned for num_read, num_owned in num_read_and_owned(free, shape, shard)) > 1.1
    assert num_read_and_owned(cut, shape, shard) == {(math.prod(shard), math.prod(shard))}


def test_other_meshes_load_it_and_it_exports_as_it_came(random_decoder, tmp_path: Path):
    model = random_decoder(QWEN2_OF_8)
    save_checkpoint(model, tmp_path / "source", dtype="float32")
    for num_model in (8, 2):  # another mesh starts anew
        convert_checkpoint(tmp_path / "source", tmp_path / "mine", mesh=AbstractMesh((2, num_model), AXES), force=True)
    assert_same_weights(load_model(tmp_path / "mine"), model)
    assert_same_weights(load_model(tmp_path / "mine", mesh=jax.make_mesh((1, 1), AXES)), model)
    export_checkpoint(tmp_path / "mine", tmp_path / "back")
    assert weights_hash(tmp_path / "back") == weights_hash(tmp_path / "source")


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        (AbstractMesh((1, 3), AXES), r"divide the query heads .* of source; got 8 heads, width 40 .* axis of 3. Use"),
        (AbstractMesh((1, 8), ("x", "y")), r"must have the axes 'data' and 'model'; got \('x', 'y'\). Use"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused_as_loading_refuses_it(
    mesh: AbstractMesh, message: str, random_decoder, tmp_path: Path
):
    save_checkpoint(random_decoder(QWEN2_OF_8), tmp_path / "source", dtype="float32")
    before = files_of(tmp_path)
    with pytest.raises(ValueError, match=f"cannot convert .*source: .*{message}") as refused:
        convert_checkpoint(tmp_path / "source", tmp_path / "mine", mesh=mesh)
    assert files_of(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    devices = np.full(mesh.axis_sizes, jax.devices()[0])
    with pytest.raises(ValueError, match=message) as loading:
        load_model(convert_checkpoint(tmp_path / "source", tmp_path / "mine"), mesh=Mesh(devices, mesh.axis_names))
    assert str(refused.value).endswith(str(loading.value))


@pytest.mark.parametrize("name", ["Qwen3-0.6B", "Qwen3-32B", "Qwen3-30B-A3B", "DeepSeek-R1-Distill-Llama-8B"])
def test_chunks_of_published_models_tile_shards_and_are_neither_large_nor_tiny(name: str):
    spec = replace(MODELS[name], num_layers=1)
    shapes = {leaf: shape for leaf, shape in shapes_of(spec).items() if len(shape) > 1}
    for (leaf, shape), num_model, itemsize in itertools.product(shapes.items(), (2, 8), (1, 2, 4)):
        is_stack = spec.num_experts > 0 and leaf.endswith(("gate_proj", "up_proj", "down_proj"))
        sharding = leaf_shardings(spec, [leaf], AbstractMesh((1, num_model), AXES))[leaf]
        shard = sharding.shard_shape(shape)
        chunk = chunk_shape(shape, itemsize, d_model=spec.d_model, is_stack=is_stack, shard=shard)
        num_bytes = itemsize * math.prod(chunk)
        assert num_bytes <= MAX_CHUNK_BYTES
        assert num_bytes > min(2**17, itemsize * math.prod(shard[is_stack:]) - 1), (leaf, chunk)
        assert all(part % size == 0 for part, size, whole in zip(shard, chunk, shape, strict=True) if part != whole)


def shapes_of(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    return {leaf_name(path): leaf.shape for path, leaf in nnx.to_flat_state(nnx.state(abstract_decoder(spec)))}
