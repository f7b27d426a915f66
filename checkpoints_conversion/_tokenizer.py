"""tokenizer.json, read and written through `tokenizers`. What a token means is the task's business."""

import json
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from ._problems import raise_problems
from ._stored import read_json_object

TOKENIZER_FILE, TOKENIZER_CONFIG_FILE = "tokenizer.json", "tokenizer_config.json"


def load_tokenizer(folder: str | PathLike[str]) -> Tokenizer:
    """Return the tokenizer that a Hugging Face folder holds.

    Args:
        folder: Has tokenizer.json.

    Raises:
        ValueError: If the file is missing, truncated or describes no tokenizer.

    Example:
        >>> load_tokenizer("no/such/folder")
        Traceback (most recent call last):
        ...
        ValueError: cannot load a tokenizer from no/such/folder: tokenizer.json is missing
    """
    file = Path(folder) / TOKENIZER_FILE
    problems: list[str] = []
    content = read_json_object(file, problems)
    # `tokenizers` raises a bare Exception for these, so they are looked at first.
    model = content.get("model")
    if not problems and not (isinstance(model, dict) and isinstance(model.get("vocab"), dict | list)):
        problems.append(f"{TOKENIZER_FILE} has no model with a vocab")
    raise_problems(f"cannot load a tokenizer from {folder}", problems)
    return Tokenizer.from_file(str(file))


def word_tokenizer(words: Sequence[str], *, unknown: str) -> Tokenizer:
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
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return tokenizer


def write_tokenizer(
    tokenizer: Tokenizer,
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
    tokenizer.save(str(folder / TOKENIZER_FILE))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **tokens}
    (folder / TOKENIZER_CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
