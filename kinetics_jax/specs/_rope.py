"""How rotary frequencies are stretched beyond the context that a model was pretrained for."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Llama3Rope:
    """Slow rotations are slowed by `factor`, fast ones stay, those between are blended (Llama 3.1 and later).

    Attributes:
        factor: How much slower the slow rotations become.
        low_freq_factor: Wavelengths above original_max_len / this are slowed.
        high_freq_factor: Wavelengths below original_max_len / this stay.
        original_max_len: Context of the pretraining [tokens].

    References:
        The Llama 3 Herd of Models (arXiv 2407.21783); `rope_type: llama3` of Hugging Face configs.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_len: int


@dataclass(frozen=True, kw_only=True)
class YarnRope:
    """Interpolate by wavelength and sharpen the logits a little (YaRN).

    Attributes:
        factor: How much longer the context becomes.
        original_max_len: Context of the pretraining [tokens].
        beta_fast: Rotations over the original context above which a frequency stays.
        beta_slow: Rotations below which it is slowed by `factor`.
        attention_factor: Scale of cosines and sines; None is 0.1 ln(factor) + 1.

    References:
        YaRN (arXiv 2309.00071); `rope_type: yarn` of Hugging Face configs.
    """

    factor: float
    original_max_len: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None


RopeScaling = Llama3Rope | YarnRope
