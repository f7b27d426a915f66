"""dense_layers through a decoder: the first layers read everything, the others what the spec says."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kinetics_jax.attention import PagedCache, Rotation, decode_attention, init_shared_cache, write_prompt
from kinetics_jax.models import Decoder, abstract_decoder
from kinetics_jax.sampling import Generation, generate
from kinetics_jax.specs import MODELS, AttentionSpec, BlockTopK, Dense, Quest, TopK
from kinetics_jax.zoo import load_zoo_model
from tests.attention.appending import append

PROMPT_LEN, NUM_TRIALS = 14, 2
NAME = "Kinetics-Mini-0.1M"
NUM_LAYERS = MODELS[NAME].num_layers


@pytest.fixture(scope="module")
def model() -> Decoder:
    return load_zoo_model(NAME).model


@pytest.fixture(scope="module")
def cache(model: Decoder) -> PagedCache:
    """Two trials of one prompt of random words."""
    prompt = jnp.asarray(np.random.default_rng(1).integers(16, 64, (1, PROMPT_LEN)))
    empty = init_shared_cache(
        model.spec, num_trials=NUM_TRIALS, max_prompt_len=PROMPT_LEN, max_gen_len=4, page_len=2, dtype=model.dtype
    )
    _, keys, values = jax.jit(Decoder.prefill)(model, prompt)
    return jax.jit(write_prompt)(empty, keys[:, 0], values[:, 0], PROMPT_LEN)


TOKENS = jnp.array([20, 33])
step = jax.jit(Decoder.decode_step, static_argnums=3)


@partial(jax.jit, static_argnums=2)
def step_by_hand(model: Decoder, cache: PagedCache, specs: tuple[AttentionSpec, ...]) -> jax.Array:
    """Run layer i under specs[i] and return the logits."""
    hidden = model.embed.embedding[...][TOKENS[:, None]]
    for index, (layer, spec) in enumerate(zip(model.layers, specs, strict=True)):

        def attend(q: jax.Array, k: jax.Array, v: jax.Array, rotation: Rotation, index=index, spec=spec) -> jax.Array:
            nonlocal cache
            q, k = rotation.turned(q, k)
            cache = append(cache, index, k[:, 0], v[:, 0])
            return decode_attention(spec, q[:, 0], cache, index)[:, None]

        hidden = layer(hidden, cache.lengths[:, None], attend)
    return model.next_logits(model.final_norm(hidden[:, 0]))


def test_the_first_layers_run_dense(model: Decoder, cache: PagedCache):
    spec = Quest(page_len=2, num_pages=2)
    none, one, every = (
        step(model, TOKENS, cache, dataclasses.replace(spec, dense_layers=num_dense))[0]
        for num_dense in (0, 1, NUM_LAYERS)
    )
    np.testing.assert_allclose(one, step_by_hand(model, cache, (Dense(), *[spec] * (NUM_LAYERS - 1))), atol=1e-4)
    np.testing.assert_array_equal(every, step(model, TOKENS, cache, Dense())[0])
    assert np.abs(one - none).max() > 0.01
    assert np.abs(one - every).max() > 0.01


def test_more_dense_layers_than_layers_are_refused(model: Decoder, cache: PagedCache):
    spec = TopK(budget_len=4, dense_layers=NUM_LAYERS + 1)
    with pytest.raises(
        ValueError, match=rf"{NUM_LAYERS} layers of the model; got topk:4,dense_layers={NUM_LAYERS + 1}"
    ):
        jax.eval_shape(lambda: model.decode_step(TOKENS, cache, spec))


def sample(model: Decoder, attention: AttentionSpec) -> Generation:
    prompt = jnp.asarray(np.random.default_rng(1).integers(16, 64, PROMPT_LEN))
    draw = partial(generate, num_trials=NUM_TRIALS, max_gen_len=8, stop_ids=(), page_len=2, attention=attention)
    return jax.device_get(jax.jit(draw)(model, prompt, jax.random.key(0)))


def test_generate_honours_dense_layers(model: Decoder):
    dense = sample(model, Dense()).token_ids
    small = Quest(page_len=2, num_pages=1)
    every_layer = dataclasses.replace(small, dense_layers=NUM_LAYERS)
    np.testing.assert_array_equal(sample(model, every_layer).token_ids, dense)
    assert (sample(model, small).token_ids != dense).any()


@pytest.mark.parametrize("method", [BlockTopK, Quest])
def test_generate_takes_the_page_length_of_a_selection(method):
    draw = partial(generate, max_gen_len=4, stop_ids=(2,), attention=method(page_len=8, num_pages=2))
    shapes = jax.eval_shape(draw, abstract_decoder(MODELS[NAME]), jnp.arange(10), jax.random.key(0))
    assert shapes.token_ids.shape == (1, 4)
    with pytest.raises(ValueError, match="Build the cache with page_len=8"):
        jax.eval_shape(partial(draw, page_len=16), abstract_decoder(MODELS[NAME]), jnp.arange(10), jax.random.key(0))
