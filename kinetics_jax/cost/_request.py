"""The price of a request, of sampled requests, and the entry counts behind it. Called by `scaling` and the CLI.

Left out: prefill (the paper leaves it out too), norms and softmax, the embedding row that each token looks up, and
the running sums behind page means.
"""

from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Num

from kinetics_jax.specs import AttentionSpec, ModelSpec

from ._cost import Cost
from ._numbers import Number, Quantity, as_quantity, dtype_spec, is_python, namespace, poison, prepare
from ._tariff import Convention, count


def entries_read(attention: AttentionSpec, *, prompt_len: Number, gen_len: Number) -> Quantity:
    """Count the cache entries that one trial reads per layer and KV head: sum over t = 1..T of read(L_in + t).

    Dense reads S = L_in + t entries at step t (the new token included), top-k min(S, budget), local min(S, window),
    block top-k all S while ceil(S / P) <= pages and (pages - 1) P + (tokens in the newest page) after that.

    Args:
        attention: The method.
        prompt_len: L_in, any shape [tokens].
        gen_len: T, broadcast against `prompt_len` [tokens].

    Returns:
        The exact sum [entries]: a float for Python numbers, else an array (of NumPy or JAX, as given).

    Raises:
        ValueError: If a Python number is negative or not finite. Such values inside arrays give NaN.

    Example:
        >>> from kinetics_jax.specs import BlockTopK, TopK
        >>> entries_read(TopK(budget_len=512), prompt_len=100, gen_len=200)
        40100.0
        >>> entries_read(BlockTopK(page_len=4, num_pages=2), prompt_len=7, gen_len=3)  # 8, then 4 + 1, then 4 + 2
        19.0

    References:
        PAPER.md section 2; errata 3: the released forms give 187,272 and 17,528 for the first example.
    """
    valid, prompt_len, gen_len = prepare(prompt_len=prompt_len, gen_len=gen_len)
    return poison(count(attention, prompt_len, gen_len, 1.0, "exact").attended, valid)


