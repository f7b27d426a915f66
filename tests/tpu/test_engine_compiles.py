"""The engine's decode program of Qwen3-8B, block top-k by Pallas kernels, on TPU slices that need not be there."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from kinetics_jax.attention import DATA_AXIS
from kinetics_jax.models import abstract_decoder, shard_decoder
from kinetics_jax.sampling._call import Batch, CallWriter
from kinetics_jax.sampling._pools import Pools, pool_shardings
from kinetics_jax.sampling._programs import Programs
from kinetics_jax.specs import HARDWARE, MODELS, BlockTopK, ModelSpec, SamplingSpec
from pallas_kernels import _dispatch

GIB = 2**30
NUM_SLOTS, MAX_LEN, PAGE_LEN, NUM_STEPS = 16, 16_384, 16, 8
ATTENTION = BlockTopK(page_len=PAGE_LEN, num_pages=64)
PAPER = SamplingSpec(temperature=0.6, top_k=20, top_p=0.95)


def compile_decode(spec: ModelSpec, topology: str, shape: tuple[int, int]) -> tuple[jax.stages.Compiled, int]:
    """Return the compiled program and the bytes of the pools on each chip."""
    mesh = topologies.make_mesh(
        topologies.get_topology_desc(platform="tpu", topology_name=topology), shape, ("data", "model")
    )
    model = shard_decoder(abstract_decoder(spec, dtype=jnp.bfloat16), mesh)
    num_groups = shape[0]
    programs = Programs(
        model,
        sampling=PAPER,
        stop_ids=(151_645, 151_643),
        closing=None,
        num_steps=NUM_STEPS,
        num_page_groups=num_groups,
        keep_log_probs=False,
    )
    num_pages = num_groups + NUM_SLOTS * MAX_LEN // PAGE_LEN
    num_pages += -num_pages % num_groups
    pool = (spec.num_layers, num_pages, spec.num_kv_heads, PAGE_LEN, spec.head_dim)
    shapes = zip((pool, pool, (*pool[:3], pool[4])), pool_shardings(model, num_groups), strict=True)
    pools = Pools._make(jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=place) for shape, place in shapes)
    rows, columns = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((DATA_AXIS,), (None, DATA_AXIS)))
    writer = CallWriter(
        num_steps=NUM_STEPS,
        max_pages=MAX_LEN // PAGE_LEN,
        num_hidden=spec.d_model,
        dtype=np.dtype(jnp.bfloat16),
        num_remembered=0,
    )
    arrays = writer.batch([None] * NUM_SLOTS)._asdict()
    fields: dict[str, Any] = {
        name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=columns if name == "forced" else rows)
        for name, array in arrays.items()
    }
    batch = Batch(**fields)
    seen = jax.ShapeDtypeStruct((NUM_SLOTS, 0), jnp.bool_, sharding=rows)
    with _dispatch.targeting("tpu"):
        compiled = programs.lower_decode(pools, seen, batch, ATTENTION).compile()
    return compiled, sum(leaf.size * 2 for leaf in pools) // (shape[0] * shape[1])


@pytest.mark.parametrize(
    ("num_layers", "chip", "topology", "shape"),
    [
        pytest.param(36, "TPU-v5e", "v5e:2x2", (1, 4), marks=pytest.mark.whole_model),
        pytest.param(36, "TPU-v5e", "v5e:2x4", (1, 8), marks=pytest.mark.whole_model),
        pytest.param(36, "TPU-v6e", "v6e:2x2", (1, 4), marks=pytest.mark.whole_model),
        pytest.param(36, "TPU-v6e", "v6e:2x4", (2, 4), marks=pytest.mark.whole_model),
        pytest.param(36, "TPU-v5p", "v5p:2x2x1", (1, 4), marks=pytest.mark.whole_model),
        pytest.param(36, "TPU-v5p", "v5p:2x2x2", (2, 4), marks=pytest.mark.whole_model),
        (2, "TPU-v5e", "v5e:2x4", (2, 4)),
    ],
    ids=str,
)
def test_decode_calls_run_kernels_and_fit(
    num_layers: int,
    chip: str,
    topology: str,
    shape: tuple[int, int],
    record_property: Callable[[str, object], None],
):
    spec = replace(MODELS["Qwen3-8B"], num_layers=num_layers)
    compiled, pool_bytes = compile_decode(spec, topology, shape)
    memory, text = compiled.memory_analysis(), compiled.as_text()
    assert memory is not None
    assert text is not None
    assert text.count("tpu_custom_call") >= num_layers  # kernels, on a mesh
    record_property(
        "memory",
        f"Qwen3-8B, {num_layers} layers, {ATTENTION}, {shape[0]} x {shape[1]} {chip}: {NUM_SLOTS} slots of "
        f"{MAX_LEN:,}, pools {pool_bytes / GIB:.2f} + temporary {memory.temp_size_in_bytes / GIB:.2f}, peak "
        f"{memory.peak_memory_in_bytes / GIB:.2f} of {HARDWARE[chip].hbm_bytes / GIB:.0f} GiB",
    )
    assert memory.alias_size_in_bytes == pytest.approx(pool_bytes, rel=0.01)  # pools are renewed in place
    assert memory.temp_size_in_bytes < GIB
    assert memory.peak_memory_in_bytes < HARDWARE[chip].hbm_bytes
