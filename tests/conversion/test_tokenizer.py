"""tokenizer.json through `tokenizers`: what is saved comes back."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from checkpoints_conversion import load_tokenizer, save_checkpoint
from kinetics_jax.models import Decoder

WORDS = ["PAD", "BOS", "EOS", "FAIL", "DONE", *map(str, range(27))]


@pytest.fixture
def tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(vocab={word: token for token, word in enumerate(WORDS)}, unk_token="PAD"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def test_tokenizer_round_trip(tiny_model: Decoder, tokenizer: Tokenizer, tmp_path: Path):
    save_checkpoint(tiny_model, tmp_path / "tiny", tokenizer=tokenizer, bos_token_id=1, eos_token_id=2)
    loaded = load_tokenizer(tmp_path / "tiny")
    assert loaded.encode("BOS 3 FAIL 26 DONE") == [1, 8, 3, 31, 4]
    assert loaded.decode([1, 8, 3, 31, 4]) == "BOS 3 FAIL 26 DONE"
    assert json.loads((tmp_path / "tiny" / "config.json").read_text())["eos_token_id"] == 2
    config = json.loads((tmp_path / "tiny" / "tokenizer_config.json").read_text())
    assert (config["bos_token"], config["eos_token"]) == ("BOS", "EOS")


def test_token_id_outside_the_vocabulary_is_refused(tiny_model: Decoder, tokenizer: Tokenizer, tmp_path: Path):
    with pytest.raises(ValueError, match="eos_token_id 99 is not in the vocabulary of 32 tokens"):
        save_checkpoint(tiny_model, tmp_path / "tiny", tokenizer=tokenizer, eos_token_id=99)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [None, "", "{", "[]", "{}", '{"model": 3}', '{"model": {"type": "BPE"}}'])
def test_broken_tokenizer_is_refused(tmp_path: Path, content: str | None):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=r"cannot load a tokenizer from .*tokenizer\.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "model", [{"vocab": {}}, {"type": "BPE", "vocab": {}, "merges": [["a", "b"]]}, {"vocab": {"a": -1}}]
)
def test_what_only_the_package_finds_is_a_value_error(tmp_path: Path, model: dict):
    """It raises a bare Exception."""
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": model}))
    with pytest.raises(ValueError, match=r"cannot load a tokenizer from .*: tokenizer\.json is malformed \("):
        load_tokenizer(tmp_path)
