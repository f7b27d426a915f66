"""What one token, entry and page weigh for a given model: parameters met, bytes of a cache entry, of a page summary.

`_tariff` counts, this prices; `_request` multiplies the two.
"""

import math
from dataclasses import dataclass
from typing import Any

from kinetics_jax.specs import DTYPES, AttentionSpec, BlockTopK, ModelSpec, Quest, attention_by_layer

from ._numbers import dtype_spec, namespace
from ._tariff import Convention

# Vectors that a page is summarised by, and products per element to score one against a query.
_NUM_SUMMARIES: dict[type, int] = {BlockTopK: 1, Quest: 2}


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Hold what a model's cache and weights weigh; all layers together where not said otherwise.

    Attributes:
        num_flop_params: Parameters that one token meets in a product.
        entry_flops: Arithmetic of attending to one entry in one layer, all query heads [FLOP].
        page_flops: Arithmetic of scoring one page in one layer, all query heads [FLOP].
        entry_bytes: One token's key and value in one layer, all KV heads, scales included [bytes].
        page_bytes: One page's summary in one layer, all KV heads [bytes].
        num_dense_layers: First layers, which read everything whatever the method.
        num_sparse_layers: The others, which run the method (all of them for `Dense`).
    """

    num_flop_params: float
    entry_flops: float
    page_flops: float
    entry_bytes: float
    page_bytes: float
    num_dense_layers: int
    num_sparse_layers: int


def rates(model: ModelSpec, attention: AttentionSpec, kv_dtype: str, convention: Convention) -> Rates:
    """Look the rates up.

    Raises:
        ValueError: If the dtype is unknown, or more layers are dense than there are.
    """
    num_sparse_layers = attention_by_layer(attention, model.num_layers).count(attention)
    num_summaries = _NUM_SUMMARIES.get(type(attention), 0)
    width = model.num_kv_heads * model.head_dim
    return Rates(
        num_flop_params=num_flop_params(model, convention),
        entry_flops=4.0 * model.num_heads * model.head_dim,
        page_flops=2.0 * num_summaries * model.num_heads * model.head_dim,
        entry_bytes=2 * width * kv_element_bytes(model, kv_dtype, convention),
        page_bytes=num_summaries * width * summary_element_bytes(kv_dtype),
        num_dense_layers=model.num_layers - num_sparse_layers,
        num_sparse_layers=num_sparse_layers,
    )


def num_flop_params(model: ModelSpec, convention: Convention) -> float:
    """Return the parameters that a token meets in a product, or the published count that the paper takes for them.

    Raises:
        ValueError: If the convention is unknown.
    """
    if convention not in ("exact", "paper"):
        raise ValueError(f"unknown convention {convention!r}. Known: exact, paper")
    return float(model.num_active_stored_params if convention == "paper" else model.num_active_matmul_params)


def kv_element_bytes(model: ModelSpec, kv_dtype: str, convention: Convention) -> float:
    """Return the bytes of a cache element; its share of the vector's scale is in the exact convention only."""
    dtype = dtype_spec("kv_dtype", kv_dtype)
    return dtype.element_bytes if convention == "paper" else dtype.vector_bytes(model.head_dim) / model.head_dim


def summary_element_bytes(kv_dtype: str) -> float:
    """Return the bytes of an element of a page summary: as the cache, but bfloat16 where the cache is quantised."""
    dtype = dtype_spec("kv_dtype", kv_dtype)
    return (DTYPES["bfloat16"] if dtype.scale_bytes else dtype).element_bytes


def num_params_read(model: ModelSpec, num_tokens: Any, convention: Convention) -> Any:
    """Count the parameters that one pass over `num_tokens` tokens reads.

    With k of E experts active and independent uniform routing, n tokens touch E (1 - (1 - k/E)^n) distinct experts
    of a layer on average. The paper charges the active parameters whatever the batch.

    Args:
        model: The geometry.
        num_tokens: Tokens in the pass, n, any shape.
        convention: "exact" or "paper".

    Returns:
        The expected number, of the shape of `num_tokens` (or a number).
    """
    share = model.num_active_experts / max(model.num_experts, 1)
    if convention == "paper" or share in (0.0, 1.0):
        return float(model.num_matmul_params if convention == "exact" else num_flop_params(model, convention))
    xp = namespace(num_tokens)
    num_distinct = -model.num_experts * xp.expm1(num_tokens * math.log1p(-share))
    num_untouched = model.num_experts - num_distinct
    return float(model.num_matmul_params) - float(model.num_layers * model.num_expert_params) * num_untouched
