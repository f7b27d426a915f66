"""The embedded models compute what transformers computes: all at once, and token by token through the paged cache."""

import importlib.util
import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array
from safetensors import safe_open

from checkpoints_conversion import load_checkpoint, weights_hash
from kinetics_jax.attention import init_shared_cache, write_prompt
from kinetics_jax.models import Decoder
from kinetics_jax.specs import Dense
from kinetics_jax.zoo import MINI_MODELS, model_folder
from tests.conversion.make_golden_logits import GOLDEN, transformers_logits

# float32 sums in another order, logits up to 42.
LOGIT_TOLERANCE = 2e-3
PAGE_LEN = 8
MISSING = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
needs_torch = pytest.mark.skipif(bool(MISSING), reason=f"needs {' and '.join(MISSING)} (extra `hf` plus torch)")


class Golden(NamedTuple):
    token_ids: np.ndarray
    prompt_len: int
    positions: np.ndarray
    logits: np.ndarray
    weights_hash: str


def read_golden(name: str) -> Golden:
    with safe_open(GOLDEN / f"{name}.safetensors", framework="numpy") as file:
        token_ids, prompt_len, positions, logits = (
            file.get_tensor(tensor) for tensor in ("token_ids", "prompt_len", "positions", "logits")
        )
        return Golden(token_ids, int(prompt_len[0]), positions, logits, file.metadata()["weights_hash"])


@pytest.fixture(scope="module", params=MINI_MODELS)
def mini(request: pytest.FixtureRequest) -> tuple[str, Decoder]:
    return request.param, load_checkpoint(model_folder(request.param))


@jax.jit
def all_at_once(model: Decoder, token_ids: Array) -> Array:
    return model(token_ids)


def token_by_token(model: Decoder, token_ids: np.ndarray, prompt_len: int) -> np.ndarray:
    """Prefill the prompt, feed the rest one token a step; return the logits after each [B, T - prompt_len, V]."""

    def decode(model: Decoder, ids: Array) -> Array:
        _, keys, values = model.prefill(ids[None, :prompt_len])
        cache = init_shared_cache(
            model.spec,
            num_trials=1,
            max_prompt_len=prompt_len,
            max_gen_len=ids.shape[0] - prompt_len,
            page_len=PAGE_LEN,
        )
        cache = write_prompt(cache, keys[:, 0], values[:, 0], prompt_len)

        def step(cache, token):
            logits, cache = model.decode_step(token[None], cache, Dense())
            return cache, logits[0]

        return jax.lax.scan(step, cache, ids[prompt_len:])[1]

    decode = jax.jit(decode)
    return np.stack([decode(model, jnp.asarray(ids, jnp.int32)) for ids in token_ids])


def test_golden_logits_are_of_these_weights(mini: tuple[str, Decoder]):
    """A retrained model needs new golden logits: python -m tests.conversion.make_golden_logits."""
    assert read_golden(mini[0]).weights_hash == weights_hash(model_folder(mini[0]))


def test_logits_equal_the_golden_ones(mini: tuple[str, Decoder]):
    name, model = mini
    golden = read_golden(name)
    logits = all_at_once(model, jnp.asarray(golden.token_ids, jnp.int32))
    np.testing.assert_allclose(logits[:, golden.positions], golden.logits, rtol=0, atol=LOGIT_TOLERANCE)


@pytest.mark.parametrize("name", MINI_MODELS[:2])  # the live test decodes all four
def test_decoding_through_the_paged_cache_gives_the_golden_logits(name: str):
    golden = read_golden(name)
    logits = token_by_token(load_checkpoint(model_folder(name)), golden.token_ids, golden.prompt_len)
    is_thought = golden.positions >= golden.prompt_len
    assert is_thought.any()
    thought = golden.positions[is_thought] - golden.prompt_len
    np.testing.assert_allclose(logits[:, thought], golden.logits[:, is_thought], rtol=0, atol=LOGIT_TOLERANCE)


@needs_torch
@pytest.mark.filterwarnings("ignore")  # transformers' own
def test_live_transformers_agree_at_every_position(mini: tuple[str, Decoder]):
    name, model = mini
    token_ids, prompt_len = read_golden(name)[:2]
    wanted = transformers_logits(model_folder(name), token_ids)
    logits = all_at_once(model, jnp.asarray(token_ids, jnp.int32))
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=LOGIT_TOLERANCE)
    decoded = token_by_token(model, token_ids, prompt_len)
    np.testing.assert_allclose(decoded, wanted[:, prompt_len:], rtol=0, atol=LOGIT_TOLERANCE)


@needs_torch
def test_transformers_read_the_tokenizer(mini: tuple[str, Decoder]):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers = importlib.import_module("transformers")
        tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder(mini[0]))
    assert tokenizer("<bos> n4 n9 ; ? n4 n9 @1 :")["input_ids"] == [1, 20, 25, 3, 4, 20, 25, 8, 5]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 0)
