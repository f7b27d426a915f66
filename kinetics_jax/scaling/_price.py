"""What a setting costs, in real numbers: the bill of `cost` made smooth in trials, KV budget, page and architecture.

`cost.request_cost` prices whole tokens, pages and models that exist. A solver moves between them, so that here counts
are integrals, and parameters, cache and intensity are numbers with derivatives. The unit prices are read off bills.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from kinetics_jax.cost import Combine, Cost, eflops, request_cost
from kinetics_jax.specs import AttentionSpec, BlockTopK, Dense, HardwareSpec, ModelSpec, Quest, TopK

from ._setting import Setting
from ._surface import AccuracySurface

Method = Literal["dense", "topk", "block_topk", "quest"]
_SUMMARIES: dict[str, type[BlockTopK] | type[Quest]] = {"block_topk": BlockTopK, "quest": Quest}
# Quadrature over the steps of a trial, on either side of where the budget fills up: Gauss and Legendre's in the root of
# the length, since most of what is solved is solved early. Its errors are kinks where the budget fills up at once.
_ROOTS, _WEIGHTS = np.polynomial.legendre.leggauss(16)
_ROOTS = (_ROOTS + 1) / 2
_FLOPS = ("linear_flops", "attention_flops", "search_flops")
_BYTES = ("kv_read_bytes", "kv_write_bytes", "search_bytes", "param_bytes")


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class RequestPrice:
    r"""Price one request on one model, attention method and chip; a JAX pytree whose leaves have derivatives.

    With a step of context S = L_in + t, t in (0, n), a cap b(S) on the entries that one trial reads, and s the share of
    trials that still run at t (1, or what `lengths` says):

    ```
    b(S)    = min(S, B - (P - 1) / 2)         the newest page is half full on average; S for dense attention
    compute = N int s (2 params + entry_flops b + page_flops (S / P + ...)) dt
    memory  = int s (N (write + weights) + fetch) dt + page_bytes (pages of the prompt once, own pages N times)
    price   = eflops(compute, memory, intensity)
    ```

    N trials fetch min(N b, L_in + N t) entries a step, as in `request_cost`: gathering or streaming, whichever is less.

    **What differs from `request_cost`**, convention "exact": sums over whole steps are integrals (half a token is
    added: sums of contexts are equal, a budget that fills up within the generation differs by an eighth of an entry);
    pages are searched at every step, as in the paper, while there the steps whose pages all fit are free; partly filled
    pages count by their mean. `request_bill` is the exact price of whole numbers.

    **Kinks**: "max" has one where compute equals memory; `optimal_allocation` limits its two `parts` instead, and so
    meets none. Second derivatives jump where the cache fills the budget at the first or the last step.

    Attributes:
        num_params: Parameters that a token meets in a product, P.
        kv_elements_per_token: Cache elements of a token in all layers, D.
        group_size: Query heads per KV head, r.
        flops_per_byte: Arithmetic intensity, I [FLOP/byte].
        prompt_len: L_in [tokens].
        flops_per_param: FLOPs of a parameter and token [FLOP].
        entry_flops: FLOPs of an entry per r D [FLOP].
        entry_bytes: Bytes of an entry per D [bytes].
        page_flops: FLOPs of scoring a page per r D [FLOP].
        page_bytes: Bytes of a page's summary per D [bytes].
        weight_bytes: Bytes of weights read in a token's step per P; 0 where the batch is endless [bytes].
        weight_bytes_alone: The same of a step of one sequence: for the latency [bytes].
        lengths: Law whose trials stop when they are right, or None: every trial runs to its limit. With None the price
            caps each request; with a law it is the mean.
        method: The attention method.
        hardware: The chip, for the peak; its intensity is `flops_per_byte`.
        combine: How eFLOPs join compute and memory.
        compute_dtype: The dtype of the products.
        kv_dtype: The dtype of the cache.

    References:
        PAPER.md section 2 (the paper's integrals); section 7, errata 3, 4 and 7.
    """

    num_params: Any
    kv_elements_per_token: Any
    group_size: Any
    flops_per_byte: Any
    prompt_len: Any
    flops_per_param: Any
    entry_flops: Any
    entry_bytes: Any
    page_flops: Any
    page_bytes: Any
    weight_bytes: Any
    weight_bytes_alone: Any
    lengths: Any = None  # AccuracySurface, or what optimistix puts in place of leaves
    method: Method = field(default="topk", metadata={"static": True})
    hardware: HardwareSpec = field(metadata={"static": True})
    combine: Combine = field(default="add", metadata={"static": True})
    compute_dtype: str = field(default="bfloat16", metadata={"static": True})
    kv_dtype: str = field(default="bfloat16", metadata={"static": True})

    def __call__(self, setting: Setting) -> Any:
        """Return the price of one setting [FLOP]."""
        return self._eflops(self._bill(setting, self.weight_bytes * setting.num_trials), self.combine)

    @property
    def part_names(self) -> tuple[str, ...]:
        """What the price is the largest of: compute and memory with "max"."""
        return ("cost",) if self._is_smooth else ("compute", "memory traffic")

    def parts(self, setting: Setting) -> tuple[Any, ...]:
        """Return the smooth parts of the price, the largest of which it is [FLOP]."""
        if self._is_smooth:
            return (self(setting),)
        return self._compute_and_memory(self._bill(setting, self.weight_bytes * setting.num_trials))

    def latency_s(self, setting: Setting) -> Any:
        """Return the roofline time of a request alone on the chip, its trials decoded together [s]."""
        return jnp.maximum(*self.latency_parts_s(setting))

    def latency_parts_s(self, setting: Setting) -> tuple[Any, Any]:
        """Return the time of the arithmetic and that of the memory traffic, the larger of which is the latency [s]."""
        peak = self.hardware.peak_flops(self.compute_dtype, self.kv_dtype)
        compute, memory = self._compute_and_memory(self._bill(setting, self.weight_bytes_alone))
        return compute / peak, memory / peak

    def cache_bytes(self, setting: Setting) -> Any:
        """Return the cache of the request's trials at their full length, each with a prompt of its own [bytes].

        Every method keeps all it has read. Pages are counted as full; `cost.capacity` rounds the last one up.
        """
        summaries = self.page_bytes / setting.page_len
        per_token = self.kv_elements_per_token * (self.entry_bytes + summaries)
        return setting.num_trials * (self.prompt_len + setting.gen_len) * per_token

    def context_len(self, setting: Setting) -> Any:
        """Return the longest context of a trial: a budget beyond it buys nothing [tokens]."""
        return self.prompt_len + setting.gen_len

    def averaged(self, lengths: AccuracySurface) -> "RequestPrice":
        """Return the mean price where trials stop as soon as they are right, by this law of their success.

        Trials that stop with a wrong answer are taken to run on, so that the price errs on the high side.
        """
        return replace(self, lengths=lengths)

    @property
    def _is_smooth(self) -> bool:
        return self.combine != "max" and self.combine != float("inf")

    def _eflops(self, bill: Cost, combine: Combine) -> Any:
        """Charge memory at the intensity that is a leaf: `eflops` multiplies by the chip's own."""
        ratio = self.flops_per_byte / self.hardware.intensity(self.compute_dtype, self.kv_dtype)
        bill = replace(bill, **{name: getattr(bill, name) * ratio for name in _BYTES})
        return eflops(bill, self.hardware, combine=combine, compute_dtype=self.compute_dtype, kv_dtype=self.kv_dtype)

    def _compute_and_memory(self, bill: Cost) -> tuple[Any, Any]:
        without_memory = replace(bill, **{name: jnp.zeros_like(bill.flops) for name in _BYTES})
        without_compute = replace(bill, **{name: jnp.zeros_like(bill.flops) for name in _FLOPS})
        return self._eflops(without_memory, "add"), self._eflops(without_compute, "add")

    def _bill(self, setting: Setting, step_weight_bytes: Any) -> Cost:
        num_trials, page_len, prompt_len = setting.num_trials, setting.page_len, self.prompt_len
        cap = jnp.inf if self.method == "dense" else setting.budget_len - (page_len - 1) / 2
        elements, products = self.kv_elements_per_token, self.group_size * self.kv_elements_per_token
        # What a trial reads, and its share of what all of them fetch: alike, so that programs hold it once.
        first_lens = jnp.stack(jnp.broadcast_arrays(prompt_len, prompt_len / num_trials))
        (steps, _), (attended, fetched), (tokens, _) = jax.vmap(lambda first: self._integrals(setting, first, cap))(
            first_lens
        )
        own_pages = (tokens + steps * (page_len - 1) / 2) / page_len
        prompt_pages = steps * prompt_len / page_len
        zero = 0.0 * steps
        return Cost(
            linear_flops=self.flops_per_param * self.num_params * num_trials * steps,
            attention_flops=self.entry_flops * products * num_trials * attended,
            search_flops=self.page_flops * products * num_trials * (own_pages + prompt_pages) + zero,
            kv_read_bytes=self.entry_bytes * elements * num_trials * fetched,
            kv_write_bytes=(self.entry_bytes + self.page_bytes) * elements * num_trials * steps,
            search_bytes=self.page_bytes * elements * (num_trials * own_pages + prompt_pages) + zero,
            param_bytes=step_weight_bytes * self.num_params * steps,
        )

    def _integrals(self, setting: Setting, first_len: Any, cap: Any) -> tuple[Any, Any, Any]:
        """Return int s dt, int s min(first_len + t + 1/2, cap) dt and int s (t + 1/2) dt over t in (0, n)."""
        gen_len = jnp.asarray(setting.gen_len)
        num_filling = jnp.clip(cap - first_len - 0.5, 0.0, gen_len)
        if self.lengths is None:
            filling = num_filling * (first_len + 0.5) + num_filling**2 / 2
            full = jnp.where(num_filling < gen_len, (gen_len - num_filling) * jnp.minimum(cap, 1e30), 0.0)
            return gen_len, filling + full, gen_len * (gen_len + 1) / 2
        unit = jnp.asarray(_ROOTS**2, gen_len.dtype)
        weight = jnp.asarray(_WEIGHTS * _ROOTS, gen_len.dtype)
        at = jnp.concatenate([num_filling * unit, num_filling + (gen_len - num_filling) * unit])
        width = jnp.concatenate([num_filling * weight, (gen_len - num_filling) * weight])
        share = width * self._running(setting, at)
        return share.sum(), (share * jnp.minimum(first_len + at + 0.5, cap)).sum(), (share * (at + 0.5)).sum()

    def _running(self, setting: Setting, at: Any) -> Any:
        """Return the share of trials that are not solved within each length."""
        lengths = self.lengths
        assert lengths is not None
        solved = jax.vmap(lambda length: (lengths.weights * lengths.solved(replace(setting, gen_len=length))).sum())
        return 1 - solved(jnp.maximum(at, 1e-6))  # the logarithm of no step at all is none


def request_price(
    model: ModelSpec,
    method: str,
    hardware: HardwareSpec,
    *,
    prompt_len: int | float,
    combine: Combine = "add",
    kv_dtype: str = "bfloat16",
    weight_dtype: str = "bfloat16",
    compute_dtype: str = "bfloat16",
    batch_size: int | float | None = None,
) -> RequestPrice:
    """Return the smooth price of requests to a model, its unit prices read off the bills of `request_cost`.

    Args:
        model: The geometry.
        method: "dense", "topk", "block_topk" or "quest".
        hardware: The chip.
        prompt_len: L_in [tokens].
        combine: As in `eflops`.
        kv_dtype: As in `request_cost`.
        weight_dtype: As in `request_cost`.
        compute_dtype: As in `eflops`.
        batch_size: Sequences that share one read of the weights; None = endless; 1 = a laptop.

    Returns:
        The price.

    Raises:
        ValueError: If the method has no smooth price, or as `request_cost`.

    Example:
        >>> from kinetics_jax.cost import request_cost
        >>> from kinetics_jax.specs import HARDWARE, MODELS, TopK
        >>> model, chip = MODELS["Qwen3-8B"], HARDWARE["H100-SXM"]
        >>> smooth = request_price(model, "topk", chip, prompt_len=500.0)
        >>> price = smooth(Setting(gen_len=8000.0, num_trials=4.0, budget_len=256.0, page_len=1.0))
        >>> exact = request_cost(model, TopK(budget_len=256), prompt_len=500, gen_len=8000, num_trials=4)
        >>> bool(abs(price / eflops(exact, chip) - 1) < 1e-6)
        True

    References:
        PAPER.md section 2.
    """
    method = method_of(method)

    def bill(attention: Any, prompt_len: float, batch_size: int | float | None) -> Cost:
        return request_cost(
            model,
            attention,
            prompt_len=prompt_len,
            gen_len=1,
            kv_dtype=kv_dtype,
            weight_dtype=weight_dtype,
            batch_size=batch_size,
        )

    empty, one = bill(Dense(), 0.0, batch_size), bill(Dense(), 1.0, batch_size)
    alone = bill(Dense(), 0.0, 1.0)
    elements, group_size = float(model.kv_elements_per_token), float(model.group_size)
    num_params = float(model.num_active_matmul_params)
    # One entry beside the newest: two pages of one token each, of which one is read.
    searched = bill(_SUMMARIES[method](page_len=1, num_pages=1), 1.0, None) if method in _SUMMARIES else 0 * one
    return RequestPrice(
        num_params=num_params,
        kv_elements_per_token=elements,
        group_size=group_size,
        flops_per_byte=hardware.intensity(compute_dtype, kv_dtype),
        prompt_len=float(prompt_len),
        flops_per_param=empty.linear_flops / num_params,
        entry_flops=(one.attention_flops - empty.attention_flops) / (group_size * elements),
        entry_bytes=(one.kv_read_bytes - empty.kv_read_bytes) / elements,
        page_flops=searched.search_flops / 2 / (group_size * elements),
        page_bytes=searched.search_bytes / 2 / elements,
        weight_bytes=empty.param_bytes / num_params,
        weight_bytes_alone=alone.param_bytes / num_params,
        method=method,
        hardware=hardware,
        combine=combine,
        compute_dtype=compute_dtype,
        kv_dtype=kv_dtype,
    )


def request_bill(
    model: ModelSpec,
    method: str,
    hardware: HardwareSpec,
    *,
    prompt_len: int | float,
    combine: Combine = "add",
    batch_size: int | float | None = None,
) -> Any:
    """Return the exact price of whole numbers, a function of a `Setting` of NumPy arrays: for `round_allocation`.

    Args:
        model: The geometry.
        method: As in `request_price`.
        hardware: The chip.
        prompt_len: L_in [tokens].
        combine: As in `eflops`.
        batch_size: As in `request_cost`.

    Returns:
        The function; its budgets and pages are whole, budgets whole numbers of pages.
    """

    def price(setting: Setting) -> np.ndarray:
        gen_len, num_trials, budget_len, page_len = np.broadcast_arrays(
            *(np.asarray(number, dtype=float) for number in jax.tree.leaves(setting))
        )
        total = np.zeros(gen_len.shape)
        for budget, page in set(zip(budget_len.ravel().tolist(), page_len.ravel().tolist(), strict=True)):
            where = (budget_len == budget) & (page_len == page)
            cost = request_cost(
                model,
                attention_of(method, budget, page),
                prompt_len=prompt_len,
                gen_len=gen_len[where],
                num_trials=num_trials[where],
                batch_size=batch_size,
            )
            total[where] = eflops(cost, hardware, combine=combine)
        return total

    return price


def method_of(text: str) -> Method:
    """Return the method of a name.

    Raises:
        ValueError: If it has no smooth price.
    """
    for known in get_args(Method):
        if text == known:
            return known
    raise ValueError(
        f"method must be one of {', '.join(get_args(Method))}; got {text!r}. A window that covers the prompt or does "
        "not has no smooth price."
    )


def attention_of(method: str, budget_len: float, page_len: float) -> AttentionSpec:
    """Return the spec of a method at a whole budget and page."""
    if method == "dense":
        return Dense()
    if method == "topk":
        return TopK(budget_len=round(budget_len))
    return _SUMMARIES[method].from_budget(budget_len=round(budget_len), page_len=round(page_len))
