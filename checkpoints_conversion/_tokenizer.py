"""Texts and token ids: tokenizer.json through `tokenizers`, the chat format beside it, BOS never twice.

What a token means is the task's business.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Protocol, final, runtime_checkable

import tokenizers
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from ._chat import Message, render_chat
from ._problems import raise_problems
from ._stored import read_json_object

TOKENIZER_FILE, TOKENIZER_CONFIG_FILE, CHAT_FILE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
GENERATION_FILE = "generation_config.json"
_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")
# Who says which tokens end a text, first come: chat models have several, and the tokenizer's own file names one.
_EOS_FILES = (GENERATION_FILE, "config.json", "hf_config.json")


@runtime_checkable
class Tokenizer(Protocol):
    """Turn texts and chats into token ids, and token ids into texts."""

    @property
    def bos_token_id(self) -> int | None:
        """The token that starts every text, if the model has one."""
        ...

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The tokens that end a text."""
        ...

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, with BOS in front once if the model was trained so."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids, without special tokens."""
        ...

    def apply_chat_template(
        self, messages: Sequence[Message], *, enable_thinking: bool = True, add_generation_prompt: bool = True
    ) -> list[int]:
        """Return the token ids of a chat in the format that the model was tuned on."""
        ...


@final
@dataclass(frozen=True, kw_only=True)
class HfTokenizer:
    """Hold a tokenizer of the package `tokenizers` with what the files beside it say.

    Attributes:
        backend: Splits, merges and looks up.
        special_tokens: Texts of the special tokens by their role: "bos_token", "eos_token", "pad_token", "unk_token".
        eos_token_ids: The tokens that end a text.
        adds_bos: Whether texts start with BOS even where `backend` does not say so.
        chat_template: The Jinja template of chats, if the model has one.

    Raises:
        ValueError: If a special token is none of the vocabulary.

    Example:
        >>> tokenizer = HfTokenizer(backend=word_tokenizer(["<pad>", "yes", "no"], unknown="<pad>"))
        >>> tokenizer.encode("no yes"), tokenizer.decode([2, 1])
        ([2, 1], 'no yes')
    """

    backend: tokenizers.Tokenizer
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    eos_token_ids: tuple[int, ...] = ()
    adds_bos: bool = False
    chat_template: str | None = None

    def __post_init__(self) -> None:
        size = self.vocab_size
        problems = [
            f"{role} {token!r} is not in the vocabulary of {size} tokens"
            for role, token in self.special_tokens.items()
            if self.backend.token_to_id(token) is None
        ]
        problems += [
            f"eos_token_id {token_id} is not in the vocabulary of {size} tokens"
            for token_id in self.eos_token_ids
            if self.backend.id_to_token(token_id) is None
        ]
        raise_problems("cannot use the tokenizer", problems)

    @property
    def vocab_size(self) -> int:
        """Tokens, special ones included; a model's embedding may have more rows."""
        return self.backend.get_vocab_size()

    @property
    def bos_token_id(self) -> int | None:
        """The token that starts every text, if the model has one."""
        return self.token_id("bos_token")

    def token_id(self, role: str) -> int | None:
        """Return the id of the special token of this role ("pad_token"), if there is one."""
        token = self.special_tokens.get(role)
        return None if token is None else self.backend.token_to_id(token)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, with BOS in front once if the model was trained so.

        A text that brings its own BOS, a rendered chat say, gets no second one.
        """
        token_ids, bos = self.backend.encode(text).ids, self.bos_token_id
        if bos is None:
            return token_ids
        if self.adds_bos and token_ids[:1] != [bos]:
            return [bos, *token_ids]
        brings_bos = text.startswith(self.special_tokens["bos_token"])
        return token_ids[1:] if brings_bos and token_ids[:2] == [bos, bos] else token_ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of token ids."""
        return self.backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens)

    def chat_text(
        self, messages: Sequence[Message], *, enable_thinking: bool = True, add_generation_prompt: bool = True
    ) -> str:
        """Return the text of a chat, to look at: `apply_chat_template` gives its token ids.

        Raises:
            ValueError: If the model has no chat template, or it refuses the messages.
            ImportError: If Jinja (extra `hf`) is missing.
        """
        if self.chat_template is None:
            raise ValueError("this tokenizer has no chat template: encode a text, or use an instruction-tuned model")
        return render_chat(
            self.chat_template,
            messages,
            special_tokens=self.special_tokens,
            enable_thinking=enable_thinking,
            add_generation_prompt=add_generation_prompt,
        )

    def apply_chat_template(
        self, messages: Sequence[Message], *, enable_thinking: bool = True, add_generation_prompt: bool = True
    ) -> list[int]:
        """Return the token ids of a chat in the format that the model was tuned on.

        The template writes every special token itself, BOS included; none is added.

        Args:
            messages: The turns, oldest first: mappings with "role" and "content".
            enable_thinking: Whether the model is to think before it answers (Qwen3); others ignore it.
            add_generation_prompt: Whether the chat ends where the model's next turn starts.

        Raises:
            ValueError: If the model has no chat template, or it refuses the messages.
            ImportError: If Jinja (extra `hf`) is missing.
        """
        text = self.chat_text(messages, enable_thinking=enable_thinking, add_generation_prompt=add_generation_prompt)
        return self.backend.encode(text, add_special_tokens=False).ids


