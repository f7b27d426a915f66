"""Decode steps of real models on TPU slices that need not be there: libtpu compiles them, and says what they need."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from kinetics_jax.attention import PagedCache, cache_shardings, init_shared_cache
from kinetics_jax.models import Decoder, abstract_decoder, shard_decoder
from kinetics_jax.specs import HARDWARE, MODELS, AttentionSpec, BlockTopK, Dense, ModelSpec

NUM_SEQUENCES, PROMPT_LEN, GEN_LEN = 8, 1_024, 15_360
GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Chips of one kind and how a mesh lays its axes over them."""

    chip: str
    topology: str
    num_data: int
    num_model: int

    def __str__(self) -> str:
        return f"{self.num_data} x {self.num_model} {self.chip}"


V5P = Slice(chip="TPU-v5p", topology="v5p:2x2x1", num_data=1, num_model=4)
V6E = Slice(chip="TPU-v6e", topology="v6e:2x4", num_data=1, num_model=8)
V6E_BOTH_AXES = replace(V6E, num_data=2, num_model=4)


def compile_step(spec: ModelSpec, attention: AttentionSpec, tpus: Slice) -> tuple[jax.stages.Compiled, PagedCache]:
    """Return the compiled step, which may overwrite its cache, and the shapes of that cache."""
    topology = topologies.get_topology_desc(platform="tpu", topology_name=tpus.topology)
    mesh = topologies.make_mesh(topology, (tpus.num_data, tpus.num_model), ("data", "model"))
    model = shard_decoder(abstract_decoder(spec, dtype=jnp.bfloat16), mesh)
    make_cache: Callable[[], PagedCache] = partial(
        init_shared_cache,
        spec,
        num_trials=NUM_SEQUENCES,
        max_prompt_len=PROMPT_LEN,
        max_gen_len=GEN_LEN,
        dtype=jnp.bfloat16,
    )
    cache = jax.eval_shape(make_cache)
    cache = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        cache,
        cache_shardings(cache, mesh),
    )
    rows = NamedSharding(mesh, PartitionSpec("data"))
    token_ids = jax.ShapeDtypeStruct((NUM_SEQUENCES,), jnp.int32, sharding=rows)
    step = jax.jit(Decoder.decode_step, static_argnums=3, donate_argnums=2)
    return step.lower(model, token_ids, cache, attention).compile(), cache


def largest_moved(compiled: jax.stages.Compiled) -> int:
    """Return the elements of the largest array that chips send one another."""
    moves = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
    results = re.findall(rf"= (\S+|\(.*?\)) (?:{moves})(?:-start)?\(", compiled.as_text() or "")
    assert results, "the program is not sharded"
    shapes = re.findall(r"\[([\d,]*)\]", " ".join(results))
    return max(math.prod(int(size) for size in shape.split(",") if size) for shape in shapes)


# 64 layers take a minute or two to compile, so each chip has one whole model; two layers show the same of the rest.
@pytest.mark.parametrize(
    ("name", "num_layers", "attention", "tpus"),
    [
        pytest.param("Qwen3-32B", 64, BlockTopK(page_len=16, num_pages=64), V5P, marks=pytest.mark.whole_model),
        ("Qwen3-32B", 2, Dense(), V5P),
        pytest.param("Qwen3-32B", 64, Dense(), V6E, marks=pytest.mark.whole_model),
        ("Qwen3-32B", 2, BlockTopK(page_len=16, num_pages=64), V6E),
        ("Qwen3-30B-A3B", 2, BlockTopK(page_len=16, num_pages=64), V6E_BOTH_AXES),
    ],
    ids=str,
)
def test_decode_step_fits_and_renews_its_cache_in_place(
    name: str,
    num_layers: int,
    attention: AttentionSpec,
    tpus: Slice,
    record_property: Callable[[str, object], None],
):
    spec = replace(MODELS[name], num_layers=num_layers)
    compiled, cache = compile_step(spec, attention, tpus)
    memory = compiled.memory_analysis()
    assert memory is not None
    capacity, peak = HARDWARE[tpus.chip].hbm_bytes, memory.peak_memory_in_bytes
    weight_bytes = 2 * spec.num_params / tpus.num_model
    cache_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache)) / tpus.num_model
    record_property(
        "memory",
        f"{name}, {num_layers} layers, {attention}, {tpus}: weights {weight_bytes / GIB:.2f} + "
        f"cache {cache_bytes / GIB:.2f} + temporary {memory.temp_size_in_bytes / GIB:.2f}, "
        f"peak {peak / GIB:.2f} of {capacity / GIB:.0f} GiB",
    )
    assert memory.argument_size_in_bytes == pytest.approx(weight_bytes + cache_bytes, rel=0.01)
    assert memory.alias_size_in_bytes == pytest.approx(cache_bytes, rel=0.01)
    assert memory.temp_size_in_bytes < 0.5 * GIB  # one layer's pages and activations: no copy of the cache
    assert memory.argument_size_in_bytes <= peak < capacity
    # Activations and new pages move, of 8 tokens; weights and caches never do.
    assert largest_moved(compiled) < 10**6
