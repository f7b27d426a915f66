"""Run by `test_sharding.py` in a process of its own with 8 simulated devices; prints what it found as JSON.

Each model runs on one device and on three meshes: all at once, and token by token with a cache. The numbers are the
largest differences of the logits, and the elements of the largest array that a decode step gathers from all devices.
"""

import json
import re
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from checkpoints_conversion import convert_checkpoint, save_checkpoint
from kinetics_jax.attention import PagedCache, cache_shardings, init_shared_cache, write_prompt
from kinetics_jax.models import Decoder, load_model, shard_decoder
from kinetics_jax.sampling import Engine, Request, Stopping, generate
from kinetics_jax.specs import BlockTopK, ModelSpec, SamplingSpec
from tests.kernels import sharded_decodes
from tests.models.tiny_models import TINY, random_decoder

TIED = replace(TINY, num_heads=8, num_kv_heads=4, num_layers=1)
MODELS = {
    "4 KV heads, tied": TIED,
    "2 KV heads, biases, odd vocabulary": replace(
        TIED, num_kv_heads=2, tied_embeddings=False, qk_norm=False, qkv_bias=True, vocab_size=33
    ),
    "experts": replace(TIED, tied_embeddings=False, mlp_dim=16, num_experts=5, num_active_experts=2),
}
ATTENTION = BlockTopK(page_len=4, num_pages=2)
MESHES = ((1, 8), (2, 4), (8, 1))
# Compilations are what takes the time: no mesh twice that treats the cache alike.
DECODE_MESHES = {
    "4 KV heads, tied": MESHES,
    "2 KV heads, biases, odd vocabulary": ((1, 8), (2, 4)),
    "experts": ((2, 4),),
}
NUM_SEQUENCES, PROMPT_LEN, NUM_STEPS, PAGE_LEN = 8, 9, 3, 4
TOKEN_IDS = np.random.default_rng(0).integers(0, 32, (NUM_SEQUENCES, PROMPT_LEN + NUM_STEPS), dtype=np.int32)
KEY = jax.random.key(0)

Place = Callable[[Any], jax.Array]

forward = jax.jit(Decoder.__call__)
fill = jax.jit(write_prompt)


def filled_cache(spec: ModelSpec) -> PagedCache:
    """One prompt for all sequences, of random keys and values: a decode step reads whatever is there."""
    cache = init_shared_cache(
        spec, num_trials=NUM_SEQUENCES, max_prompt_len=PROMPT_LEN, max_gen_len=NUM_STEPS, page_len=PAGE_LEN
    )
    shape = (spec.num_layers, PROMPT_LEN, spec.num_kv_heads, spec.head_dim)
    keys, values = np.random.default_rng(1).normal(size=(2, *shape)).astype(np.float32)
    return fill(cache, keys, values, PROMPT_LEN)


def decode(model: Decoder, cache: PagedCache, place: Place) -> tuple[np.ndarray, int]:
    """Return the logits step by step [steps, B, V], and what a step gathers at most."""
    step = jax.jit(partial(Decoder.decode_step, attention=ATTENTION))
    step = step.lower(model, place(TOKEN_IDS[:, 0]), cache).compile()
    decoded = []
    for tokens in TOKEN_IDS[:, PROMPT_LEN:].T:
        logits, cache = step(model, place(tokens), cache)
        decoded.append(np.asarray(logits))
    return np.stack(decoded), largest_gathered(step)


def largest_gathered(compiled: jax.stages.Compiled) -> int:
    shapes = re.findall(r"= \S*?\[([0-9,]*)\]\S* all-gather", compiled.as_text() or "")
    return max((int(np.prod([int(size) for size in shape.split(",") if size])) for shape in shapes), default=0)


