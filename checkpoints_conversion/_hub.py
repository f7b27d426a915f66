"""Models by their name on the Hugging Face hub: only weights as safetensors, config and tokenizer are downloaded."""

import re
from pathlib import Path

FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template*",
    "vocab.json",
    "merges.txt",
)
_IGNORED = ("*/*", "consolidated*")  # other layouts of the same weights
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def is_hub_name(source: str) -> bool:
    """Say whether a text has the form of a hub name.

    Example:
        >>> is_hub_name("Qwen/Qwen3-0.6B"), is_hub_name("./Qwen3-0.6B"), is_hub_name("models/Qwen/Qwen3-0.6B")
        (True, False, False)
    """
    return _NAME.fullmatch(source) is not None


def download(name: str, revision: str | None) -> tuple[Path, str]:
    """Return the local folder of a model of the hub, downloaded if need be, and the commit it is.

    Args:
        name: Such as "Qwen/Qwen3-0.6B".
        revision: A branch, tag or commit; None is the newest.

    Raises:
        ImportError: If huggingface_hub (extra `hf`) is missing.
        OSError: If the hub refuses or cannot be reached.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ImportError(
            f"{name} is no local folder, and huggingface_hub, which could download it, is missing. "
            "Install it: pip install 'kinetics-jax[hf]'"
        ) from error
    try:
        folder = snapshot_download(name, revision=revision, allow_patterns=list(FILES), ignore_patterns=list(_IGNORED))
    except (OSError, ValueError) as error:
        at = f" at {revision}" if revision else ""
        raise OSError(f"{name} is no local folder, and the hub did not give it{at}: {error}") from error
    commit = Path(folder).name  # of a snapshot in the cache
    return Path(folder), commit if _COMMIT.fullmatch(commit) else revision or "main"
