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
        kv_dtype: What the pages hold: "bfloat16", or a dtype of quantised pages, with a bfloat16 scale for each vector.
    """

    batch_size: int
    num_kv_heads: int = 8
    group: int = 4
    head_dim: int = 128
    context_len: int = 16_384
    page_len: int = 16
    budget_len: int = 1_024
    kv_dtype: str = "bfloat16"

    @property
    def max_pages(self) -> int:
        """Pages of a sequence."""
        return -(-self.context_len // self.page_len)

    @property
    def num_blocks(self) -> int:
        """Pages read."""
        return -(-self.budget_len // self.page_len)

    @property
    def vector_bytes(self) -> int:
        """Bytes of one key or value vector, its scale included."""
        return 2 * self.head_dim if self.kv_dtype == "bfloat16" else self.head_dim + 2

    @property
    def dense_bytes(self) -> int:
        """Bytes of the keys and values of all tokens."""
        return 2 * self.batch_size * self.num_kv_heads * self.context_len * self.vector_bytes

    @property
    def topk_bytes(self) -> int:
        """Bytes of all page means, in bfloat16, and of the keys and values of the selected pages."""
        if self.num_blocks >= self.max_pages:
            return self.dense_bytes
        of_row = 2 * self.max_pages * self.head_dim + 2 * self.num_blocks * self.page_len * self.vector_bytes
        return self.batch_size * self.num_kv_heads * of_row