def check_logits(name: str) -> dict[str, Any]:
    """Compare every mesh with one device."""
    model, cache = random_decoder(MODELS[name]), filled_cache(MODELS[name])
    wanted, (wanted_steps, _) = forward(model, TOKEN_IDS), decode(model, cache, jnp.asarray)
    found: dict[str, Any] = {"forward": {}, "decode": {}, "gathered": {}, "pool": cache.key_pages.size}
    for shape in MESHES:
        mesh = jax.make_mesh(shape, ("data", "model"))
        sharded = shard_decoder(model, mesh)
        place = over_data(sharded)
        found["forward"][str(shape)] = difference(forward(sharded, place(TOKEN_IDS)), wanted)
        if shape in DECODE_MESHES[name]:
            on_mesh = jax.device_put(cache, cache_shardings(cache, mesh))
            steps, found["gathered"][str(shape)] = decode(sharded, on_mesh, place)
            found["decode"][str(shape)] = difference(steps, wanted_steps)
    return found


def check_generation() -> dict[str, Any]:
    """Draw greedily for a batch of problems, its problems over "data" and KV heads over "model"."""
    greedy = SamplingSpec(temperature=0.0)
    attention = replace(ATTENTION, dense_layers=1)
    sample = partial(generate, num_trials=2, max_gen_len=4, stop_ids=(31,), attention=attention, sampling=greedy)
    run = jax.jit(jax.vmap(sample, in_axes=(None, 0, 0)))
    model, prompts, keys = random_decoder(replace(TIED, num_layers=2)), TOKEN_IDS[:4], jax.random.split(KEY, 4)
    sharded = shard_decoder(model, jax.make_mesh((2, 4), ("data", "model")))
    place = over_data(sharded)
    compiled = run.lower(sharded, place(prompts), place(keys)).compile()
    got, wanted = compiled(sharded, place(prompts), place(keys)), run(model, prompts, keys)
    same = all(np.array_equal(left, right) for left, right in zip(got, wanted, strict=True))
    return {"same": same, "gathered": largest_gathered(compiled)}


def check_engine() -> dict[str, Any]:
    """Run the engine with slots and pages over "data", KV heads over "model": the same trials, as many programs."""
    model = random_decoder(TIED)
    said, num_compilations = [], []
    for place in (model, shard_decoder(model, jax.make_mesh((2, 4), ("data", "model")))):
        engine = Engine(
            place,
            attentions=(ATTENTION,),
            stopping=Stopping(stop_ids=(31,)),
            num_slots=4,
            max_len=24,
            num_pages=24,  # a dozen for each place: too few for four long trials
            num_steps=2,
            chunk_len=12,
        )
        requests = [
            Request(prompt_ids=tuple(prompt), key=KEY, trial=trial, max_gen_len=12, attention=ATTENTION, tag=at)
            for at, prompt in enumerate(TOKEN_IDS[:4].tolist())
            for trial in range(3)
        ]
        said.append({(each.request.tag, each.request.trial): each.token_ids for each in engine.run(requests)})
        num_compilations.append(engine.stats.num_compilations)
    return {"same": said[0] == said[1], "num_trials": len(said[0]), "num_compilations": num_compilations}


def check_load(folder: Path) -> dict[str, Any]:
    """Load a converted model onto a mesh: the same leaves in the same places as when it is sharded in memory."""
    model = random_decoder(TIED)
    save_checkpoint(model, folder / "hf", dtype="float32")
    mesh = jax.make_mesh((2, 4), ("data", "model"))
    loaded = load_model(convert_checkpoint(folder / "hf", folder / "converted"), mesh=mesh)
    sharded = shard_decoder(model, mesh)
    got, wanted = nnx.state(loaded), nnx.state(sharded)
    same = jax.tree.map(
        lambda left, right: left.sharding == right.sharding and bool((left == right).all()), got, wanted
    )
    return {"same": all(jax.tree.leaves(same)), "mesh": loaded.mesh == sharded.mesh}


def over_data(model: Decoder) -> Place:
    assert model.mesh is not None
    return partial(jax.device_put, device=NamedSharding(model.mesh, PartitionSpec("data")))


def difference(left: Any, right: Any) -> float:
    return float(np.abs(np.asarray(left) - np.asarray(right)).max())


if __name__ == "__main__":
    found: dict[str, Any] = {name: check_logits(name) for name in MODELS}
    found["generation"] = check_generation()
    found["engine"] = check_engine()
    with tempfile.TemporaryDirectory() as folder:
        found["load"] = check_load(Path(folder))
    found["heads"], found["sequence"] = sharded_decodes.check_heads(), sharded_decodes.check_sequence()
    print(json.dumps(found))
