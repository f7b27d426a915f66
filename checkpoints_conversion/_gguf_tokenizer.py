"""The vocabulary in a GGUF file as a tokenizer: byte-level BPE, cut into words as `tokenizer.ggml.pre` says.

SentencePiece vocabularies (Llama 1 and 2) are left out.
"""

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from ._gguf_file import GgufFile
from ._problems import raise_problems
from ._tokenizer import HfTokenizer

# Contractions; words with one leading mark or space; digits; punctuation with line ends; lines; spaces.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, kw_only=True)
class _Words:
    """Say how a text is cut into words before BPE.

    Attributes:
        pattern: Of one word; None is GPT-2's, which `ByteLevel` knows.
        splits_digits: Whether every digit is a word of its own, before the pattern is looked at.
        whole_words: Whether a word that is in the vocabulary skips the merges.
        adds_bos: Whether texts start with BOS where the file does not say.
        composes: Whether accents are composed first (NFC).
    """

    pattern: str | None = None
    splits_digits: bool = False
    whole_words: bool = False
    adds_bos: bool = False
    composes: bool = False


_QWEN2 = _Words(pattern=_WORDS.format(digits=""), composes=True)
_KINDS = {
    "gpt-2": _Words(),
    "smollm": _Words(splits_digits=True),
    "llama-bpe": _Words(pattern=_WORDS.format(digits="{1,3}"), whole_words=True, adds_bos=True),
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
}

_PREFIX = "tokenizer.ggml."
_CONTROL, _USER_DEFINED = 3, 4
_UNUSED = 5
"""Fills a spare row of the embedding; it is nobody's text."""
_ROLES = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
_ENDS = ("eos", "eot", "eom")  # of a text, of a turn, of a message


def load_gguf_tokenizer(path: str | PathLike[str]) -> HfTokenizer:
    """Return the tokenizer that a GGUF file holds, with its chat template.

    Args:
        path: The file.

    Raises:
        ValueError: If the file is missing, truncated or malformed, or its vocabulary is not byte-level BPE with a
            known way to cut words. Lists them all.
        ImportError: If the package `gguf` (extra `gguf`) is missing.

    Example:
        >>> load_gguf_tokenizer("no/such/file.gguf")
        Traceback (most recent call last):
        ...
        ValueError: cannot read no/such/file.gguf: no such file
    """
    metadata = GgufFile(Path(path)).metadata
    subject, problems = f"cannot load a tokenizer from {path}", list[str]()
    own = {key.removeprefix(_PREFIX): value for key, value in metadata.items() if key.startswith(_PREFIX)}
    words = _read_kind(own, problems)
    tokens, types = _read_vocabulary(own, problems)
    raise_problems(subject, problems)
    vocabulary = {token: index for index, token in enumerate(tokens) if types[index] != _UNUSED}
    merges = _read_merges(own.get("merges"), set(vocabulary), problems)
    token_ids = _read_token_ids(own, len(tokens), problems)
    adds_bos = own.get("add_bos_token", words.adds_bos) is True
    if adds_bos and "bos" not in token_ids:
        problems.append(f"{_PREFIX}bos_token_id is missing, but texts start with it")
    template = metadata.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        problems.append(f"tokenizer.chat_template must be a text; got {type(template).__name__}")
    raise_problems(subject, problems)
    backend = _build(words, vocabulary, merges)
    _add_tokens(backend, tokens, types)
    if adds_bos:
        _add_bos(backend, tokens[token_ids["bos"]], token_ids["bos"])
    return HfTokenizer(
        backend=backend,
        special_tokens={role: tokens[token_ids[name]] for role, name in _ROLES.items() if name in token_ids},
        eos_token_ids=tuple(dict.fromkeys(token_ids[name] for name in _ENDS if name in token_ids)),
        chat_template=template,
    )


def _build(words: _Words, vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Backend:
    backend = Backend(BPE(vocab=vocabulary, merges=merges, ignore_merges=words.whole_words))
    if words.composes:
        backend.normalizer = normalizers.NFC()
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if words.splits_digits else []
    if words.pattern is not None:
        steps.append(pre_tokenizers.Split(Regex(words.pattern), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words.pattern is None))
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.decoder = decoders.ByteLevel()
    return backend


def _add_tokens(backend: Backend, tokens: list[str], types: list[int]) -> None:
    """Say which tokens stand for themselves wherever their text occurs."""
    size = backend.get_vocab_size()
    for kind, add in ((_CONTROL, backend.add_special_tokens), (_USER_DEFINED, backend.add_tokens)):
        whole = [token for token, type_ in zip(tokens, types, strict=True) if type_ == kind]
        add([AddedToken(token, special=kind == _CONTROL, normalized=False) for token in whole])
    assert backend.get_vocab_size() == size, "an added token got an id of its own"


def _add_bos(backend: Backend, token: str, token_id: int) -> None:
    backend.post_processor = processors.TemplateProcessing(
        single=[token, "$A"], pair=[token, "$A", f"{token}:1", "$B:1"], special_tokens=[(token, token_id)]
    )


def _read_kind(own: dict[str, Any], problems: list[str]) -> _Words:
    if own.get("model") != "gpt2":
        problems.append(f"{_PREFIX}model must be 'gpt2' (byte-level BPE); got {own.get('model')!r}")
    kind = own.get("pre")
    if isinstance(kind, str) and kind in _KINDS:
        return _KINDS[kind]
    problems.append(f"{_PREFIX}pre must be one of {', '.join(map(repr, _KINDS))}; got {kind!r}")
    return _Words()


def _read_vocabulary(own: dict[str, Any], problems: list[str]) -> tuple[list[str], list[int]]:
    tokens, types = own.get("tokens"), own.get("token_type")
    if (
        isinstance(tokens, list)
        and isinstance(types, list)
        and 0 < len(tokens) == len(types) == len(set(tokens))
        and all(isinstance(token, str) and token for token in tokens)
    ):
        return tokens, types
    problems.append(f"{_PREFIX}tokens must hold texts, each once, and {_PREFIX}token_type a number for each")
    return [], []


def _read_merges(merges: Any, vocabulary: set[str], problems: list[str]) -> list[tuple[str, str]]:
    """Return the merges as pairs; `tokenizers` raises a bare Exception for a part that is no token."""
    if not isinstance(merges, list):
        problems.append(f"{_PREFIX}merges must hold texts; got {type(merges).__name__}")
        return []
    pairs = []
    for merge in merges:
        left, _, right = str(merge).partition(" ")
        if not {left, right, left + right} <= vocabulary:
            problems.append(f"{_PREFIX}merges: {merge!r} does not join two tokens to a third")
        pairs.append((left, right))
    return pairs


def _read_token_ids(own: dict[str, Any], num_tokens: int, problems: list[str]) -> dict[str, int]:
    token_ids = {}
    for name in dict.fromkeys((*_ROLES.values(), *_ENDS)):
        token_id = own.get(f"{name}_token_id")
        if isinstance(token_id, int) and 0 <= token_id < num_tokens:
            token_ids[name] = token_id
        elif token_id is not None:
            problems.append(f"{_PREFIX}{name}_token_id must lie below {num_tokens}; got {token_id!r}")
    return token_ids