def load_tokenizer(folder: str | PathLike[str]) -> HfTokenizer:
    """Return the tokenizer that a Hugging Face folder holds.

    Args:
        folder: Has tokenizer.json. If they are there, tokenizer_config.json names special tokens,
            generation_config.json or config.json the tokens that end a text, and chat_template.jinja the chat format.

    Raises:
        ValueError: If a file is malformed, tokenizer.json is missing, or a special token is none of the vocabulary.

    Example:
        >>> load_tokenizer("no/such/folder")
        Traceback (most recent call last):
        ...
        ValueError: cannot load a tokenizer from no/such/folder: tokenizer.json is missing
    """
    folder = Path(folder)
    file = folder / TOKENIZER_FILE
    problems: list[str] = []
    content = read_json_object(file, problems)
    model = content.get("model")
    if not problems and not (isinstance(model, dict) and isinstance(model.get("vocab"), dict | list)):
        problems.append(f"{TOKENIZER_FILE} has no model with a vocab")
    config = _read_optional(folder / TOKENIZER_CONFIG_FILE, problems)
    special_tokens = _read_special_tokens(config, problems)
    eos_token_ids = _read_eos(folder, problems)
    chat_template = _read_chat_template(folder, config, problems)
    raise_problems(f"cannot load a tokenizer from {folder}", problems)
    backend = _read_backend(file, f"cannot load a tokenizer from {folder}")
    backend.no_truncation()  # some published files would cut or pad every text
    backend.no_padding()
    if not eos_token_ids and "eos_token" in special_tokens:
        eos_token_id = backend.token_to_id(special_tokens["eos_token"])
        eos_token_ids = () if eos_token_id is None else (eos_token_id,)
    return HfTokenizer(
        backend=backend,
        special_tokens=special_tokens,
        eos_token_ids=eos_token_ids,
        adds_bos=config.get("add_bos_token") is True and "bos_token" in special_tokens,
        chat_template=chat_template,
    )


def save_tokenizer(tokenizer: HfTokenizer, folder: Path) -> None:
    """Write the files that `load_tokenizer` and AutoTokenizer read, into a folder that exists."""
    _write_backend(tokenizer.backend, folder, dict(tokenizer.special_tokens), adds_bos=tokenizer.adds_bos)
    token_ids: dict[str, Any] = {"eos_token_id": list(tokenizer.eos_token_ids)}
    token_ids |= {f"{role}_id": tokenizer.token_id(role) for role in ("bos_token", "pad_token")}
    stated = {name: value for name, value in token_ids.items() if value not in (None, [])}
    (folder / GENERATION_FILE).write_text(json.dumps(stated, indent=2) + "\n", encoding="utf-8")
    if tokenizer.chat_template is not None:
        (folder / CHAT_FILE).write_text(tokenizer.chat_template, encoding="utf-8")


