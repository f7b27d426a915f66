"""The price of reading the prompt, which `request_cost` leaves out."""

from kinetics_jax.specs import AttentionSpec, ModelSpec, PageSelection

from ._cost import Cost
from ._numbers import Number, as_quantity, dtype_spec, namespace, poison, prepare
from ._rates import num_params_read, rates


def prefill_cost(
    model: ModelSpec,
    attention: AttentionSpec,
    *,
    prompt_len: Number,
    chunk_len: Number | None = None,
    kv_dtype: str = "bfloat16",
    weight_dtype: str = "bfloat16",
    batch_size: Number | None = None,
) -> Cost:
    """Price the pass over a prompt that fills its cache; every method attends densely here.

    With n = ceil(L_in / C) chunks of C tokens and P_h the parameters of the output head, which only the last token
    meets:

        linear_flops    = 2 (P - P_h) L_in + 2 P_h       attention_flops = 4 L n H L_in (L_in + 1) / 2
        kv_read_bytes   = 2 L K H b sum over chunks of the context at the chunk's end
        kv_write_bytes  = 2 L K H b L_in, and the summary of each begun page in layers that select pages
        param_bytes     = sum over chunks of P' w / batch_size, or 0

    One pass reads each cache entry once for all queries of a chunk: an attention kernel that keeps the chunk's queries
    on the chip. The prompt of N trials is prefilled once.

    Args:
        model: The geometry.
        attention: The method that will decode: decides which page summaries are written.
        prompt_len: L_in, any shape [tokens].
        chunk_len: C, at least 1, broadcast against the prompt [tokens]; None = the whole prompt at once.
        kv_dtype: As in `request_cost`.
        weight_dtype: As in `request_cost`.
        batch_size: Prompts that share one read of the weights; None = endless (weights are free).

    Returns:
        The bill, shaped as in `request_cost`; zero for an empty prompt.

    Raises:
        ValueError: As `request_cost`, or if `chunk_len` is below 1.

    Example:
        >>> from kinetics_jax.specs import MODELS, Dense
        >>> whole = prefill_cost(MODELS["Qwen3-8B"], Dense(), prompt_len=4096, batch_size=1)
        >>> chunked = prefill_cost(MODELS["Qwen3-8B"], Dense(), prompt_len=4096, chunk_len=512, batch_size=1)
        >>> chunked.param_bytes / whole.param_bytes, chunked.kv_read_bytes / whole.kv_read_bytes
        (8.0, 4.5)

    References:
        Not in the paper; PAPER.md section 2 for the terms.
    """
    rate = rates(model, attention, kv_dtype, "exact")
    weight_bytes = dtype_spec("weight_dtype", weight_dtype).element_bytes
    valid, prompt_len, num_chunk_tokens, num_per_read = prepare(
        prompt_len=prompt_len,
        chunk_len=1 if chunk_len is None else chunk_len,
        batch_size=1 if batch_size is None else batch_size,
    )
    xp = namespace(prompt_len)
    prompt_len = poison(prompt_len, valid)
    num_begun = xp.minimum(prompt_len, 1.0)  # 1 unless the prompt is empty
    if chunk_len is None:
        num_full, last_len, read = 0.0, prompt_len, prompt_len
    else:
        num_full = xp.maximum(xp.ceil(prompt_len / num_chunk_tokens) - 1.0, 0.0)
        last_len = prompt_len - num_full * num_chunk_tokens
        read = num_chunk_tokens * num_full * (num_full + 1.0) / 2 + prompt_len
    num_layers = rate.num_dense_layers + rate.num_sparse_layers
    num_head_params = float(model.num_embedding_params)
    num_pages = xp.ceil(prompt_len / attention.page_len) if isinstance(attention, PageSelection) else 0.0
    num_params = num_full * num_params_read(model, num_chunk_tokens * num_per_read, "exact")
    num_params = num_params + num_begun * num_params_read(model, last_len * num_per_read, "exact")
    linear = (rate.num_flop_params - num_head_params) * prompt_len + num_head_params * num_begun
    summaries = rate.num_sparse_layers * rate.page_bytes * num_pages
    terms = {
        "linear_flops": 2 * linear,
        "attention_flops": num_layers * rate.entry_flops * prompt_len * (prompt_len + 1.0) / 2,
        "search_flops": 0.0,
        "kv_read_bytes": num_layers * rate.entry_bytes * read,
        "kv_write_bytes": num_layers * rate.entry_bytes * prompt_len + summaries,
        "search_bytes": 0.0,
        "param_bytes": 0.0 if batch_size is None else weight_bytes * num_params / num_per_read,
    }
    return Cost(**{name: as_quantity(term + 0.0 * prompt_len) for name, term in terms.items()})
