"""Where weights and caches lie on a mesh; and, on 8 simulated devices, that nothing else changes there."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh

from kinetics_jax.attention import cache_shardings, init_shared_cache
from kinetics_jax.models import abstract_decoder, decoder_shardings, shard_decoder
from kinetics_jax.specs import MODELS, ModelSpec
from tests.models.sharded_checks import DECODE_MESHES
from tests.models.tiny_models import EXPERTS, TINY

ROOT = Path(__file__).resolve().parent.parent.parent


def mesh_of(num_data: int, num_model: int, names: tuple[str, str] = ("data", "model")) -> Mesh:
    """One device many times over: enough to ask where things would lie."""
    return Mesh(np.full((num_data, num_model), jax.devices()[0]), names)


def parts(spec: ModelSpec, num_model: int, *, int8: bool = False) -> dict[str, tuple[int, ...]]:
    """Return the shape of each leaf on one of many devices; of the layers, the first."""
    model = abstract_decoder(replace(spec, num_layers=1), int8=int8)
    shardings = decoder_shardings(model, mesh_of(2, num_model))
    shapes = {".".join(map(str, path)): leaf.shape for path, leaf in nnx.to_flat_state(nnx.state(model))}
    assert set(shapes) == set(shardings)
    return {name.removeprefix("layers.0."): shardings[name].shard_shape(shape) for name, shape in shapes.items()}


def test_qwen3_32b_on_eight_devices():
    assert parts(MODELS["Qwen3-32B"], 8) == {
        "embed.embedding": (18992, 5120),
        "attention_norm.scale": (5120,),
        "q_proj.kernel": (5120, 8, 128),
        "k_proj.kernel": (5120, 1, 128),
        "v_proj.kernel": (5120, 1, 128),
        "q_norm.scale": (128,),
        "k_norm.scale": (128,),
        "o_proj.kernel": (8, 128, 5120),
        "mlp_norm.scale": (5120,),
        "mlp.gate_proj.kernel": (5120, 3200),
        "mlp.up_proj.kernel": (5120, 3200),
        "mlp.down_proj.kernel": (3200, 5120),
        "final_norm.scale": (5120,),
        "lm_head.kernel": (5120, 18992),
    }


def test_experts_are_cut_by_width_and_few_kv_heads_replicated():
    found = parts(MODELS["Qwen3-30B-A3B"], 8)
    assert found["mlp.gate_proj"] == found["mlp.up_proj"] == (128, 2048, 96)
    assert found["mlp.down_proj"] == (128, 96, 2048)
    assert found["mlp.router.kernel"] == (2048, 128)
    assert found["k_proj.kernel"] == found["v_proj.kernel"] == (2048, 4, 128)
    assert found["q_proj.kernel"] == (2048, 4, 128)


def test_biases_and_an_indivisible_vocabulary():
    spec = replace(TINY, qkv_bias=True, tied_embeddings=False, vocab_size=33)
    found = parts(spec, 2)
    assert found["q_proj.bias"] == (3, 8)
    assert found["k_proj.bias"] == found["v_proj.bias"] == (1, 8)
    assert found["embed.embedding"] == (33, 24)
    assert found["lm_head.kernel"] == (24, 33)


@pytest.mark.parametrize(
    "spec", [replace(TINY, tied_embeddings=False, qkv_bias=True), EXPERTS], ids=lambda spec: spec.name
)
def test_int8_scales_lie_with_the_outputs_of_their_kernels(spec: ModelSpec):
    found, whole = parts(spec, 2, int8=True), parts(spec, 1, int8=True)
    scales = [name for name in found if name.endswith("_scale")]
    assert len(scales) >= 7
    for name in scales:
        kernel = found[name.removesuffix("_scale")]
        is_stack, is_cut = len(kernel) == 3 and "mlp" in name, found[name] != whole[name]
        outputs = kernel[:1] + kernel[2:] if is_stack else kernel[-len(found[name]) :]
        assert found[name] == outputs
        assert is_cut == ("o_proj" not in name and "down_proj" not in name)


def test_abstract_decoder_keeps_its_shapes_and_learns_its_mesh():
    model = abstract_decoder(TINY, dtype="bfloat16")
    sharded = shard_decoder(model, mesh_of(4, 2))
    assert model.mesh is None
    assert isinstance(sharded.mesh, Mesh)
    assert dict(sharded.mesh.shape) == {"data": 4, "model": 2}
    kernel = sharded.layers[1].o_proj.kernel.get_value()
    assert (kernel.shape, kernel.dtype, kernel.sharding.shard_shape(kernel.shape)) == (
        (6, 8, 24),
        "bfloat16",
        (3, 8, 24),
    )


@pytest.mark.parametrize(
    ("spec", "mesh", "message"),
    [
        (
            TINY,
            mesh_of(1, 4),
            r"divide the query heads .* of tiny; got 6 heads, width 40 and a model axis of 4. Use .* 2",
        ),
        (replace(TINY, mlp_dim=9), mesh_of(1, 2), "width 9 and a model axis of 2. Use a divisor of 3"),
        (TINY, mesh_of(1, 2, ("x", "y")), r"axes 'data' and 'model'; got \('x', 'y'\). Use jax.make_mesh\(\(1, 2\)"),
    ],
    ids=["heads", "MLP width", "axes"],
)
def test_meshes_that_do_not_fit_are_refused(spec: ModelSpec, mesh: Mesh, message: str):
    model = abstract_decoder(spec)
    for place in (decoder_shardings, shard_decoder):
        with pytest.raises(ValueError, match=message):
            place(model, mesh)


def test_cache_lies_where_the_heads_that_read_it_lie():
    make = partial(init_shared_cache, TINY, num_trials=4, max_prompt_len=8, max_gen_len=4, page_len=4)
    cache = jax.eval_shape(make)

    def shapes(num_data: int, num_model: int, *, cache=cache) -> list[tuple[int, ...]]:
        shardings = cache_shardings(cache, mesh_of(num_data, num_model))
        assert jax.tree.structure(shardings) == jax.tree.structure(cache)
        pairs = zip(jax.tree.leaves(shardings), jax.tree.leaves(cache), strict=True)
        return [sharding.shard_shape(leaf.shape) for sharding, leaf in pairs]

    assert shapes(2, 2) == [(2, 10, 1, 4, 8), (2, 10, 1, 4, 8), (2, 10, 1, 8), (2, 3), (2,)]
    assert shapes(1, 4) == [(2, 10, 2, 4, 8), (2, 10, 2, 4, 8), (2, 10, 2, 8), (4, 3), (4,)]
    batch = jax.eval_shape(jax.vmap(lambda _: make()), np.zeros(6))
    assert shapes(3, 2, cache=batch) == [(2, 2, 10, 1, 4, 8)] * 2 + [(2, 2, 10, 1, 8), (2, 4, 3), (2, 4)]
    with pytest.raises(ValueError, match="divide the sequences; got 4 sequences and a data axis of 3"):
        shapes(3, 1)
    with pytest.raises(ValueError, match="divide the problems; got 6 problems and a data axis of 4"):
        shapes(4, 1, cache=batch)


def test_eight_devices_say_what_one_says():
    """Forward and decode steps on three meshes, generation over problems, and a converted model loaded onto a mesh."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-m", "tests.models.sharded_checks"],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for name in DECODE_MESHES:
        case = found[name]
        assert set(case["forward"]) == {"(1, 8)", "(2, 4)", "(8, 1)"}
        assert set(case["decode"]) == {str(shape) for shape in DECODE_MESHES[name]}
        assert max(case["forward"].values()) < 1e-4, name
        assert max(case["decode"].values()) < 1e-4, name
        assert max(case["gathered"].values()) < case["pool"], f"{name}: a decode step gathers the cache"
    assert found["generation"]["same"]
    assert found["generation"]["gathered"] < 100, "the loop gathers the cache"
    assert found["engine"] == {"same": True, "num_trials": 12, "num_compilations": [2, 2]}
    assert found["load"] == {"same": True, "mesh": True}
    assert found["heads"] == {"difference": 0.0, "collectives": []}
    assert found["sequence"]["communicates"]
    assert found["sequence"]["nothing_read"] == [-math.inf] * 6  # the heads of the sequence of length 0
    assert max(found["sequence"]["difference"], found["sequence"]["lse"]) < 3e-6
