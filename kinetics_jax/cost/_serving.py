"""How fast does a batch decode on given chips? Rooflines of one step and of a steady stream. Called by the CLI.

Left out: prefill, kernel launches, the latency of links, activations, uneven load of experts. So these are bounds: a
real server is slower.
"""

import dataclasses
from typing import Any

import jax

from kinetics_jax.specs import DTYPES, AttentionSpec, HardwareSpec, ModelSpec

from ._capacity import Capacity, capacity, held_sequence_bytes, num_kv_copies, split_memory
from ._cost import Cost
from ._eflops import Combine
from ._numbers import Number, Quantity, is_python, poison, prepare
from ._request import request_cost
from ._resources import seconds
from ._tariff import Convention

# Tensor parallelism sums the outputs of attention and of the MLP over the devices: twice a layer.
_NUM_REDUCTIONS = 2
_TERMS = tuple(term.name for term in dataclasses.fields(Cost))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Throughput:
    """Say what a steady stream of requests yields; a JAX pytree whose leaves share one shape.

    Attributes:
        batch_size: Sequences decoded together.
        step_s: Mean time of a step [s].
        tokens_per_s: batch_size / step_s [tokens/s].
        problems_per_hour: Problems finished, each of `num_trials` generations [1/h].
    """

    # Any: a pytree also carries what JAX puts in place of leaves (shapes, axes, None).
    batch_size: Any
    step_s: Any
    tokens_per_s: Any
    problems_per_hour: Any


def decode_step_s(
    model: ModelSpec,
    attention: AttentionSpec,
    hardware: HardwareSpec,
    *,
    context_len: Number,
    batch_size: Number,
    num_devices: int = 1,
    kv_dtype: str = "bfloat16",
    weight_dtype: str = "bfloat16",
    compute_dtype: str = "bfloat16",
    combine: Combine = "max",
    convention: Convention = "exact",
    memory_share: int | float = 0.9,
    check_fits: bool = True,
) -> Quantity:
    """Return the roofline time of one decode step: that of the products with weights, of attention, of all-reduces.

        step = max(F_w / peak, M_w / bandwidth) / n + max(F_a / peak, M_a / bandwidth) / n + all-reduces
        all-reduces = 2 L x 2 (n - 1) / n x 2 B D / (link / 2);  free where the chip's links are not known

    F and M are those of `request_cost` for one token of each sequence: weights (w) read once, every sequence its own
    cache (a, with the search). Kernels overlap their own loads and products but run one after another. Work is split
    evenly over n devices, but whole KV heads are read: n ceil(K / n) / K of the cache's traffic in all. Two all-reduces
    a layer sum [B, D] activations in bfloat16; in a ring each device sends 2 (n - 1) / n of them over its links, whose
    bandwidth counts both directions.

    Args:
        model: The geometry.
        attention: The method.
        hardware: The chip.
        context_len: S, entries that each sequence holds with the new one, at least 1, any shape [tokens].
        batch_size: B, sequences in the step, broadcast against the context.
        num_devices: Chips, n, that share weights and cache (tensor parallel).
        kv_dtype: As in `request_cost` and `eflops`.
        weight_dtype: As in `request_cost`.
        compute_dtype: As in `eflops`.
        combine: As in `eflops`, for each of the two; "max" here, since chips compute while they load.
        convention: As in `request_cost`; memory is counted exactly in both.
        memory_share: As in `capacity`.
        check_fits: Whether to refuse what `capacity` says does not fit.

    Returns:
        Time [s], of the broadcast shape.

    Raises:
        ValueError: If the batch does not fit, or as `request_cost`, `eflops` and `capacity`. Inside arrays a batch that
            does not fit gives NaN in its own element, as any number out of range does.

    Example:
        >>> from kinetics_jax.specs import HARDWARE, MODELS, BlockTopK, Dense
        >>> sparse = BlockTopK.from_budget(budget_len=1024)
        >>> for attention in (Dense(), sparse):
        ...     step_s = decode_step_s(MODELS["Qwen3-0.6B"], attention, HARDWARE["H200-SXM"], context_len=16_384,
        ...                            batch_size=64)
        ...     print(f"{1e3 * step_s:.2f} ms")
        25.30 ms
        2.60 ms

    References:
        PAPER.md section 2 for the terms; errata 11.
    """
    server = _Server(
        model=model,
        attention=attention,
        hardware=hardware,
        num_devices=num_devices,
        kv_dtype=kv_dtype,
        weight_dtype=weight_dtype,
        compute_dtype=compute_dtype,
        combine=combine,
        convention=convention,
        memory_share=memory_share,
    )
    valid, context_len, batch_size = prepare(context_len=context_len, batch_size=batch_size)
    if is_python(context_len) and context_len < 1:
        raise ValueError(f"context_len must be at least 1; got {context_len}")
    if check_fits:
        valid = valid & server.fits(context_len, batch_size)
    step = server.bill(prompt_len=context_len - 1.0, gen_len=1.0, batch_size=batch_size)
    return poison(server.step_s(step, batch_size), valid)


