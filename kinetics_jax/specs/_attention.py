"""Attention specs: which cache entries a decode step reads. `attention` runs them, `cost` prices them.

A spec has one text form, used on the command line, in traces and in figures: `dense`, `topk:128`,
`block_topk:8x16` (pages of 8 tokens, 16 of them), `quest:8x16`, `local:128`. What differs from the default follows:
`block_topk:16x64,sinks=1,local=2,dense_layers=1`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TypeVar

DEFAULT_PAGE_LEN = 16

_SelectionT = TypeVar("_SelectionT", bound="PageSelection")


@dataclass(frozen=True, kw_only=True)
class Dense:
    """Read the whole context at every step.

    Example:
        >>> str(Dense())
        'dense'
    """

    def __str__(self) -> str:
        return "dense"


@dataclass(frozen=True, kw_only=True)
class TopK:
    """Read the `budget_len` tokens with the largest group-mean score (oracle top-k: the search is free).

    Attributes:
        budget_len: Tokens read per step, layer and KV head, sinks and newest included.
        sink_len: First tokens of the sequence that are always read.
        local_len: Newest tokens that are always read.
        dense_layers: First layers of the model that read everything.

    Raises:
        ValueError: If the budget cannot hold the sinks and the newest tokens, or a size is out of range.

    References:
        PAPER.md section 4.
    """

    budget_len: int
    sink_len: int = 0
    local_len: int = 0
    dense_layers: int = 0

    def __post_init__(self) -> None:
        _require_at_least(1, budget_len=self.budget_len)
        _require_at_least(0, sink_len=self.sink_len, local_len=self.local_len, dense_layers=self.dense_layers)
        if self.budget_len < self.sink_len + self.local_len:
            raise ValueError(
                f"budget_len must cover the sinks and the newest tokens; got budget_len={self.budget_len}, "
                f"sink_len={self.sink_len}, local_len={self.local_len}. Use {self.sink_len + self.local_len} or more."
            )

    def __str__(self) -> str:
        return _text(f"topk:{self.budget_len}", self)


@dataclass(frozen=True, kw_only=True)
class PageSelection(ABC):
    """Read the pages of the cache that score highest; page = selection block. A base: use BlockTopK or Quest.

    Attributes:
        page_len: Tokens in a page, P.
        num_pages: Pages read per step, layer and KV head, sinks and newest included.
        num_sink_pages: First pages of the sequence that are always read.
        num_local_pages: Newest pages that are always read, at least the one being filled.
        dense_layers: First layers of the model that read everything.

    Raises:
        ValueError: If the pages cannot hold the sinks and the newest ones, or a size is out of range.
    """

    page_len: int
    num_pages: int
    num_sink_pages: int = 0
    num_local_pages: int = 1
    dense_layers: int = 0

    def __post_init__(self) -> None:
        _require_at_least(1, page_len=self.page_len, num_pages=self.num_pages, num_local_pages=self.num_local_pages)
        _require_at_least(0, num_sink_pages=self.num_sink_pages, dense_layers=self.dense_layers)
        num_forced = self.num_sink_pages + self.num_local_pages
        if self.num_pages < num_forced:
            raise ValueError(
                f"num_pages must cover the sinks and the newest pages; got num_pages={self.num_pages}, "
                f"num_sink_pages={self.num_sink_pages}, num_local_pages={self.num_local_pages}. "
                f"Use num_pages >= {num_forced}."
            )

    @property
    def budget_len(self) -> int:
        """Tokens that the pages can hold, P * pages."""
        return self.page_len * self.num_pages

    @classmethod
    def from_budget(
        cls: type[_SelectionT],
        *,
        budget_len: int,
        page_len: int = DEFAULT_PAGE_LEN,
        num_sink_pages: int = 0,
        num_local_pages: int = 1,
        dense_layers: int = 0,
    ) -> _SelectionT:
        """Build the spec that reads `budget_len` tokens in pages of `page_len`.

        Raises:
            ValueError: If the budget is below one page or no whole number of pages.

        Example:
            >>> BlockTopK.from_budget(budget_len=128, page_len=8).num_pages
            16
        """
        _require_at_least(1, page_len=page_len)
        if budget_len < page_len:
            raise ValueError(
                f"budget_len must be at least one page; got budget_len={budget_len}, page_len={page_len}. "
                f"Use a budget of {page_len} or more, or a shorter page."
            )
        if budget_len % page_len:
            raise ValueError(
                f"page_len must divide budget_len; got budget_len={budget_len}, page_len={page_len}. "
                f"Use {budget_len // page_len * page_len} or {(budget_len // page_len + 1) * page_len}."
            )
        return cls(
            page_len=page_len,
            num_pages=budget_len // page_len,
            num_sink_pages=num_sink_pages,
            num_local_pages=num_local_pages,
            dense_layers=dense_layers,
        )

    @abstractmethod
    def __str__(self) -> str:
        """Return the text form, which `parse_attention` reads."""


@dataclass(frozen=True, kw_only=True)
class BlockTopK(PageSelection):
    """Score each page by q . (mean key); the search reads one vector a page.

    Attributes:
        page_len: Tokens in a page, P.
        num_pages: Pages read per step, layer and KV head, sinks and newest included.
        num_sink_pages: First pages of the sequence that are always read.
        num_local_pages: Newest pages that are always read, at least the one being filled.
        dense_layers: First layers of the model that read everything.

    Example:
        >>> str(BlockTopK(page_len=8, num_pages=16, num_sink_pages=1))
        'block_topk:8x16,sinks=1'

    References:
        PAPER.md section 4. Released runs keep 4 sink tokens, the tail block and a dense first layer without counting
        them (errata 7); here they count.
    """

    def __str__(self) -> str:
        return _text(f"block_topk:{self.page_len}x{self.num_pages}", self)


@dataclass(frozen=True, kw_only=True)
class Quest(PageSelection):
    """Score each page by an upper bound of q . key, from its elementwise smallest and largest key: two vectors a page.

        score = sum over the width h of max(q_h min_h, q_h max_h)

    Attributes:
        page_len: Tokens in a page, P.
        num_pages: Pages read per step, layer and KV head, sinks and newest included.
        num_sink_pages: First pages of the sequence that are always read.
        num_local_pages: Newest pages that are always read, at least the one being filled.
        dense_layers: First layers of the model that read everything.

    Example:
        >>> str(Quest(page_len=16, num_pages=64, dense_layers=2))
        'quest:16x64,dense_layers=2'

    References:
        Quest: Query-Aware Sparsity for Efficient Long-Context LLM Inference (arXiv 2406.10774); it keeps two dense
        layers.
    """

    def __str__(self) -> str:
        return _text(f"quest:{self.page_len}x{self.num_pages}", self)


@dataclass(frozen=True, kw_only=True)
class Local:
    """Read the newest `window_len` tokens, and the first `sink_len` (a sliding window with attention sinks).

    Attributes:
        window_len: Newest tokens read per step, the current one included.
        sink_len: First tokens of the sequence that are always read, on top of the window.
        dense_layers: First layers of the model that read everything.

    Example:
        >>> Local(window_len=124, sink_len=4).budget_len
        128

    References:
        StreamingLLM (arXiv 2309.17453) for the sinks.
    """

    window_len: int
    sink_len: int = 0
    dense_layers: int = 0

    def __post_init__(self) -> None:
        _require_at_least(1, window_len=self.window_len)
        _require_at_least(0, sink_len=self.sink_len, dense_layers=self.dense_layers)

    @property
    def budget_len(self) -> int:
        """Tokens read per step: the window and the sinks."""
        return self.window_len + self.sink_len

    def __str__(self) -> str:
        return _text(f"local:{self.window_len}", self)


AttentionSpec = Dense | TopK | BlockTopK | Quest | Local

_KNOWN_FORMS = "dense, topk:128, block_topk:8x16 (page x pages), quest:8x16, local:128"
_TOKEN_OPTIONS = {"sinks": "sink_len", "local": "local_len", "dense_layers": "dense_layers"}
_PAGE_OPTIONS = {"sinks": "num_sink_pages", "local": "num_local_pages", "dense_layers": "dense_layers"}
_OPTIONS: dict[type, dict[str, str]] = {  # name in the text: field of the spec
    Dense: {},
    TopK: _TOKEN_OPTIONS,
    BlockTopK: _PAGE_OPTIONS,
    Quest: _PAGE_OPTIONS,
    Local: {"sinks": "sink_len", "dense_layers": "dense_layers"},
}


def attention_by_layer(spec: AttentionSpec, num_layers: int) -> tuple[AttentionSpec, ...]:
    """Return what each layer of a model runs: `Dense()` in the first `dense_layers` layers, else `spec`.

    Args:
        spec: The method.
        num_layers: Layers of the model.

    Raises:
        ValueError: If the spec has more dense layers than the model has layers.

    Example:
        >>> [str(layer) for layer in attention_by_layer(TopK(budget_len=64, dense_layers=1), 3)]
        ['dense', 'topk:64,dense_layers=1', 'topk:64,dense_layers=1']
    """
    dense_layers = 0 if isinstance(spec, Dense) else spec.dense_layers
    if dense_layers > num_layers:
        raise ValueError(
            f"dense_layers must not exceed the {num_layers} layers of the model; got {spec}. "
            f"Use dense_layers={num_layers} or fewer, or dense to read everything."
        )
    return (Dense(),) * dense_layers + (spec,) * (num_layers - dense_layers)


def parse_attention(text: str) -> AttentionSpec:
    """Return the spec that `text` names: the inverse of `str(spec)`.

    Args:
        text: `dense`, `topk:BUDGET`, `block_topk:PAGExPAGES`, `quest:PAGExPAGES` or `local:WINDOW`, then any of
            `,sinks=`, `,local=`, `,dense_layers=`; lengths in tokens, for methods with pages in pages.

    Raises:
        ValueError: If the text is none of these; the message lists the forms.

    Example:
        >>> parse_attention("topk:128,sinks=4")
        TopK(budget_len=128, sink_len=4, local_len=0, dense_layers=0)
    """
    head, *options = text.split(",")
    method, colon, size = head.partition(":")
    kinds: dict[str, type] = {"dense": Dense, "topk": TopK, "block_topk": BlockTopK, "quest": Quest, "local": Local}
    if method not in kinds or bool(colon) == (method == "dense"):
        raise ValueError(f"unknown attention spec {text!r}. Known forms: {_KNOWN_FORMS}")
    kind = kinds[method]
    fields = _sizes(kind, size, text)
    for option in options:
        name, _, number = option.partition("=")
        if name not in _OPTIONS[kind]:
            known = ", ".join(_OPTIONS[kind]) or "none"
            raise ValueError(f"unknown option {name!r} in attention spec {text!r}. Options of {method}: {known}")
        field = _OPTIONS[kind][name]
        if field in fields:
            raise ValueError(f"option {name!r} is given twice in attention spec {text!r}. Give it once.")
        fields[field] = _whole(number, text)
    return kind(**fields)


def _sizes(kind: type, size: str, text: str) -> dict[str, int]:
    if issubclass(kind, PageSelection):
        page_len, _, num_pages = size.partition("x")
        return {"page_len": _whole(page_len, text), "num_pages": _whole(num_pages, text)}
    if kind is Dense:
        return {}
    return {"budget_len" if kind is TopK else "window_len": _whole(size, text)}


def _whole(digits: str, text: str) -> int:
    if not (digits.isascii() and digits.isdigit()):
        raise ValueError(f"{digits!r} is no whole number in attention spec {text!r}. Known forms: {_KNOWN_FORMS}")
    return int(digits)


def _text(head: str, spec: AttentionSpec | PageSelection) -> str:
    """Append the options that differ from their defaults."""
    kind = type(spec)
    defaults = {name: kind.__dataclass_fields__[field].default for name, field in _OPTIONS[kind].items()}
    given = {name: getattr(spec, field) for name, field in _OPTIONS[kind].items()}
    return head + "".join(f",{name}={value}" for name, value in given.items() if value != defaults[name])


def _require_at_least(smallest: int, **sizes: int) -> None:
    for field, size in sizes.items():
        if size < smallest:
            raise ValueError(f"{field} must be at least {smallest}; got {size}")
