"""How many cache entries and pages a generation reads: the counts behind a bill, without a model."""

from kinetics_jax.specs import AttentionSpec

from ._numbers import Number, Quantity, poison, prepare
from ._tariff import count


def entries_read(attention: AttentionSpec, *, prompt_len: Number, gen_len: Number) -> Quantity:
    """Count the cache entries that one trial reads per KV head of a layer: sum over t = 1..T of read(L_in + t).

    Dense reads S = L_in + t entries at step t (the new token included), top-k min(S, budget), local min(S, window +
    sinks), block top-k and Quest all S while ceil(S / P) <= pages and (pages - 1) P + (tokens in the newest page)
    after that. A layer that runs the method is meant, not one of its `dense_layers`.

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
    """Count the pages that one trial scores per KV head of a layer: sum of ceil(S / P) over the steps that search.

    A step searches when its pages exceed `num_pages`. It then scores every page, the sinks and the newest included.
    Other methods search nothing (oracle top-k by definition).

    Args:
        attention: The method.
        prompt_len: L_in, any shape [tokens].
        gen_len: T, broadcast against `prompt_len` [tokens].

    Returns:
        The exact sum [pages]: a float for Python numbers, else an array (of NumPy or JAX, as given).

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
    return poison(count(attention, prompt_len, gen_len, 1.0, "exact").pages_scored, valid)
