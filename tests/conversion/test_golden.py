"""We compute what transformers computes: all at once, and token by token through the paged cache.

Once for the trained embedded models, once for tiny random models of every family, in the files of transformers.
"""

import importlib.util
import warnings
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array
from safetensors import safe_open
from safetensors.numpy import load_file

from checkpoints_conversion import load_checkpoint, save_checkpoint, weights_hash
from kinetics_jax.attention import init_shared_cache, write_prompt
from kinetics_jax.models import Decoder
from kinetics_jax.specs import Dense, Llama3Rope, YarnRope
from kinetics_jax.zoo import MINI_MODELS, model_folder
from tests.conversion.make_golden_logits import FAMILIES, FAMILY_LOGITS, GOLDEN, transformers_logits

# float32 sums in another order: of trained weights, logits up to 42; of random ones, logits up to 6.
LOGIT_TOLERANCE, FAMILY_TOLERANCE = 2e-3, 1e-4
PAGE_LEN = 8
FAMILY_PROMPT_LEN = 11  # a full page and a part
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
    """Prefill the prompt, feed the rest one token a step; return the logits of every position [B, T, V]."""

    def decode(model: Decoder, ids: Array) -> Array:
        hidden, keys, values = model.prefill(ids[None, :prompt_len])
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

        decoded = jax.lax.scan(step, cache, ids[prompt_len:])[1]
        return jnp.concatenate([model.next_logits(hidden[0]), decoded])

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
    assert (golden.positions >= golden.prompt_len).any()
    logits = token_by_token(load_checkpoint(model_folder(name)), golden.token_ids, golden.prompt_len)
    np.testing.assert_allclose(logits[:, golden.positions], golden.logits, rtol=0, atol=LOGIT_TOLERANCE)


@needs_torch
@pytest.mark.filterwarnings("ignore")  # transformers' own
def test_live_transformers_agree_at_every_position(mini: tuple[str, Decoder]):
    name, model = mini
    token_ids, prompt_len = read_golden(name)[:2]
    wanted = transformers_logits(model_folder(name), token_ids)
    logits = all_at_once(model, jnp.asarray(token_ids, jnp.int32))
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=LOGIT_TOLERANCE)
    decoded = token_by_token(model, token_ids, prompt_len)
    np.testing.assert_allclose(decoded, wanted, rtol=0, atol=LOGIT_TOLERANCE)


@pytest.mark.parametrize("name", FAMILIES)
def test_prefill_and_decode_of_every_family_give_the_golden_logits(name: str):
    tensors = load_file(GOLDEN / name / FAMILY_LOGITS)
    model = load_checkpoint(GOLDEN / name)
    logits = token_by_token(model, tensors["token_ids"], FAMILY_PROMPT_LEN)
    np.testing.assert_allclose(logits, tensors["logits"], rtol=0, atol=FAMILY_TOLERANCE)


def test_the_families_cover_what_a_spec_can_ask_for():
    specs = [load_checkpoint(GOLDEN / name).spec for name in FAMILIES]
    for kind in {(spec.qk_norm, spec.qkv_bias, spec.num_experts > 0) for spec in specs}:
        of_kind = [spec for spec in specs if (spec.qk_norm, spec.qkv_bias, spec.num_experts > 0) == kind]
        assert {spec.tied_embeddings for spec in of_kind} == {True, False}
    assert {spec.group_size for spec in specs} == {1, 2, 4}
    assert {spec.num_kv_heads for spec in specs} == {1, 2, 4}
    assert {type(spec.rope_scaling) for spec in specs} == {type(None), Llama3Rope, YarnRope}
    assert {spec.norm_topk_prob for spec in specs if spec.num_experts} == {True, False}
    assert any(spec.head_dim * spec.num_heads != spec.d_model for spec in specs)


@needs_torch
@pytest.mark.filterwarnings("ignore")  # transformers' own
@pytest.mark.parametrize("name", FAMILIES)
def test_live_transformers_agree_with_every_family_and_load_what_we_save(name: str, tmp_path: Path):
    model = load_checkpoint(GOLDEN / name)
    save_checkpoint(model, tmp_path / "ours", dtype="float32")
    token_ids = np.random.default_rng(7).integers(0, model.spec.vocab_size, (2, 16))
    logits = all_at_once(model, jnp.asarray(token_ids, jnp.int32))
    for folder in (GOLDEN / name, tmp_path / "ours"):
        wanted = transformers_logits(folder, token_ids)
        np.testing.assert_allclose(logits, wanted, rtol=0, atol=FAMILY_TOLERANCE)


@needs_torch
def test_transformers_read_the_tokenizer(mini: tuple[str, Decoder]):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers = importlib.import_module("transformers")
        tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder(mini[0]))
    assert tokenizer("<bos> n4 n9 ; ? n4 n9 @1 :")["input_ids"] == [1, 20, 25, 3, 4, 20, 25, 8, 5]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 0)
