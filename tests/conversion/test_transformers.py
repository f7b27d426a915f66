"""transformers loads what we save, we load what it saves, and both give the same logits."""

import importlib.util
import warnings
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from checkpoints_conversion import load_checkpoint, save_checkpoint
from kinetics_jax.models import Decoder
from kinetics_jax.specs import MODELS, ModelSpec

MISSING = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"needs {' and '.join(MISSING)} (extra `hf` plus torch)")

# float32 sums in another order; random weights of unit-sized logits.
LOGIT_TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def hf() -> ModuleType:
    """Return transformers, imported with its own warnings let through."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("transformers")


def hf_logits(model: Any, token_ids: np.ndarray) -> np.ndarray:
    torch = importlib.import_module("torch")
    with torch.no_grad():
        return model.eval()(torch.from_numpy(token_ids)).logits.numpy()


def random_ids(spec: ModelSpec) -> np.ndarray:
    return np.random.default_rng(0).integers(0, spec.vocab_size, (2, 17))


@pytest.mark.parametrize("tied", [True, False])
def test_transformers_loads_ours(hf: ModuleType, tiny_spec: ModelSpec, random_decoder, tmp_path: Path, tied: bool):
    spec = replace(tiny_spec, tied_embeddings=tied)
    model = random_decoder(spec)
    save_checkpoint(model, tmp_path / "tiny", dtype="float32", eos_token_id=2)
    theirs, report = hf.Qwen3ForCausalLM.from_pretrained(
        tmp_path / "tiny", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(report[field] for field in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(hf.AutoModelForCausalLM.from_pretrained(tmp_path / "tiny")) is type(theirs)
    assert theirs.config.eos_token_id == 2
    token_ids = random_ids(spec)
    np.testing.assert_allclose(model(jnp.asarray(token_ids)), hf_logits(theirs, token_ids), atol=LOGIT_TOLERANCE)


@pytest.mark.parametrize("name", [name for name in MODELS if name.startswith("Kinetics-Mini")][:2])
@pytest.mark.parametrize("shard_size", ["5GB", "100KB"])
def test_we_load_what_transformers_saves(hf: ModuleType, tmp_path: Path, name: str, shard_size: str):
    """Random norms and a wide initialisation, so that a swapped norm or a missing factor shows."""
    torch = importlib.import_module("torch")
    spec = MODELS[name]
    config = hf.Qwen3Config(
        vocab_size=spec.vocab_size,
        hidden_size=spec.d_model,
        intermediate_size=spec.mlp_dim,
        num_hidden_layers=spec.num_layers,
        num_attention_heads=spec.num_heads,
        num_key_value_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        max_position_embeddings=spec.max_len,
        rope_parameters={"rope_type": "default", "rope_theta": spec.rope_theta},
        tie_word_embeddings=spec.tied_embeddings,
        initializer_range=0.1,
    )
    torch.manual_seed(0)
    theirs = hf.Qwen3ForCausalLM(config)
    with torch.no_grad():
        for weight_name, weight in theirs.named_parameters():
            if "norm" in weight_name:
                weight.uniform_(0.5, 1.5)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size=shard_size)
    ours = load_checkpoint(tmp_path / "theirs")
    assert ours.spec == spec
    token_ids = random_ids(spec)
    wanted = hf_logits(theirs, token_ids)
    np.testing.assert_allclose(ours(jnp.asarray(token_ids)), wanted, atol=LOGIT_TOLERANCE * np.abs(wanted).max())


def test_auto_tokenizer_reads_ours(hf: ModuleType, tiny_model: Decoder, tmp_path: Path):
    words = {word: token for token, word in enumerate(["PAD", "BOS", "EOS", "a", "b"])}
    tokenizer = Tokenizer(models.WordLevel(vocab=words, unk_token="PAD"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    save_checkpoint(tiny_model, tmp_path / "tiny", tokenizer=tokenizer, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    theirs = hf.AutoTokenizer.from_pretrained(tmp_path / "tiny")
    assert theirs("BOS a b EOS")["input_ids"] == [1, 3, 4, 2]
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (1, 2, 0)