def entries_searched(attention: AttentionSpec, *, prompt_len: Number, gen_len: Number) -> Quantity:
    """Count the page means that one trial scores per layer and KV head: sum of ceil(S / P) over the steps that search.

    A step searches when its pages exceed `num_pages`. It then scores every page, the sinks and the newest included.
    Other methods search nothing (oracle top-k by definition).

    Args:
        attention: The method.
        prompt_len: L_in, any shape [tokens].
        gen_len: T, broadcast against `prompt_len` [tokens].

    Returns:
        The exact sum [page means]: a float for Python numbers, else an array (of NumPy or JAX, as given).

    Raises:
        ValueError: If a Python number is negative or not finite. Such values inside arrays give NaN.

    Example:
        >>> from kinetics_jax.specs import BlockTopK
        >>> entries_searched(BlockTopK(page_len=4, num_pages=2), prompt_len=7, gen_len=3)  # 0 + 3 + 3
        6.0

    References:
        PAPER.md section 2; errata 4: the released form floors before it multiplies, and is zero for short generations.
    """
    valid, prompt_len, gen_len = prepare(prompt_len=prompt_len, gen_len=gen_len)
    return poison(count(attention, prompt_len, gen_len, 1.0, "exact").scored, valid)


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
    """Price `num_trials` generations of `gen_len` tokens from one prompt; prefill is not charged.

    With D KV elements a token, r query heads a KV head, e and m the entries read and page means scored by one trial:

        linear_flops    = 2 P N T                  attention_flops = 2 r D N e        search_flops = r D N m
        kv_read_bytes   = D b (entries, shared)    search_bytes    = D/2 b (means, shared)
        kv_write_bytes  = D b N T, and D/2 b N T more for page means
        param_bytes     = P w N T / batch_size, or 0

    b and w are the bytes of `kv_dtype` and `weight_dtype`. A page mean is one key vector. Each generated token rewrites
    the mean of its page; re-reading is free, since the newest page is read anyway. Scores are counted per query head,
    as in the paper, although averaging the group's queries first would cost 1/r of `search_flops`.

    **Shared prompt.** N trials read the prompt's entries once in a dense step; the means of its full pages once in a
    search; in a local window, its part of the window once. Trials that select gather their own entries (N times the
    budget, as the paper has it) or stream all caches once, whichever is less: never more than dense.

    **Conventions.** "exact", the default because steps are whole, sums T steps over contexts L_in + 1 .. L_in + T and
    takes P without the input embedding (errata 13). "paper" integrates (L_in T + T^2 / 2), takes the published P, has
    no writes, fills the newest page, searches at every step and lets sparse trials share nothing. It *does* clamp the
    budget to the context, and does not floor the search (errata 3, 4), unlike the released code.

    Args:
        model: The geometry.
        attention: The method; all layers use it.
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
        ValueError: If a Python number is out of range, or a dtype or the convention is unknown. Numbers out of range
            inside arrays give NaN totals in their own element.

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
    kv_bytes, weight_bytes = (
        dtype_spec("kv_dtype", kv_dtype).element_bytes,
        dtype_spec("weight_dtype", weight_dtype).element_bytes,
    )
    valid, prompt_len, gen_len, num_trials, num_per_read = prepare(
        prompt_len=prompt_len,
        gen_len=gen_len,
        num_trials=num_trials,
        batch_size=1 if batch_size is None else batch_size,
    )
    gen_len = poison(gen_len, valid)
    counts = count(attention, prompt_len, gen_len, num_trials if share_prompt else 1.0, convention)
    num_requests = 1.0 if share_prompt else num_trials
    num_params = float(model.num_stored_params if convention == "paper" else model.num_matmul_params)
    kv_elements, mean_elements = float(model.kv_elements_per_token), model.kv_elements_per_token / 2
    num_written = 0.0 if convention == "paper" else kv_elements * gen_len + mean_elements * counts.means_written
    num_steps = num_trials * gen_len
    # 0 * num_steps gives a free term the shape of the others, and NaN where the input is bad.
    terms = {
        "linear_flops": 2 * num_params * num_steps,
        "attention_flops": 2 * model.group_size * kv_elements * num_trials * counts.attended,
        "search_flops": model.group_size * kv_elements * num_trials * counts.scored,
        "kv_read_bytes": kv_elements * kv_bytes * num_requests * counts.read,
        "kv_write_bytes": kv_bytes * num_trials * num_written,
        "search_bytes": mean_elements * kv_bytes * num_requests * counts.means_read,
        "param_bytes": 0.0 if batch_size is None else num_params * weight_bytes * num_steps / num_per_read,
    }
    return Cost(**{name: as_quantity(term + 0.0 * num_steps) for name, term in terms.items()})


def expected_cost(
    model: ModelSpec,
    attention: AttentionSpec,
    *,
    prompt_len: Number,
    gen_lens: Num[Array, "*batch R"] | Num[np.ndarray, "*batch R"],
    mask: Bool[Array, "*batch R"] | Bool[np.ndarray, "*batch R"] | None = None,
    num_trials: Number = 1,
    kv_dtype: str = "bfloat16",
    weight_dtype: str = "bfloat16",
    batch_size: Number | None = None,
    share_prompt: bool = True,
    convention: Convention = "exact",
) -> Cost:
    """Price a request whose length is random: the mean of `request_cost` over sampled lengths.

    For dense attention this is a E[T] + b E[T^2]; sparse attention needs the whole distribution, and gets it.
    Pass lengths truncated at n, `np.minimum(gen_lens, n)`, for a limit of n tokens.

    Args:
        model: The geometry.
        attention: The method.
        prompt_len: L_in, a number or of shape [*batch] [tokens].
        gen_lens: Sampled lengths, [*batch, R] [tokens].
        mask: Which samples exist, [*batch, R]; None = all.
        num_trials: N, a number or of shape [*batch]: trials with lengths of this distribution.
        kv_dtype: As in `request_cost`.
        weight_dtype: As in `request_cost`.
        batch_size: As in `request_cost`.
        share_prompt: As in `request_cost`. A shared prompt is charged for the mean length, not that of the longest
            trial, as in the paper.
        convention: As in `request_cost`.

    Returns:
        The expected bill, leaves of shape [*batch]; NaN where no sample exists.

    Raises:
        ValueError: As `request_cost`.

    Example:
        >>> import jax.numpy as jnp
        >>> from kinetics_jax.specs import MODELS, Dense
        >>> cost = expected_cost(MODELS["Qwen3-0.6B"], Dense(), prompt_len=100, gen_lens=jnp.array([50.0, 150.0]))
        >>> mean = request_cost(MODELS["Qwen3-0.6B"], Dense(), prompt_len=100, gen_len=100)
        >>> bool(cost.linear_flops == mean.linear_flops), bool(cost.kv_read_bytes > mean.kv_read_bytes)
        (True, True)

    References:
        PAPER.md section 2, "Expected cost".
    """
    xp = namespace(*(x for x in (gen_lens, mask, prompt_len, num_trials, batch_size) if x is not None))
    gen_lens = xp.asarray(gen_lens)
    exists = xp.ones(gen_lens.shape, bool) if mask is None else xp.asarray(mask)
    samples = request_cost(
        model,
        attention,
        prompt_len=_per_sample(prompt_len),
        gen_len=xp.where(exists, gen_lens, xp.zeros_like(gen_lens)),
        num_trials=_per_sample(num_trials),
        kv_dtype=kv_dtype,
        weight_dtype=weight_dtype,
        batch_size=None if batch_size is None else _per_sample(batch_size),
        share_prompt=share_prompt,
        convention=convention,
    )
    num_samples = exists.sum(-1)

    def mean(term: Any) -> Any:
        total = xp.where(exists, term, 0.0).sum(-1)
        return xp.where(num_samples > 0, total / xp.maximum(num_samples, 1).astype(total.dtype), xp.nan)

    return jax.tree.map(mean, samples)


def _per_sample(number: Number) -> Number:
    """Give [*batch] a last axis of 1, so that it meets the samples."""
    return number if is_python(number) else namespace(number).asarray(number)[..., None]
