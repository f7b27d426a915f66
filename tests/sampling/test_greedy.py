"""Greedy texts equal those of `transformers.generate`, token for token, through the engine and through `generate`."""

import importlib.util
import json

import jax
import jax.numpy as jnp
import pytest

from checkpoints_conversion import load_checkpoint, weights_hash
from kinetics_jax.sampling import Engine, Request, Stopping, generate
from kinetics_jax.specs import SamplingSpec
from tests.sampling.make_golden_greedy import FOLDERS, GEN_LEN, GREEDY, transformers_greedy

GOLDEN = json.loads(GREEDY.read_text())
SAMPLING = SamplingSpec(temperature=0.0)


@pytest.mark.parametrize("name", FOLDERS)
def test_the_engine_says_what_transformers_says(name: str):
    golden = GOLDEN[name]
    assert weights_hash(FOLDERS[name]) == golden["weights_hash"]
    engine = Engine(
        load_checkpoint(FOLDERS[name]),
        sampling=SAMPLING,
        stopping=Stopping(stop_ids=()),
        num_slots=2,
        max_len=40,
        page_len=8,
        num_steps=5,
        chunk_len=8,
    )
    requests = [
        Request(prompt_ids=tuple(prompt), key=jax.random.key(0), max_gen_len=GEN_LEN, tag=at)
        for at, prompt in enumerate(golden["prompts"])
    ]
    said = {each.request.tag: list(each.token_ids) for each in engine.run(requests)}
    assert [said[at] for at in range(len(requests))] == golden["said"]
    assert len({tuple(text) for text in golden["said"]}) > 1


def test_generate_says_what_transformers_says():
    golden = GOLDEN["Kinetics-Mini-0.1M"]
    model = load_checkpoint(FOLDERS["Kinetics-Mini-0.1M"])
    longest = max(map(len, golden["prompts"]))

    @jax.jit
    def draw(prompt: jax.Array, prompt_len: jax.Array) -> jax.Array:
        key, settings = jax.random.key(0), {"max_gen_len": GEN_LEN, "stop_ids": (), "sampling": SAMPLING}
        return generate(model, prompt, key, prompt_len=prompt_len, **settings).token_ids[0]

    for prompt, wanted in zip(golden["prompts"], golden["said"], strict=True):
        padded = jnp.asarray(prompt + [0] * (longest - len(prompt)))
        assert draw(padded, jnp.asarray(len(prompt))).tolist() == wanted


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("torch", "transformers")),
    reason="needs torch and transformers",
)
@pytest.mark.parametrize("name", FOLDERS)
def test_the_golden_texts_are_what_transformers_says_now(name: str):
    golden = GOLDEN[name]
    assert [transformers_greedy(FOLDERS[name], prompt) for prompt in golden["prompts"]] == golden["said"]
