"""From which batch on does the cache, and no longer the weights, set the pace of decoding?"""

from typing import Any

from kinetics_jax.specs import AttentionSpec, ModelSpec

from ._numbers import Number, Quantity, dtype_spec, is_python, poison, prepare
from ._rates import num_params_read
from ._request import request_cost
from ._root import rising_root


def break_even_batch(
    model: ModelSpec,
    attention: AttentionSpec,
    *,
    context_len: Number,
    kv_dtype: str = "bfloat16",
    weight_dtype: str = "bfloat16",
) -> Quantity:
    """Solve weights(B) = B cache(S) for B: the batch at which weights and cache cost a step the same bytes.

    cache(S) is what one sequence reads: entries and page summaries. A dense model reads the same weights at any batch,
    so B = P' w / cache(S). A mixture of experts reads more of them as the batch grows (see `request_cost`), and takes a
    root finder. Below B sparse attention saves little, above it nearly all that `entries_read` promises.

    Args:
        model: The geometry.
        attention: The method.
        context_len: S, entries that a sequence holds with the new one, at least 1, any shape [tokens].
        kv_dtype: As in `request_cost`.
        weight_dtype: As in `request_cost`.

    Returns:
        B, a real number [sequences]: below 1 where one cache alone outweighs the weights. A float for Python numbers,
            else an array (of NumPy or JAX, as given); NaN where an array held a number out of range.

    Raises:
        ValueError: If a Python number is out of range or a dtype is unknown.

    Example:
        >>> from kinetics_jax.specs import MODELS, BlockTopK, Dense
        >>> for attention in (Dense(), BlockTopK.from_budget(budget_len=1024)):
        ...     print(f"{break_even_batch(MODELS['Qwen3-8B'], attention, context_len=16_384):.1f}")
        6.3
        66.8

    References:
        PAPER.md section 2, "With batch 1"; errata 11.
    """
    weight_bytes = dtype_spec("weight_dtype", weight_dtype).element_bytes
    valid, context_len = prepare(context_len=context_len)
    if is_python(context_len) and context_len < 1:
        raise ValueError(f"context_len must be at least 1; got {context_len}")

    def excess(num_tokens: Any, cache_bytes: Any) -> Any:
        return num_tokens * cache_bytes - weight_bytes * num_params_read(model, num_tokens, "exact")

    step = request_cost(model, attention, prompt_len=context_len - 1.0, gen_len=1.0, kv_dtype=kv_dtype)
    cache_bytes = step.kv_read_bytes + step.search_bytes
    enough = weight_bytes * model.num_matmul_params / cache_bytes  # All experts are read, at most.
    return poison(rising_root(excess, enough, cache_bytes) if model.num_experts else enough, valid)
