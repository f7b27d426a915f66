"""Which model, task and attention does a file of the paper's release hold? Its first line, name or folder tells.

    aime24/dense/aime24_qwen3-1-7b_dense.jsonl
    aime24/topk/aime24_qwen3-8b_local0_topk128.jsonl
    aime24/blocktopk/aime24_qwen3-8b_local0_block16_blocktopk64.jsonl

The released first lines lack every attn_* key, so that the released cost model prices sparse traces as dense
(PAPER.md, errata 8). Here a file whose attention nobody tells is left out, never taken for dense.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any, Literal

from kinetics_jax.specs import MODELS, AttentionSpec, BlockTopK, Dense, Local, TopK

Convention = Literal["exact", "paper"]

_SINK_LEN = 4
_DENSE_LAYERS = 1
_SIZES = ("attn_local", "attn_topk", "attn_block_topk", "attn_block_size")
_UNSUPPORTED = ("attn_nsample", "attn_stride", "attn_random_select", "attn_random_nsample", "quest_topk_blocks")
_DEFAULT_BLOCK_LEN = 16
_IN_NAME = {
    "attn_local": r"(?:^|[_-])(?:local|l)(\d+)",
    "attn_topk": r"(?:^|(?<!block)[_-])topk(\d+)",
    "attn_block_topk": r"(?:^|[_-])(?:block_?topk|blktopk)(\d+)",
    "attn_block_size": r"(?:^|[_-])(?:block|blk)(\d+)",
}
_DENSE_NAMES = ("dense", "full")


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Hold the released options of sparse attention; all None is dense.

    Attributes:
        attn_local: Newest tokens always read.
        attn_topk: Tokens selected.
        attn_block_topk: Blocks selected.
        attn_block_size: Tokens in a block.
    """

    attn_local: int | None = None
    attn_topk: int | None = None
    attn_block_topk: int | None = None
    attn_block_size: int | None = None

    @property
    def is_dense(self) -> bool:
        """Whether no method is named; a block size alone is a default that dense runs carry, too."""
        return self.attn_local is None and self.attn_topk is None and self.attn_block_topk is None


def attention_of(path: PurePath, metadata: Mapping[str, Any], convention: Convention) -> AttentionSpec | None:
    """Return what a file was sampled with, or None if neither its first line nor its names tell.

    Args:
        path: Name of the file within the folder that is imported.
        metadata: Its first line; empty if that is a trial already.
        convention: "exact" is what the released code ran: four sinks, the tail that fills no block yet, and a dense
            first layer beside the selection. "paper" is the selection alone, which is all that the paper counts.

    Raises:
        ValueError: If they contradict each other, or name a method that has no spec here.
    """
    for name in _UNSUPPORTED:
        if metadata.get(name) is not None:
            raise ValueError(f"{name}={metadata[name]!r} is a method that has no attention spec")
    told = _sizes_in_metadata(metadata)
    named = _sizes_in_name(path)
    if told is None or (told.is_dense and named is not None):
        sizes = named
    elif named is None or (not named.is_dense and told == _complete(named, told)):
        sizes = told
    else:
        raise ValueError(f"the first line says {_show(told)}, the file name says {_show(named)}")
    return None if sizes is None else _spec(sizes, convention)


def model_of(path: PurePath, metadata: Mapping[str, Any]) -> str | None:
    """Return the model of `MODELS` that the first line, the file name or a folder names.

    Raises:
        ValueError: If the first line and the file name contradict each other.
    """
    told = _known_model(str(metadata.get("model") or metadata.get("model_name") or "").rpartition("/")[2])
    named = _known_model(path.stem)
    if told and named and told != named:
        raise ValueError(f"the first line says {told}, the file name says {named}")
    return told or named or next(filter(None, map(_known_model, reversed(path.parts[:-1]))), None)


def _known_model(text: str) -> str | None:
    """Return the model of `MODELS` that a text names, the longest match."""
    flat = _flatten(text)
    known = [name for name in MODELS if re.search(rf"(^|-){re.escape(_flatten(name))}(-|$)", flat)]
    return max(known, key=len, default=None)


def task_of(path: PurePath, metadata: Mapping[str, Any], model: str | None) -> str | None:
    """Return the task that the first line, what precedes the model in the file name, or the outermost folder names."""
    if isinstance(metadata.get("task"), str) and metadata["task"]:
        return metadata["task"].lower()
    flat = _flatten(path.stem)
    before = "" if model is None else flat.partition(_flatten(model))[0] if _flatten(model) in flat else ""
    if before.strip("-"):
        return before.strip("-")
    folders = [part for part in path.parts[:-1] if model is None or _flatten(model) not in _flatten(part)]
    return folders[0].lower() if folders else None


def _sizes_in_metadata(metadata: Mapping[str, Any]) -> Sizes | None:
    """Return the options of the first line; None if it has none of their keys, as the released ones."""
    if not any(name in metadata for name in _SIZES):
        return None
    sizes = {name: metadata.get(name) for name in _SIZES}
    for name, size in sizes.items():
        if size is not None and (type(size) is not int or size < 0):
            raise ValueError(f"{name} must be a whole number or null; got {size!r}")
    return Sizes(**sizes)


def _sizes_in_name(path: PurePath) -> Sizes | None:
    """Return the options in the file name; dense if it or its folder says so; None if nothing is said."""
    stem = path.stem.lower()
    found = {name: re.search(pattern, stem) for name, pattern in _IN_NAME.items()}
    sizes = Sizes(**{name: int(match[1]) for name, match in found.items() if match is not None})
    if not sizes.is_dense:
        return sizes
    words = {*re.split(r"[_-]", stem), *(part.lower() for part in path.parts[-2:-1])}
    return sizes if words & {*_DENSE_NAMES} else None


def _complete(named: Sizes, told: Sizes) -> Sizes:
    """Return what the name says; where it is silent, as the first line."""
    spoken = {name: size for name, size in vars(named).items() if size is not None}
    return replace(told, **spoken)


def _spec(sizes: Sizes, convention: Convention) -> AttentionSpec:
    if sizes.is_dense:
        return Dense()
    is_exact = convention == "exact"
    sink_len, dense_layers = (_SINK_LEN, _DENSE_LAYERS) if is_exact else (0, 0)
    local_len = sizes.attn_local or 0
    if sizes.attn_block_topk is not None:
        block_len = sizes.attn_block_size or _DEFAULT_BLOCK_LEN
        # The tail holds on average half a block and the window; with the sinks that is one block and the window's.
        num_tail = (1 if is_exact else 0) + -(-local_len // block_len)
        num_local = max(1, num_tail)
        return BlockTopK(
            page_len=block_len,
            num_pages=max(sizes.attn_block_topk + num_tail, num_local),
            num_local_pages=num_local,
            dense_layers=dense_layers,
        )
    if sizes.attn_topk is not None:
        budget_len = sizes.attn_topk + local_len + sink_len
        return TopK(budget_len=budget_len, sink_len=sink_len, local_len=local_len, dense_layers=dense_layers)
    return Local(window_len=local_len, sink_len=sink_len, dense_layers=dense_layers)


def _show(sizes: Sizes) -> str:
    return ", ".join(f"{name}={size}" for name, size in vars(sizes).items() if size is not None) or "dense"


def _flatten(text: str) -> str:
    """Return the text as released file names spell it: Qwen3-1.7B is qwen3-1-7b."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower())
