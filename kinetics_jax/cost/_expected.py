"""The price of a request whose length is random: means over sampled lengths, at any limit, and how sure they are."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Key, Num

from kinetics_jax.specs import AttentionSpec, ModelSpec

from ._cost import Cost
from ._numbers import Number, as_floating, is_python, namespace
from ._request import request_cost
from ._tariff import Convention

Lengths = Num[Array, "*batch R"] | Num[np.ndarray, "*batch R"]
Mask = Bool[Array, "*batch R"] | Bool[np.ndarray, "*batch R"]
Limits = Num[Array, " C"] | Num[np.ndarray, " C"]


def expected_cost(
    model: ModelSpec,
    attention: AttentionSpec,
    *,
    prompt_len: Number,
    gen_lens: Lengths,
    mask: Mask | None = None,
    max_gen_lens: Limits | None = None,
    num_trials: Number = 1,
    kv_dtype: str = "bfloat16",
    weight_dtype: str = "bfloat16",
    batch_size: Number | None = None,
    share_prompt: bool = True,
    convention: Convention = "exact",
) -> Cost:
    """Average `request_cost` over sampled lengths, truncated at each limit n: E[cost(min(T, n))].

    For dense attention this is a E[T] + b E[T^2] (the paper's Eq. 10); sparse attention needs the whole distribution,
    and gets it: pass the lengths of its own runs, which differ from dense ones. All limits take one pass over the
    sorted lengths: the mean at n is (sum of cost(T) over T <= n, and cost(n) for every other sample) / R.

    A trial that was stopped at its own limit is *censored*: had it gone on, it would have cost more. At a limit
    n at or below that of the runs the truncated cost is what such a request pays, so the mean is right; above it
    the mean is a lower bound. `bootstrap_cost` states the share of trials that n cuts.

    Args:
        model: The geometry.
        attention: The method.
        prompt_len: L_in, a number or of shape [*batch] [tokens].
        gen_lens: Sampled lengths, [*batch, R] [tokens].
        mask: Which samples exist, [*batch, R]; None = all.
        max_gen_lens: Limits n, [C] [tokens]; None = the lengths as they are.
        num_trials: N, a number or of shape [*batch]: trials with lengths of this distribution.
        kv_dtype: As in `request_cost`.
        weight_dtype: As in `request_cost`.
        batch_size: As in `request_cost`.
        share_prompt: As in `request_cost`. A shared prompt is charged for the mean length, not that of the longest
            trial, as in the paper.
        convention: As in `request_cost`.

    Returns:
        The expected bill, leaves of shape [*batch], or [*batch, C] with limits; NaN where no sample exists.

    Raises:
        ValueError: As `request_cost`.

    Example:
        >>> import numpy as np
        >>> from kinetics_jax.specs import MODELS, Dense
        >>> model, lengths, limits = MODELS["Qwen3-0.6B"], np.array([50.0, 150.0]), np.array([100.0, 1000.0])
        >>> cost = expected_cost(model, Dense(), prompt_len=100, gen_lens=lengths, max_gen_lens=limits)
        >>> mean_lens = cost.linear_flops / request_cost(model, Dense(), prompt_len=100, gen_len=1).linear_flops
        >>> mean_lens.tolist()
        [75.0, 100.0]

    References:
        PAPER.md section 2, "Expected cost", and section 3 on limits.
    """
    xp = namespace(*(x for x in (gen_lens, mask, prompt_len, num_trials, batch_size, max_gen_lens) if x is not None))

    def price(gen_lens: Any) -> Cost:
        return request_cost(
            model,
            attention,
            prompt_len=_per_sample(prompt_len),
            gen_len=gen_lens,
            num_trials=_per_sample(num_trials),
            kv_dtype=kv_dtype,
            weight_dtype=weight_dtype,
            batch_size=None if batch_size is None else _per_sample(batch_size),
            share_prompt=share_prompt,
            convention=convention,
        )

    gen_lens = as_floating(xp.asarray(gen_lens))
    exists = xp.ones(gen_lens.shape, bool) if mask is None else xp.asarray(mask)
    gen_lens = xp.where(exists, gen_lens, 0.0)
    num_samples = exists.sum(-1)
    if max_gen_lens is None:
        return jax.tree.map(lambda term: _share(xp, xp.where(exists, term, 0.0).sum(-1), num_samples), price(gen_lens))
    limits = xp.broadcast_to(as_floating(xp.asarray(max_gen_lens)), (*gen_lens.shape[:-1], len(max_gen_lens)))
    order = xp.argsort(xp.where(exists, gen_lens, xp.inf), axis=-1)
    ended = xp.take_along_axis(gen_lens, order, -1)[..., None, :] <= limits[..., :, None]
    num_ended = (ended & xp.take_along_axis(exists, order, -1)[..., None, :]).sum(-1)

    def truncated_mean(whole: Any, cut: Any) -> Any:
        sorted_terms = xp.take_along_axis(xp.where(exists, whole, 0.0), order, -1)
        sums = xp.concatenate([xp.zeros_like(sorted_terms[..., :1]), xp.cumsum(sorted_terms, axis=-1)], axis=-1)
        num_cut = (num_samples[..., None] - num_ended).astype(cut.dtype)
        total = xp.take_along_axis(sums, num_ended, -1) + xp.where(num_cut > 0, num_cut * cut, 0.0)
        return _share(xp, total, num_samples[..., None])

    return jax.tree.map(truncated_mean, price(gen_lens), price(limits))


@dataclass(frozen=True, kw_only=True)
class CostEstimate:
    """Hold an expected bill, how it scatters over resampled trials, and how much of it the limits cut off.

    Attributes:
        mean: The bill of `expected_cost`, leaves [*batch, C].
        resamples: The same of each bootstrap draw, leaves [S, *batch, C].
        censored_share: Share of trials that reached the limit [*batch, C]: they ended at n or were cut there.
    """

    mean: Cost
    resamples: Cost
    censored_share: Float[np.ndarray, "*batch C"]

    def interval(self, price: Callable[[Cost], Any], *, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Return the ends of the percentile interval of a price, such as `lambda bill: eflops(bill, hardware)`.

        Args:
            price: Maps a bill to one number per element.
            level: Coverage, in (0, 1).

        Returns:
            Lower and upper ends, each [*batch, C], in the unit of the price.

        Raises:
            ValueError: If the level is out of range.
        """
        if not 0 < level < 1:
            raise ValueError(f"level must lie in (0, 1); got {level}. Use 0.95 for 95 %.")
        tail = (1 - level) / 2
        low, high = np.quantile(np.asarray(price(self.resamples)), [tail, 1 - tail], axis=0)
        return low, high


def bootstrap_cost(
    model: ModelSpec,
    attention: AttentionSpec,
    *,
    prompt_len: Number,
    gen_lens: Num[np.ndarray, "*batch R"],
    mask: Bool[np.ndarray, "*batch R"] | None = None,
    max_gen_lens: Num[np.ndarray, " C"],
    num_trials: Number = 1,
    kv_dtype: str = "bfloat16",
    weight_dtype: str = "bfloat16",
    batch_size: Number | None = None,
    share_prompt: bool = True,
    convention: Convention = "exact",
    num_resamples: int = 1000,
    key: Key[Array, ""],
) -> CostEstimate:
    """Estimate the expected bill at each limit, with the trials of each problem resampled with replacement.

    The draws tell how far few trials a problem can be trusted. For the spread over problems, resample those as well
    (`accuracy.bootstrap_interval` does both).

    Args:
        model: The geometry.
        attention: The method.
        prompt_len: L_in, a number or of shape [*batch] [tokens].
        gen_lens: Sampled lengths, [*batch, R] [tokens].
        mask: Which samples exist, [*batch, R]; None = all. Every row needs one.
        max_gen_lens: Limits n, [C] [tokens].
        num_trials: As in `expected_cost`.
        kv_dtype: As in `request_cost`.
        weight_dtype: As in `request_cost`.
        batch_size: As in `request_cost`.
        share_prompt: As in `request_cost`.
        convention: As in `request_cost`.
        num_resamples: Bootstrap draws, S.
        key: Random key; the same key gives the same draws.

    Returns:
        The estimate.

    Raises:
        ValueError: As `request_cost`; if a row has no sample, or `num_resamples` is below 2.

    Example:
        >>> import jax, numpy as np
        >>> from kinetics_jax.cost import eflops
        >>> from kinetics_jax.specs import HARDWARE, MODELS, Dense
        >>> lengths = np.array([900.0, 1100.0, 4000.0, 5000.0])
        >>> estimate = bootstrap_cost(MODELS["Qwen3-8B"], Dense(), prompt_len=100, gen_lens=lengths,
        ...                           max_gen_lens=np.array([2048.0, 8192.0]), key=jax.random.key(0))
        >>> estimate.censored_share.tolist()
        [0.5, 0.0]
        >>> low, high = estimate.interval(lambda bill: eflops(bill, HARDWARE["H100-SXM"]))
        >>> bool((low < high).all())
        True

    References:
        PAPER.md section 2; Davison & Hinkley, Bootstrap Methods and Their Application (1997), section 2.
    """
    if num_resamples < 2:
        raise ValueError(f"num_resamples must be at least 2; got {num_resamples}")
    exists = np.ones(gen_lens.shape, bool) if mask is None else np.asarray(mask)
    if not exists.any(-1).all():
        raise ValueError("every row of gen_lens needs a sample; leave out the problems that have none")
    gen_lens, limits = np.where(exists, gen_lens, 0.0), np.asarray(max_gen_lens, dtype=np.float64)

    def price(gen_lens: np.ndarray, mask: np.ndarray | None, max_gen_lens: np.ndarray | None, extra_axes: int) -> Cost:
        return expected_cost(
            model,
            attention,
            prompt_len=_per_sample(prompt_len, extra_axes),
            gen_lens=gen_lens,
            mask=mask,
            max_gen_lens=max_gen_lens,
            num_trials=_per_sample(num_trials, extra_axes),
            kv_dtype=kv_dtype,
            weight_dtype=weight_dtype,
            batch_size=None if batch_size is None else _per_sample(batch_size, extra_axes),
            share_prompt=share_prompt,
            convention=convention,
        )

    # Every sample priced at every limit once, [*batch, C, R]; a resample only weighs these prices anew.
    truncated = np.minimum(gen_lens[..., None, :], limits[:, None])
    samples = price(truncated[..., None], None, None, 2)
    num_samples = exists.sum(-1)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    weights = rng.multinomial(num_samples, exists / num_samples[..., None], size=(num_resamples, *num_samples.shape))
    weights = weights / num_samples[..., None]
    resamples = jax.tree.map(lambda term: np.einsum("s...r,...cr->s...c", weights, term), samples)
    reached = (gen_lens[..., None, :] >= limits[:, None]) & exists[..., None, :]
    return CostEstimate(
        mean=price(gen_lens, exists, limits, 0),
        resamples=resamples,
        censored_share=reached.sum(-1) / num_samples[..., None],
    )


def _per_sample(number: Number, num_axes: int = 1) -> Number:
    """Give [*batch] last axes of 1, so that it meets limits and samples."""
    if is_python(number):
        return number
    array = namespace(number).asarray(number)
    return array.reshape(array.shape + (1,) * num_axes)


def _share(xp: Any, total: Any, count: Any) -> Any:
    return xp.where(count > 0, total / xp.maximum(count, 1).astype(total.dtype), xp.nan)
