"""The price of a request: counts of `_tariff` times the rates of `_rates`. Called by `scaling` and the CLI.

Left out: prefill (in `_prefill`; the paper leaves it out too), norms and softmax, the embedding row that each token
looks up, and the running sums behind page means.
"""

from kinetics_jax.specs import AttentionSpec, Dense, ModelSpec

from ._cost import Cost
from ._numbers import Number, as_quantity, dtype_spec, poison, prepare
from ._rates import num_params_read, rates
from ._tariff import Convention, count


def request_cost(
    model: ModelSpec,
    attention: AttentionSpec,
    *,
    prompt_len: Number,
    gen_len: Number,
    num_trials: Number = 1,
    kv_dtype: str = "bfloat16",
    weight_dtype: str = "bfloat16",
    batch_size: Number | None = None,
    share_prompt: bool = True,
    convention: Convention = "exact",
) -> Cost:
    """Price `num_trials` generations of `gen_len` tokens from one prompt; prefill is not charged (`prefill_cost` is).

    With e entries attended and m pages scored by one trial (`entries_read`, `entries_searched`), L layers of which
    the method runs in L' = L - dense_layers (the others are charged as dense), s vectors a page summary (1 the mean,
    2 the bounds of Quest), and b, c, w the bytes of a cache, summary and weight element:

        linear_flops    = 2 P N T
        attention_flops = 4 L n H N e
        search_flops    = 2 s L' n H N m
        kv_read_bytes   = 2 L K H b (entries that the trials fetch together)
        kv_write_bytes  = (2 L K H b + s L' K H c) N T
        search_bytes    = s L' K H c (pages whose summaries they fetch together)
        param_bytes     = P' w N T / batch_size, or 0

    n query heads, K KV heads of width H; P the active parameters but the input embedding, P' those that a pass over
    `batch_size` tokens reads: for a mixture of experts the expected number of distinct ones. Each generated token
    rewrites the summary of its page; re-reading is free, since the newest page is read anyway. Scores are counted per
    query head, as in the paper, although averaging the group's queries first would cost 1/r of `search_flops`.

    **Shared prompt.** N trials read the prompt's entries once in a dense step; the summaries of its full pages once in
    a search; in a local window, its part of window and sinks once. Trials that select gather their own entries (N
    times the budget, as the paper has it) or stream all caches once, whichever is less: never more than dense.

    **Quantised caches.** int8, float8 and int4 keep one bfloat16 scale beside each key and each value vector, and
    summaries in bfloat16. Scales of weights (one a channel) are left out.

    **Conventions.** "exact", the default because steps are whole, sums T steps over contexts L_in + 1 .. L_in + T and
    takes P without the input embedding (errata 13). "paper" integrates (L_in T + T^2 / 2), takes the published P, has
    no writes and no scales, fills the newest page, searches at every step and lets sparse trials share nothing. It
    *does* clamp the budget to the context, does not floor the search (errata 3, 4), and charges `dense_layers` where a
    spec has them (errata 7), unlike the released code.

    Args:
        model: The geometry.
        attention: The method.
        prompt_len: L_in, any shape [tokens].
        gen_len: T, broadcast against the others; fractions interpolate [tokens].
        num_trials: N, at least 1.
        kv_dtype: Cache dtype, a key of `DTYPES`.
        weight_dtype: Weight dtype, a key of `DTYPES`.
        batch_size: Sequences that share one read of the weights; None = endless, the paper's limit; 1 = a laptop.
        share_prompt: Whether trials keep one copy of the prompt's cache.
        convention: "exact" or "paper".

    Returns:
        The bill, every leaf a float for Python numbers, else an array of the broadcast shape: NumPy double precision
            for NumPy arrays, JAX for JAX arrays.

    Raises:
        ValueError: If a Python number is out of range, a dtype or the convention is unknown, or the spec has more
            dense layers than the model. Numbers out of range inside arrays give NaN in every leaf of their own element.

    Example:
        >>> from kinetics_jax.specs import MODELS, Dense, TopK
        >>> dense = request_cost(MODELS["Qwen3-0.6B"], Dense(), prompt_len=1000, gen_len=8000, num_trials=4)
        >>> sparse = request_cost(MODELS["Qwen3-0.6B"], TopK(budget_len=512), prompt_len=1000, gen_len=8000,
        ...                       num_trials=4)
        >>> round(dense.kv_read_bytes / sparse.kv_read_bytes, 1)
        8.4

    References:
        PAPER.md section 2 and errata 1 to 5, 7, 13.
    """
    rate = rates(model, attention, kv_dtype, convention)
    weight_bytes = dtype_spec("weight_dtype", weight_dtype).element_bytes
    valid, prompt_len, gen_len, num_trials, num_per_read = prepare(
        prompt_len=prompt_len,
        gen_len=gen_len,
        num_trials=num_trials,
        batch_size=1 if batch_size is None else batch_size,
    )
    gen_len = poison(gen_len, valid)
    num_sharing, num_requests = (num_trials, 1.0) if share_prompt else (1.0, num_trials)
    counts = count(attention, prompt_len, gen_len, num_sharing, convention)
    dense = count(Dense(), prompt_len, gen_len, num_sharing, convention) if rate.num_dense_layers else counts
    attended = rate.num_sparse_layers * counts.attended + rate.num_dense_layers * dense.attended
    read = rate.num_sparse_layers * counts.read + rate.num_dense_layers * dense.read
    summarised = rate.num_sparse_layers * rate.page_bytes * counts.pages_summarised
    written = (rate.num_sparse_layers + rate.num_dense_layers) * rate.entry_bytes * gen_len + summarised
    num_steps = num_trials * gen_len
    # 0 * num_steps gives a free term the shape of the others, and NaN where the input is bad.
    terms = {
        "linear_flops": 2 * rate.num_flop_params * num_steps,
        "attention_flops": rate.entry_flops * num_trials * attended,
        "search_flops": rate.num_sparse_layers * rate.page_flops * num_trials * counts.pages_scored,
        "kv_read_bytes": rate.entry_bytes * num_requests * read,
        "kv_write_bytes": 0.0 if convention == "paper" else num_trials * written,
        "search_bytes": rate.num_sparse_layers * rate.page_bytes * num_requests * counts.pages_searched,
        "param_bytes": 0.0
        if batch_size is None
        else weight_bytes * num_params_read(model, num_per_read, convention) * num_steps / num_per_read,
    }
    return Cost(**{name: as_quantity(term + 0.0 * num_steps) for name, term in terms.items()})
