"""The vocabulary in a GGUF file cuts texts as the published tokenizers of its family do."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from checkpoints_conversion import HfTokenizer, load_gguf_tokenizer, load_tokenizer
from checkpoints_conversion._tokenizer import save_tokenizer
from tests.conversion.gguf_files import write_gguf

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
BOS, EOS, TURN = "<|begin▁of▁text|>", "<|end|>", "<|turn|>"
THINK = "<think>"
CORPUS = [
    "the cat and the dog don't care that the cat's dog's there",
    "in 2024 1000 cats met 123 dogs in 12 rooms",
    "é è café cafés 漢字 漢字\n\n  indented\n\tlines  and spaces   \r\n",
    "THE CAT AND THE DOG DON'T CARE",
]
TEXTS = [
    "the cat's 12345 dogs don't care",
    "  two  spaces\n\n\nlines \t\r\n end ",
    "THEY'LL SAY: caf\u00e9, cafe\u0301! \u6f22\u5b57 \U0001f642",
    f"{BOS}the{TURN}cat{EOS}{THINK} dog",
    "",
]
KINDS = ["gpt-2", "smollm", "llama-bpe", "qwen2"]

# The patterns of the published tokenizers: Llama 3 keeps up to three digits together, Qwen none.
_BEFORE, _AFTER = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
LLAMA3, QWEN2 = _BEFORE + r"\p{N}{1,3}" + _AFTER, _BEFORE + r"\p{N}" + _AFTER


def published(kind: str) -> Backend:
    """Return a small tokenizer trained on `CORPUS`, built as the family's tokenizer.json is."""
    backend = Backend(BPE(ignore_merges=kind == "llama-bpe"))
    if kind == "gpt-2":
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    elif kind == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    else:
        split = pre_tokenizers.Split(Regex(LLAMA3 if kind == "llama-bpe" else QWEN2), behavior="isolated")
        letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([split, letters])
    if kind == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=340,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[BOS, EOS, TURN],
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_tokens([AddedToken(THINK, normalized=False)])
    if kind == "llama-bpe":
        backend.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return backend


def metadata_of(backend: Backend, kind: str, **changes: Any) -> dict[str, Any]:
    """Return the metadata of a tokenizer; `changes` are under tokenizer.ggml, None removes one."""
    content = json.loads(backend.to_str())
    tokens = [backend.id_to_token(index) for index in range(backend.get_vocab_size())]
    kinds = {token["content"]: CONTROL if token["special"] else USER_DEFINED for token in content["added_tokens"]}
    own = {
        "model": "gpt2",
        "pre": kind,
        "tokens": [*tokens, "[PAD0]", "[PAD1]"],
        "token_type": [*(kinds.get(token, NORMAL) for token in tokens), UNUSED, UNUSED],
        "merges": [merge if isinstance(merge, str) else " ".join(merge) for merge in content["model"]["merges"]],
        "bos_token_id": 0,
        "eos_token_id": 1,
        "eot_token_id": 2,
    } | changes
    return {f"tokenizer.ggml.{key}": value for key, value in own.items() if value is not None}


def load(folder: Path, metadata: dict[str, Any]) -> HfTokenizer:
    return load_gguf_tokenizer(write_gguf(folder / "tiny.gguf", "llama", metadata, {}))


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[HfTokenizer, Backend]:
    """Return what we read, and what was published."""
    theirs = published(request.param)
    return load(tmp_path_factory.mktemp(request.param), metadata_of(theirs, request.param)), theirs


@pytest.mark.parametrize("text", TEXTS)
def test_texts_are_cut_as_published(pair: tuple[HfTokenizer, Backend], text: str):
    ours, theirs = pair
    assert ours.backend.encode(text, add_special_tokens=False).ids == theirs.encode(text, add_special_tokens=False).ids
    wanted = theirs.encode(text).ids
    assert ours.encode(text) == (wanted[1:] if wanted[:2] == [0, 0] else wanted)
    assert ours.decode(wanted) == theirs.decode(wanted)


