"""How many sequences fit in memory, and the arithmetic behind it. Called by `_serving` and the CLI.

Left out: activations and the runtime's own buffers, for which `memory_share` leaves room; prompts shared between
sequences; caches that drop what a local window will not read again.
"""

import math
from dataclasses import dataclass
from typing import Any

from kinetics_jax.specs import DEFAULT_PAGE_LEN, AttentionSpec, HardwareSpec, ModelSpec, PageSelection

from ._numbers import as_quantity, dtype_spec, namespace, prepare
from ._rates import rates


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """Say how many sequences fit, and out of what. Built by `capacity`; bytes are those of all devices together.

    Attributes:
        model: The model's name.
        memory: What the usable memory is made of, as text.
        context_len: Tokens that each sequence may hold [tokens].
        usable_bytes: Memory that weights and cache may take [bytes].
        weight_bytes: All weights [bytes].
        kv_bytes: Keys and values of one sequence: whole pages, with scales, `num_kv_copies` of them [bytes].
        summary_bytes: Page summaries of one sequence, `num_kv_copies` of them [bytes].
        num_kv_copies: Cache held over cache needed; above 1 where the chips cannot split the KV heads evenly.
        num_sequences: The largest batch.
    """

    model: str
    memory: str
    context_len: float
    usable_bytes: float
    weight_bytes: float
    kv_bytes: float
    summary_bytes: float
    num_kv_copies: float
    num_sequences: int

    @property
    def sequence_bytes(self) -> float:
        """Cache of one sequence [bytes]."""
        return self.kv_bytes + self.summary_bytes

    def arithmetic(self) -> str:
        """Show the division in one line.

        Example:
            >>> from kinetics_jax.specs import HARDWARE, MODELS, Dense
            >>> room = capacity(MODELS["Qwen3-0.6B"], Dense(), HARDWARE["H200-SXM"], context_len=16_384, num_devices=8)
            >>> print(room.arithmetic())
            (8 x 141 GB (H200-SXM) x 0.9 = 1.015 TB, less 1.192 GB of weights) / 1.879 GB a sequence of 16,384 tokens
            = 539 sequences
        """
        return (
            f"({self.memory}, less {_size(self.weight_bytes)} of weights) / {_size(self.sequence_bytes)} a sequence of "
            f"{self.context_len:,.0f} tokens{self._parts()} = {self.num_sequences:,} sequences"
        )

    def require(self, batch_size: int | float) -> None:
        """Refuse a batch that does not fit.

        Args:
            batch_size: Sequences.

        Raises:
            ValueError: If it does not fit; the message shows the arithmetic and the largest batch that does.

        Example:
            >>> from kinetics_jax.specs import HARDWARE, MODELS, Dense
            >>> room = capacity(MODELS["Qwen3-0.6B"], Dense(), HARDWARE["H200-SXM"], context_len=16_384, num_devices=8)
            >>> room.require(4096)
            Traceback (most recent call last):
            ...
            ValueError: 4,096 sequences of 16,384 tokens of Qwen3-0.6B do not fit: 4,096 x 1.879 GB = 7.697 TB of cache
            and 1.192 GB of weights, but 8 x 141 GB (H200-SXM) x 0.9 = 1.015 TB. Use at most 539 sequences, a shorter
            context, a narrower kv_dtype, or more chips.

        References:
            PAPER.md errata 11.
        """
        if batch_size > self.num_sequences:
            each, together = _size(self.sequence_bytes), _size(batch_size * self.sequence_bytes)
            raise ValueError(
                f"{batch_size:,.0f} sequences of {self.context_len:,.0f} tokens of {self.model} do not fit: "
                f"{batch_size:,.0f} x {each}{self._parts()} = {together} of cache and {_size(self.weight_bytes)} of "
                f"weights, but {self.memory}. Use at most {self.num_sequences:,} sequences, a shorter context, a "
                f"narrower kv_dtype, or more chips."
            )

    def _parts(self) -> str:
        """Say what is in a sequence's bytes beside one copy of its keys and values."""
        parts = [f"{_size(self.summary_bytes)} of page summaries"] if self.summary_bytes else []
        parts += [f"{self.num_kv_copies:g} copies of the cache"] if self.num_kv_copies > 1 else []
        return f" ({' and '.join(parts)} included)" if parts else ""