def throughput(
    model: ModelSpec,
    attention: AttentionSpec,
    hardware: HardwareSpec,
    *,
    prompt_len: Number,
    gen_len: Number,
    num_trials: Number = 1,
    batch_size: Number | None = None,
    num_devices: int = 1,
    kv_dtype: str = "bfloat16",
    weight_dtype: str = "bfloat16",
    compute_dtype: str = "bfloat16",
    combine: Combine = "max",
    convention: Convention = "exact",
    memory_share: int | float = 0.9,
    check_fits: bool = True,
) -> Throughput:
    """Return the roofline rate of a steady stream of generations that grow from L_in to L_in + T tokens.

    Sequences join as others leave, so those of a step are at phases spread evenly over 1..T. A step then costs the
    mean over the phases, B / T of the bill that `request_cost` adds up exactly for a whole generation, and takes the
    time that `decode_step_s` describes:

        step = rooflines of B / T request_cost(T);  tokens/s = B / step;  problems/h = 3600 B / (N T step)

    Memory is reserved for the full length of every sequence. Trials of a problem are sequences like any other: they
    share neither cache nor reads here, so best-of-N with a shared prompt does better.

    Args:
        model: The geometry.
        attention: The method.
        hardware: The chip.
        prompt_len: L_in, any shape [tokens].
        gen_len: T, at least 1 [tokens].
        num_trials: N, generations a problem.
        batch_size: B; None = what `capacity` finds for L_in + T tokens, which then must be plain numbers.
        num_devices: As in `decode_step_s`.
        kv_dtype: As in `decode_step_s`.
        weight_dtype: As in `decode_step_s`.
        compute_dtype: As in `decode_step_s`.
        combine: As in `decode_step_s`.
        convention: As in `decode_step_s`.
        memory_share: As in `capacity`.
        check_fits: As in `decode_step_s`.

    Returns:
        The rates, leaves of the broadcast shape.

    Raises:
        ValueError: As `decode_step_s`; if no sequence fits; if `batch_size` is None and a length is an array.

    Example:
        >>> from kinetics_jax.specs import HARDWARE, MODELS, BlockTopK, Dense
        >>> sparse = BlockTopK.from_budget(budget_len=1024)
        >>> for attention in (Dense(), sparse):
        ...     stream = throughput(MODELS["Qwen3-8B"], attention, HARDWARE["H200-SXM"], prompt_len=500, gen_len=16_000)
        ...     print(f"{stream.batch_size:.0f} sequences, {stream.tokens_per_s:,.0f} tokens/s")
        45 sequences, 3,019 tokens/s
        44 sequences, 9,023 tokens/s

    References:
        PAPER.md section 5, figure 10; errata 11.
    """
    server = _Server(
        model=model,
        attention=attention,
        hardware=hardware,
        num_devices=num_devices,
        kv_dtype=kv_dtype,
        weight_dtype=weight_dtype,
        compute_dtype=compute_dtype,
        combine=combine,
        convention=convention,
        memory_share=memory_share,
    )
    _, *lengths = prepare(prompt_len=prompt_len, gen_len=gen_len)
    if is_python(gen_len) and gen_len < 1:
        raise ValueError(f"gen_len must be at least 1; got {gen_len}")
    if batch_size is None:
        if not is_python(*lengths):
            raise ValueError("batch_size must be given where a length is an array; got None. Pass a batch, or numbers.")
        batch_size = server.largest_batch(sum(lengths))
    valid, prompt_len, gen_len, num_trials, batch_size = prepare(
        prompt_len=prompt_len, gen_len=gen_len, num_trials=num_trials, batch_size=batch_size
    )
    if check_fits:
        valid = valid & server.fits(prompt_len + gen_len, batch_size)
    bill = server.bill(prompt_len=prompt_len, gen_len=gen_len, batch_size=batch_size)
    step_s = poison(server.step_s(bill * (1.0 / gen_len), batch_size), valid)
    rate = batch_size / step_s
    return Throughput(
        batch_size=batch_size,
        step_s=step_s,
        tokens_per_s=rate,
        problems_per_hour=3600.0 * rate / (num_trials * gen_len),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Server:
    """Hold what stays while lengths and batches vary; the fields are the arguments of `decode_step_s`."""

    model: ModelSpec
    attention: AttentionSpec
    hardware: HardwareSpec
    num_devices: int
    kv_dtype: str
    weight_dtype: str
    compute_dtype: str
    combine: Combine
    convention: Convention
    memory_share: int | float

    def __post_init__(self) -> None:
        if self.num_devices < 1:
            raise ValueError(f"num_devices must be at least 1; got {self.num_devices}")

    def largest_batch(self, context_len: Any) -> int:
        """Return what fits, at least 1.

        Raises:
            ValueError: If not even one sequence fits.
        """
        room = self._capacity(context_len)
        room.require(1)
        return room.num_sequences

    def fits(self, context_len: Any, batch_size: Any) -> Any:
        """Tell which batches fit: an array of booleans, or True.

        Raises:
            ValueError: If one given in plain numbers does not.
        """
        if is_python(context_len, batch_size):
            self._capacity(context_len).require(batch_size)
            return True
        weight_bytes, usable_bytes, _ = split_memory(
            self.model, self.hardware, self.num_devices, self.weight_dtype, self.memory_share
        )
        sequence = held_sequence_bytes(self.model, self.attention, context_len, self.num_devices, self.kv_dtype)
        return batch_size * sum(sequence) <= usable_bytes - weight_bytes

    def bill(self, *, prompt_len: Any, gen_len: Any, batch_size: Any) -> Cost:
        """Price a generation of each sequence of the batch, with the copies of the cache that the devices read."""
        each = request_cost(
            self.model,
            self.attention,
            prompt_len=prompt_len,
            gen_len=gen_len,
            kv_dtype=self.kv_dtype,
            weight_dtype=self.weight_dtype,
            batch_size=batch_size,
            convention=self.convention,
        )
        num_copies = num_kv_copies(self.model, self.num_devices)
        held = {name: num_copies * getattr(each, name) for name in ("kv_read_bytes", "kv_write_bytes", "search_bytes")}
        return dataclasses.replace(each, **held) * batch_size

    def step_s(self, bill: Cost, batch_size: Any) -> Any:
        """Return the time of a step with this bill: two rooflines, then the all-reduces of `batch_size` tokens."""
        linear = {name: getattr(bill, name) for name in ("linear_flops", "param_bytes")}
        free = {name: 0.0 * bill.linear_flops for name in _TERMS}
        parts = (Cost(**(free | linear)), dataclasses.replace(bill, **{name: free[name] for name in linear}))
        roofline = sum(
            seconds(
                part,
                self.hardware,
                combine=self.combine,
                compute_dtype=self.compute_dtype,
                kv_dtype=self.kv_dtype,
                num_devices=self.num_devices,
            )
            for part in parts
        )
        if self.num_devices == 1 or self.hardware.link_bytes_per_s is None:
            return roofline
        message_bytes = self.model.d_model * DTYPES["bfloat16"].element_bytes * batch_size
        sent_bytes = _NUM_REDUCTIONS * self.model.num_layers * 2 * (1 - 1 / self.num_devices) * message_bytes
        return roofline + sent_bytes / (self.hardware.link_bytes_per_s / 2)

    def _capacity(self, context_len: Any) -> Capacity:
        return capacity(
            self.model,
            self.attention,
            self.hardware,
            context_len=context_len,
            num_devices=self.num_devices,
            kv_dtype=self.kv_dtype,
            weight_dtype=self.weight_dtype,
            memory_share=self.memory_share,
        )
