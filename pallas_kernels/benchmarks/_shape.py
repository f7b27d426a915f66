"""The size of one layer's decode step, and the bytes that it must read."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Size of one layer's decode step.

    Attributes:
        batch_size: Sequences.
        num_kv_heads: KV heads.
        group: Query heads of a KV head.
        head_dim: Width of a head.
        context_len: Tokens held by each sequence.
        page_len: Tokens of a page.
        budget_len: Tokens read by block top-k.
    """

    batch_size: int
    num_kv_heads: int = 8
    group: int = 4
    head_dim: int = 128
    context_len: int = 16_384
    page_len: int = 16
    budget_len: int = 1_024

    @property
    def max_pages(self) -> int:
        """Pages of a sequence."""
        return -(-self.context_len // self.page_len)

    @property
    def num_blocks(self) -> int:
        """Pages read."""
        return -(-self.budget_len // self.page_len)

    @property
    def dense_bytes(self) -> int:
        """Bytes of the keys and values of all tokens, in bfloat16."""
        return 4 * self.batch_size * self.num_kv_heads * self.context_len * self.head_dim

    @property
    def topk_bytes(self) -> int:
        """Bytes of all page means and of the keys and values of the selected pages, in bfloat16."""
        rows = self.batch_size * self.num_kv_heads * self.head_dim
        if self.num_blocks >= self.max_pages:
            return self.dense_bytes
        return rows * (2 * self.max_pages + 4 * self.num_blocks * self.page_len)