def capacity(
    model: ModelSpec,
    attention: AttentionSpec,
    hardware: HardwareSpec,
    *,
    context_len: int | float,
    num_devices: int = 1,
    kv_dtype: str = "bfloat16",
    weight_dtype: str = "bfloat16",
    memory_share: int | float = 0.9,
) -> Capacity:
    """Find the largest batch that fits: (devices x memory x share - weights) / (cache of one sequence), rounded down.

    The cache of a sequence is ceil(S / P) whole pages of keys and values in all layers, and one summary vector a page
    (two for Quest) in the layers that select pages. The page is the method's own, else `DEFAULT_PAGE_LEN` tokens.
    Every method keeps all it has read: a sparse one saves traffic, not memory. All experts are held. Weights are split
    evenly over n devices, KV heads as whole heads: the fullest device holds ceil(K / n) of them, so that more devices
    than heads hold n / K copies of the cache.

    Args:
        model: The geometry.
        attention: The method.
        hardware: The chip.
        context_len: S, tokens that every sequence may grow to, at least 1 [tokens].
        num_devices: Chips, n, that share weights and cache (tensor parallel).
        kv_dtype: Cache dtype, a key of `DTYPES`.
        weight_dtype: Weight dtype, a key of `DTYPES`; scales of weights are left out.
        memory_share: Part of the memory that weights and cache may take, in (0, 1].

    Returns:
        The batch and the figures it comes from; `num_sequences` is 0 where not even one sequence fits.

    Raises:
        ValueError: If the weights alone do not fit, a number is out of range or a dtype is unknown.

    Example:
        >>> from kinetics_jax.specs import HARDWARE, MODELS, Dense
        >>> capacity(MODELS["Qwen3-32B"], Dense(), HARDWARE["H200-SXM"], context_len=32_768).num_sequences
        7

    References:
        PAPER.md section 6 for the cache sizes; errata 11.
    """
    prepare(context_len=context_len, num_devices=num_devices)
    if context_len < 1:
        raise ValueError(f"context_len must be at least 1; got {context_len}")
    weight_bytes, usable_bytes, memory = split_memory(model, hardware, num_devices, weight_dtype, memory_share)
    held = held_sequence_bytes(model, attention, float(context_len), num_devices, kv_dtype)
    kv_bytes, summary_bytes = (as_quantity(num_bytes) for num_bytes in held)
    return Capacity(
        model=model.name,
        memory=memory,
        context_len=float(context_len),
        usable_bytes=usable_bytes,
        weight_bytes=weight_bytes,
        kv_bytes=kv_bytes,
        summary_bytes=summary_bytes,
        num_kv_copies=num_kv_copies(model, num_devices),
        num_sequences=int((usable_bytes - weight_bytes) // (kv_bytes + summary_bytes)),
    )


def split_memory(
    model: ModelSpec, hardware: HardwareSpec, num_devices: int, weight_dtype: str, memory_share: int | float
) -> tuple[float, float, str]:
    """Return the bytes of all weights (every expert, one embedding if tied), the usable bytes, and these as text.

    Raises:
        ValueError: If the weights do not fit, or the share is not in (0, 1].
    """
    if not 0 < memory_share <= 1:
        raise ValueError(f"memory_share must lie in (0, 1]; got {memory_share}")
    weight_bytes = model.num_params * dtype_spec("weight_dtype", weight_dtype).element_bytes
    usable_bytes = num_devices * hardware.hbm_bytes * memory_share
    memory = f"{num_devices} x {_size(hardware.hbm_bytes)} ({hardware.name}) x {memory_share:g} = {_size(usable_bytes)}"
    if weight_bytes > usable_bytes:
        num_needed = math.ceil(weight_bytes / (hardware.hbm_bytes * memory_share))
        raise ValueError(
            f"the weights of {model.name} alone do not fit: {model.num_params / 1e9:.4g}e9 parameters in "
            f"{weight_dtype} = {_size(weight_bytes)}, but {memory}. Use at least {num_needed} chips or a narrower "
            f"weight_dtype."
        )
    return weight_bytes, usable_bytes, memory


def held_sequence_bytes(
    model: ModelSpec, attention: AttentionSpec, context_len: Any, num_devices: int, kv_dtype: str
) -> tuple[Any, Any]:
    """Return the bytes of one sequence's keys and values, and of its page summaries, on all devices together."""
    rate = rates(model, attention, kv_dtype, "exact")
    page_len = attention.page_len if isinstance(attention, PageSelection) else DEFAULT_PAGE_LEN
    num_pages = namespace(context_len).ceil(context_len / page_len) * num_kv_copies(model, num_devices)
    kv_bytes = model.num_layers * page_len * rate.entry_bytes * num_pages
    return kv_bytes, rate.num_sparse_layers * rate.page_bytes * num_pages


def num_kv_copies(model: ModelSpec, num_devices: int) -> float:
    """Return how often the cache is held: n ceil(K / n) / K, for the device with most KV heads decides."""
    return num_devices * -(-model.num_kv_heads // num_devices) / model.num_kv_heads


def _size(num_bytes: float) -> str:
    """Return bytes in a unit that people read, four digits."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.4g} {unit}"
    return f"{num_bytes / 1e3:.4g} kB"