def word_tokenizer(words: Sequence[str], *, unknown: str) -> tokenizers.Tokenizer:
    """Return a tokenizer that splits at white space and gives each word its place in `words`.

    Args:
        words: The vocabulary; the index is the token id.
        unknown: The word that stands for all others; must be one of them.

    Raises:
        ValueError: If a word occurs twice or `unknown` is none of them.

    Example:
        >>> word_tokenizer(["<pad>", "yes", "no"], unknown="<pad>").encode("no yes").ids
        [2, 1]
    """
    if len(set(words)) != len(words) or unknown not in words:
        raise ValueError(f"a vocabulary must hold each word once, and unknown={unknown!r} too; got {len(words)} words")
    model = WordLevel({word: index for index, word in enumerate(words)}, unk_token=unknown)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return tokenizer


def write_tokenizer(
    tokenizer: tokenizers.Tokenizer,
    folder: Path,
    *,
    bos_token_id: int | None,
    eos_token_id: int | None,
    pad_token_id: int | None,
) -> None:
    """Write tokenizer.json and the tokenizer_config.json that AutoTokenizer needs to read it as it is."""
    special = {"bos_token": bos_token_id, "eos_token": eos_token_id, "pad_token": pad_token_id}
    tokens = {field: tokenizer.id_to_token(token_id) for field, token_id in special.items() if token_id is not None}
    problems = [
        f"{field}_id {special[field]} is not in the vocabulary of {tokenizer.get_vocab_size()} tokens"
        for field, token in tokens.items()
        if token is None
    ]
    raise_problems("cannot save the tokenizer", problems)
    _write_backend(tokenizer, folder, tokens)


def _write_backend(
    backend: tokenizers.Tokenizer, folder: Path, special_tokens: dict[str, Any], *, adds_bos: bool = False
) -> None:
    backend.save(str(folder / TOKENIZER_FILE))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **special_tokens}
    config |= {"add_bos_token": True} if adds_bos else {}
    (folder / TOKENIZER_CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _read_backend(file: Path, subject: str) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_file(str(file))
    except BaseException as error:
        if type(error) is not Exception:  # what `tokenizers` raises is a bare one
            raise
        raise ValueError(f"{subject}: {file.name} is malformed ({error})") from error


def _read_optional(file: Path, problems: list[str]) -> dict[str, Any]:
    return read_json_object(file, problems) if file.exists() else {}


def _read_special_tokens(config: Mapping[str, Any], problems: list[str]) -> dict[str, str]:
    """Return the special tokens; transformers writes one as a text or as an object with its content."""
    tokens = {}
    for role in _SPECIAL:
        token = config.get(role)
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            tokens[role] = token
        elif config.get(role) is not None:
            problems.append(f"{TOKENIZER_CONFIG_FILE}: {role} must be a text; got {config[role]!r}")
    return tokens


def _read_eos(folder: Path, problems: list[str]) -> tuple[int, ...]:
    for name in _EOS_FILES:
        stated = _read_optional(folder / name, problems).get("eos_token_id")
        if stated is None:
            continue
        token_ids = stated if isinstance(stated, list) else [stated]
        if all(isinstance(token_id, int) and token_id >= 0 for token_id in token_ids):
            return tuple(token_ids)
        problems.append(f"{name}: eos_token_id must be one or more token ids; got {stated!r}")
    return ()


def _read_chat_template(folder: Path, config: Mapping[str, Any], problems: list[str]) -> str | None:
    if (folder / CHAT_FILE).exists():
        try:
            return (folder / CHAT_FILE).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            problems.append(f"{CHAT_FILE} cannot be read: {error}")
    template = config.get("chat_template")
    if isinstance(template, list):  # several by name, of which chats without tools use one
        named = [entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default"]
        template = named[0].get("template") if named else None
    if template is not None and not isinstance(template, str):
        problems.append(f"{TOKENIZER_CONFIG_FILE}: chat_template must be a text; got {type(template).__name__}")
        return None
    return template
