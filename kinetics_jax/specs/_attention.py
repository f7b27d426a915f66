"""Attention specs: which cache entries a decode step reads. `attention` runs them, `cost` prices them.

A spec has one text form, used on the command line, in traces and in figures: `dense`, `topk:128`,
`block_topk:8x16` (pages of 8 tokens, 16 of them) and `local:128`.
"""

from dataclasses import dataclass

DEFAULT_PAGE_LEN = 16


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
        budget_len: Tokens read per step, layer and KV head.

    References:
        PAPER.md section 4.
    """

    budget_len: int

    def __post_init__(self) -> None:
        _require_positive("budget_len", self.budget_len)

    def __str__(self) -> str:
        return f"topk:{self.budget_len}"


@dataclass(frozen=True, kw_only=True)
class BlockTopK:
    """Read the pages whose mean key scores highest; page = selection block.

    Attributes:
        page_len: Tokens in a page, P.
        num_pages: Pages read per step, layer and KV head, sinks and the newest page included.
        num_sink_pages: First pages of the sequence that are always read.

    Raises:
        ValueError: If the pages cannot hold the sinks and the newest page.

    Example:
        >>> BlockTopK.from_budget(budget_len=128, page_len=8).num_pages
        16

    References:
        PAPER.md section 4. Released runs keep sinks and the tail block without counting them; here they count.
    """

    page_len: int
    num_pages: int
    num_sink_pages: int = 0

    def __post_init__(self) -> None:
        _require_positive("page_len", self.page_len)
        _require_positive("num_pages", self.num_pages)
        if self.num_sink_pages < 0:
            raise ValueError(f"num_sink_pages must not be negative; got {self.num_sink_pages}")
        if self.num_pages < self.num_sink_pages + 1:
            raise ValueError(
                f"num_pages must cover the sinks and the newest page; got num_pages={self.num_pages}, "
                f"num_sink_pages={self.num_sink_pages}. Use num_pages >= {self.num_sink_pages + 1}."
            )

    @property
    def budget_len(self) -> int:
        """Tokens that the pages can hold, P * pages."""
        return self.page_len * self.num_pages

    @classmethod
    def from_budget(cls, *, budget_len: int, page_len: int, num_sink_pages: int = 0) -> "BlockTopK":
        """Build the spec that reads `budget_len` tokens in pages of `page_len`.

        Raises:
            ValueError: If the budget is below one page or no whole number of pages.
        """
        _require_positive("page_len", page_len)
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
        return cls(page_len=page_len, num_pages=budget_len // page_len, num_sink_pages=num_sink_pages)

    def __str__(self) -> str:
        sinks = f"+{self.num_sink_pages}" if self.num_sink_pages else ""
        return f"block_topk:{self.page_len}x{self.num_pages}{sinks}"


@dataclass(frozen=True, kw_only=True)
class Local:
    """Read the newest `window_len` tokens.

    Attributes:
        window_len: Tokens read per step, the current one included.
    """

    window_len: int

    def __post_init__(self) -> None:
        _require_positive("window_len", self.window_len)

    @property
    def budget_len(self) -> int:
        """Tokens read per step: the window."""
        return self.window_len

    def __str__(self) -> str:
        return f"local:{self.window_len}"


AttentionSpec = Dense | TopK | BlockTopK | Local


def parse_attention(text: str) -> AttentionSpec:
    """Return the spec that `text` names: the inverse of `str(spec)`.

    Args:
        text: `dense`, `topk:BUDGET`, `block_topk:PAGExPAGES[+SINKS]` or `local:WINDOW`, lengths in tokens.

    Raises:
        ValueError: If the text is none of these; the message lists the forms.

    Example:
        >>> parse_attention("block_topk:8x16+1")
        BlockTopK(page_len=8, num_pages=16, num_sink_pages=1)
    """
    method, _, size = text.partition(":")
    try:
        if method == "dense" and not size:
            return Dense()
        if method == "topk":
            return TopK(budget_len=int(size))
        if method == "local":
            return Local(window_len=int(size))
        if method == "block_topk":
            pages, _, sinks = size.partition("+")
            page_len, _, num_pages = pages.partition("x")
            numbers = int(page_len), int(num_pages), int(sinks or 0)
            return BlockTopK(page_len=numbers[0], num_pages=numbers[1], num_sink_pages=numbers[2])
    except ValueError as error:
        if "invalid literal" not in str(error):
            raise
    raise ValueError(
        f"unknown attention spec {text!r}. Known forms: dense, topk:128, block_topk:8x16 (page x pages), local:128"
    )


def _require_positive(field: str, size: int) -> None:
    if size < 1:
        raise ValueError(f"{field} must be at least 1 token or page; got {size}")
