"""How rotary frequencies are stretched beyond the context that a model was pretrained for."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Llama3Rope:
    """Slow rotations are slowed by `factor`, fast ones stay, those between are blended (Llama 3.1 and later).

    Attributes:
        factor: How much slower the slow rotations become; at least 1.
        low_freq_factor: Wavelengths above original_max_len / this are slowed.
        high_freq_factor: Wavelengths below original_max_len / this stay; more than the one before.
        original_max_len: Context of the pretraining [tokens].

    Raises:
        ValueError: If a number is out of range.

    References:
        The Llama 3 Herd of Models (arXiv 2407.21783); `rope_type: llama3` of Hugging Face configs.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_len: int

    def __post_init__(self) -> None:
        _require_stretch(self.factor, self.original_max_len)
        if not 0 < self.low_freq_factor < self.high_freq_factor:
            raise ValueError(
                f"high_freq_factor must exceed low_freq_factor, and both be positive; got "
                f"{self.high_freq_factor} and {self.low_freq_factor}"
            )


@dataclass(frozen=True, kw_only=True)
class YarnRope:
    """Interpolate by wavelength and sharpen the logits a little (YaRN).

    Attributes:
        factor: How much longer the context becomes; at least 1.
        original_max_len: Context of the pretraining [tokens].
        beta_fast: Rotations over the original context above which a frequency stays; more than the next.
        beta_slow: Rotations below which it is slowed by `factor`.
        attention_factor: Scale of cosines and sines; None is 0.1 ln(factor) + 1.

    Raises:
        ValueError: If a number is out of range.

    References:
        YaRN (arXiv 2309.00071); `rope_type: yarn` of Hugging Face configs.
    """

    factor: float
    original_max_len: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None

    def __post_init__(self) -> None:
        _require_stretch(self.factor, self.original_max_len)
        if not 0 < self.beta_slow < self.beta_fast:
            raise ValueError(
                f"beta_fast must exceed beta_slow, and both be positive; got {self.beta_fast} and {self.beta_slow}"
            )
        if self.attention_factor is not None and not self.attention_factor > 0:
            raise ValueError(f"attention_factor must be positive, or None; got {self.attention_factor}")


RopeScaling = Llama3Rope | YarnRope

ROPE_KINDS: dict[str, type[Llama3Rope] | type[YarnRope]] = {"llama3": Llama3Rope, "yarn": YarnRope}
"""By the name that files give them: Hugging Face's `rope_type`, and ours."""


def _require_stretch(factor: float, original_max_len: int) -> None:
    if not factor >= 1:
        raise ValueError(f"factor must be at least 1; got {factor}")
    if original_max_len < 1:
        raise ValueError(f"original_max_len must be at least 1; got {original_max_len}")