@given(text=st.text(st.sampled_from("aAtT'sS 019\n\r\té\u0301漢-_.<|>🙂")))
def test_any_text_is_cut_as_published(pair: tuple[HfTokenizer, Backend], text: str):
    ours, theirs = pair
    assert ours.backend.encode(text).ids == theirs.encode(text).ids


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        ("gpt-2", "a 1234 b's", ["a", " 1234", " b", "'s"]),
        ("gpt-2", "A'S", ["A", "'", "S"]),
        ("smollm", "a 1234", ["a", " ", "1", "2", "3", "4"]),
        ("llama-bpe", "a 1234\n\n x!\n", ["a", " ", "123", "4", "\n\n", " x", "!\n"]),
        ("llama-bpe", "A'S (b)", ["A", "'S", " (", "b", ")"]),
        ("qwen2", "a 1234", ["a", " ", "1", "2", "3", "4"]),
        ("deepseek-r1-qwen", "cafe\u0301 12", ["caf\u00e9", " ", "1", "2"]),
    ],
)
def test_words_by_hand(tmp_path: Path, kind: str, text: str, words: list[str]):
    backend = load(tmp_path, metadata_of(published("gpt-2"), kind)).backend
    assert backend.pre_tokenizer is not None
    normal = backend.normalizer.normalize_str(text) if backend.normalizer else text
    cut = [normal[start:end] for _, (start, end) in backend.pre_tokenizer.pre_tokenize_str(normal)]
    assert cut == words


def test_special_tokens(tmp_path: Path):
    backend = published("smollm")
    metadata = metadata_of(backend, "smollm", padding_token_id=2, unknown_token_id=0)
    metadata["tokenizer.chat_template"] = "{{ messages[0].content }}{{ eos_token }}"
    ours = load(tmp_path, metadata)
    assert ours.special_tokens == {"bos_token": BOS, "eos_token": EOS, "pad_token": TURN, "unk_token": BOS}
    assert (ours.bos_token_id, ours.eos_token_ids) == (0, (1, 2))
    assert ours.vocab_size == backend.get_vocab_size(), "the padding of the embedding is no token"
    think = backend.token_to_id(THINK)
    assert think is not None
    assert ours.encode(f"a{THINK}b")[1] == think
    assert ours.decode([0, think, 1]) == THINK, "a user-defined token is text, a control token is not"
    assert ours.apply_chat_template([{"role": "user", "content": THINK}]) == [think, 1]


@pytest.mark.parametrize(
    ("kind", "stated", "adds_bos"),
    [("llama-bpe", None, True), ("llama-bpe", False, False), ("qwen2", None, False), ("deepseek-r1-qwen", True, True)],
)
def test_who_adds_bos(tmp_path: Path, kind: str, stated: bool | None, adds_bos: bool):
    ours = load(tmp_path, metadata_of(published("gpt-2"), kind, add_bos_token=stated))
    assert ours.encode("the cat").count(0) == adds_bos
    assert ours.encode(f"{BOS}the cat").count(0) == 1, "never two"


def test_a_gguf_tokenizer_is_saved_as_a_hugging_face_one(pair: tuple[HfTokenizer, Backend], tmp_path: Path):
    ours, _ = pair
    save_tokenizer(ours, tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert (loaded.special_tokens, loaded.eos_token_ids) == (ours.special_tokens, ours.eos_token_ids)
    assert [loaded.encode(text) for text in TEXTS] == [ours.encode(text) for text in TEXTS]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"model": "llama"}, "tokenizer.ggml.model must be 'gpt2' (byte-level BPE); got 'llama'"),
        ({"model": None}, "tokenizer.ggml.model must be 'gpt2' (byte-level BPE); got None"),
        ({"pre": "tekken"}, "tokenizer.ggml.pre must be one of 'gpt-2', 'smollm', 'llama-bpe', 'qwen2', "),
        ({"pre": ["qwen2"]}, "tokenizer.ggml.pre must be one of"),
        ({"tokens": ["a", "a"], "token_type": [1, 1]}, "must hold texts, each once"),
        ({"token_type": [1]}, "tokenizer.ggml.token_type a number for each"),
        ({"tokens": None}, "tokenizer.ggml.tokens must hold texts"),
        ({"merges": ["t h", "nowhere else"]}, "'nowhere else' does not join two tokens to a third"),
        ({"merges": ["th"]}, "'th' does not join two tokens to a third"),
        ({"merges": None}, "tokenizer.ggml.merges must hold texts; got NoneType"),
        ({"eos_token_id": 10**6}, "tokenizer.ggml.eos_token_id must lie below"),
        ({"add_bos_token": True, "bos_token_id": None}, "tokenizer.ggml.bos_token_id is missing"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, changes: dict[str, Any], problem: str):
    with pytest.raises(ValueError, match="cannot load a tokenizer from") as caught:
        load(tmp_path, metadata_of(published("gpt-2"), "gpt-2", **changes))
    assert problem in str(caught.value)


def test_all_problems_come_in_one_error(tmp_path: Path):
    with pytest.raises(ValueError, match=r"tiny\.gguf: 3 problems"):
        load(tmp_path, metadata_of(published("gpt-2"), "tekken", model="llama", tokens=None))
