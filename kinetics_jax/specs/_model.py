"""Transformer geometry as data: what `models` builds and `cost` prices. Holds no arrays."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ._hf_config import read_hf_config, write_hf_config
from ._plain import plain_fields, read_fields
from ._rope import RopeScaling

_SIZES = ("num_layers", "d_model", "mlp_dim", "num_heads", "num_kv_heads", "head_dim", "vocab_size", "max_len")


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Describe a decoder-only transformer with grouped-query attention and a dense or mixture-of-experts MLP.

    Every count below is derived from these fields. `num_active_*` counts see the experts that one token is routed to;
    for a model without experts they equal their plain counterparts.

    Attributes:
        name: The name used in tables, traces and figures.
        family: Models that differ only in size share a family ("Qwen3", "Kinetics-Mini").
        num_layers: Decoder layers, L.
        d_model: Residual width, D.
        mlp_dim: Hidden width of the MLP, or of one expert, F.
        num_heads: Query heads, N.
        num_kv_heads: Key-value heads, K; must divide `num_heads`.
        head_dim: Width of one head, H. Explicit: it is *not* d_model / num_heads in Qwen3-0.6B.
        vocab_size: Rows of the embedding, V.
        max_len: Longest context the model was trained for [tokens].
        rope_theta: Base of the rotary frequencies.
        rope_scaling: How the frequencies are stretched, or None.
        norm_eps: Epsilon of every norm.
        tied_embeddings: Whether the output head is the input embedding.
        stores_tied_head: Whether the published files hold the tied head a second time (errata 13).
        qk_norm: Whether queries and keys are RMS-normalised per head (Qwen3).
        qkv_bias: Whether the query, key and value projections have a bias (Qwen2).
        num_experts: Experts of each layer; 0 is a plain MLP.
        num_active_experts: Experts that a token is routed to.
        norm_topk_prob: Whether the weights of the chosen experts are scaled to sum to one.
        gated_mlp: Whether the MLP has a gate (three matrices, SwiGLU) or not (two, OPT).
        has_biases: Whether every projection, MLP matrix and norm has a bias (OPT).
        num_positions: Rows of a learned position embedding (OPT); 0 is rotary.
        hf_repo: Hub name of the published weights, or None.

    Raises:
        ValueError: If a size, `rope_theta` or `norm_eps` is not positive, `num_kv_heads` does not divide `num_heads`,
            `head_dim` is odd, the experts do not add up, or an untied head is stored twice.

    Example:
        >>> from kinetics_jax.specs import MODELS
        >>> MODELS["Qwen3-0.6B"].kv_elements_per_token
        57344
        >>> f"{MODELS['Qwen3-30B-A3B'].num_params:,} of which active {MODELS['Qwen3-30B-A3B'].num_active_params:,}"
        '30,532,122,624 of which active 3,353,032,704'
    """

    name: str
    family: str
    num_layers: int
    d_model: int
    mlp_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_len: int
    rope_theta: float = 1e6
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-6
    tied_embeddings: bool = False
    stores_tied_head: bool = False
    qk_norm: bool = True
    qkv_bias: bool = False
    num_experts: int = 0
    num_active_experts: int = 0
    norm_topk_prob: bool = True
    gated_mlp: bool = True
    has_biases: bool = False
    num_positions: int = 0
    hf_repo: str | None = None

    def __post_init__(self) -> None:
        for field in _SIZES:
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1; got {getattr(self, field)} in model {self.name!r}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_kv_heads must divide num_heads; got {self.num_kv_heads} and {self.num_heads} in {self.name!r}. "
                f"Use a divisor of {self.num_heads}."
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even for rotary embeddings; got {self.head_dim} in {self.name!r}")
        if not (self.num_experts == self.num_active_experts == 0 or 1 <= self.num_active_experts <= self.num_experts):
            raise ValueError(
                f"num_active_experts must lie in 1..num_experts, or both be 0; got {self.num_active_experts} and "
                f"{self.num_experts} in {self.name!r}"
            )
        for field in ("rope_theta", "norm_eps"):
            if not getattr(self, field) > 0:
                raise ValueError(f"{field} must be positive; got {getattr(self, field)} in model {self.name!r}")
        if self.num_positions < 0:
            raise ValueError(f"num_positions must not be negative; got {self.num_positions} in model {self.name!r}")
        if self.stores_tied_head and not self.tied_embeddings:
            raise ValueError(f"stores_tied_head needs tied_embeddings; {self.name!r} has an output head of its own")

    @classmethod
    def from_hf_config(cls, config: Mapping[str, Any], *, name: str = "") -> "ModelSpec":
        """Return the geometry that a Hugging Face config describes, of Qwen2, Qwen3, Qwen3-MoE or Llama.

        A geometry of the table `MODELS` comes back as its published spec. Where several models share one (as
        Llama-3.1-8B-Instruct and DeepSeek-R1-Distill-Llama-8B do), `name` picks; without one, the first comes back.

        Args:
            config: The parsed config.json, as transformers 4 or 5 writes it.
            name: Name for a geometry that is not in `MODELS`; empty takes the family's ("Qwen3-custom").

        Returns:
            The spec.

        Raises:
            ValueError: If fields are missing, malformed, unknown or ask for what `models` does not compute; lists all.

        Example:
            >>> from kinetics_jax.specs import MODELS
            >>> ModelSpec.from_hf_config(MODELS["Qwen3-8B"].to_hf_config()).name
            'Qwen3-8B'
            >>> ModelSpec.from_hf_config({"model_type": "gpt2"})
            Traceback (most recent call last):
            ...
            ValueError: cannot read config.json: model_type must be one of 'qwen2', 'qwen3', ...; got 'gpt2'
        """
        from ._models import published  # late: that table is made of this class

        fields, problems = read_hf_config(config)
        spec = None
        if fields:
            try:
                spec = cls(name=name or f"{fields['family']}-custom", **fields)
            except ValueError as error:
                problems.append(str(error))
        if spec is None or problems:
            many = [f"cannot read config.json: {len(problems)} problems", *problems]
            raise ValueError("\n  - ".join(many) if len(problems) > 1 else f"cannot read config.json: {problems[0]}")
        return published(spec)

    def to_hf_config(
        self,
        *,
        dtype: str = "bfloat16",
        bos_token_id: int | None = None,
        eos_token_id: int | None = None,
        pad_token_id: int | None = None,
    ) -> dict[str, Any]:
        """Return the config.json that transformers loads as the architecture of this geometry.

        Args:
            dtype: Dtype of the stored weights.
            bos_token_id: First token of a text, if the model has one.
            eos_token_id: Token that ends a text, if the model has one.
            pad_token_id: Token that fills a batch, if the model has one.

        Returns:
            A dictionary for JSON, spelled so that transformers 4 and 5 both read it.

        Raises:
            ValueError: If the geometry is none of Qwen2's, Qwen3's, Qwen3-MoE's or Llama's.

        Example:
            >>> from kinetics_jax.specs import MODELS
            >>> MODELS["Qwen3-30B-A3B"].to_hf_config()["architectures"]
            ['Qwen3MoeForCausalLM']
        """
        token_ids = {"bos_token_id": bos_token_id, "eos_token_id": eos_token_id, "pad_token_id": pad_token_id}
        return write_hf_config(vars(self), dtype=dtype, token_ids=token_ids)

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "ModelSpec":
        """Return the spec that `to_dict` wrote.

        Raises:
            ValueError: If fields are missing, unknown, of another type or out of range; lists all.

        Example:
            >>> ModelSpec.from_dict({"name": "mine", "family": "Qwen3"})
            Traceback (most recent call last):
            ...
            ValueError: cannot read a ModelSpec: num_layers, d_model, mlp_dim, ... are missing
        """
        problems: list[str] = []
        fields = read_fields(cls, stored, problems)
        if problems:
            raise ValueError(f"cannot read a ModelSpec: {'; '.join(problems)}")
        return cls(**fields)

    def to_dict(self) -> dict[str, Any]:
        """Return every field as a plain value for JSON, a rotary scaling with its kind.

        Example:
            >>> from kinetics_jax.specs import MODELS
            >>> spec = MODELS["Llama-3.1-8B-Instruct"]
            >>> spec.to_dict()["rope_scaling"]["kind"], ModelSpec.from_dict(spec.to_dict()) == spec
            ('llama3', True)
        """
        return plain_fields(self)

    @property
    def group_size(self) -> int:
        """Query heads per KV head, G (the paper's r)."""
        return self.num_heads // self.num_kv_heads

    @property
    def kv_elements_per_token(self) -> int:
        """KV cache elements a token adds over all layers, 2 L K H (the paper's D)."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim

    @property
    def num_embedding_params(self) -> int:
        """Entries of one [V, D] embedding table."""
        return self.vocab_size * self.d_model

    @property
    def num_expert_params(self) -> int:
        """Parameters of one MLP, or of one expert, in one layer."""
        num_matrices = 3 if self.gated_mlp else 2
        biases = (num_matrices - 1) * self.mlp_dim + self.d_model if self.has_biases else 0
        return num_matrices * self.d_model * self.mlp_dim + biases

    @property
    def num_layer_params(self) -> int:
        """Parameters of one decoder layer, router and norms included."""
        return self._num_layer_params(max(self.num_experts, 1))

    @property
    def num_params(self) -> int:
        """Unique parameters: a tied embedding counts once (PAPER errata 13)."""
        return self._num_params(max(self.num_experts, 1))

    @property
    def num_stored_params(self) -> int:
        """Parameters as published, the paper's P.

        The released files of Qwen3-0.6B and 1.7B store the tied head a second time (0.752e9 and 2.03e9),
        and the paper counts them so; Qwen3-4B, tied too, stores it once (4.02e9). PAPER errata 13.
        """
        return self.num_params + self._num_repeated_params

    @property
    def num_matmul_params(self) -> int:
        """Parameters that a token may meet in a matrix product: all but the look-up of embedding and position."""
        return self._num_matmul_params(max(self.num_experts, 1))

    @property
    def num_active_params(self) -> int:
        """Unique parameters that one token uses."""
        return self._num_params(max(self.num_active_experts, 1))

    @property
    def num_active_stored_params(self) -> int:
        """Published parameters that one token uses, the paper's P for a mixture of experts."""
        return self.num_active_params + self._num_repeated_params

    @property
    def num_active_matmul_params(self) -> int:
        """Parameters that one token meets in a matrix product: what FLOPs see."""
        return self._num_matmul_params(max(self.num_active_experts, 1))

    @property
    def _num_repeated_params(self) -> int:
        return self.num_embedding_params if self.stores_tied_head else 0

    def _num_layer_params(self, num_experts: int) -> int:
        kv_width, q_width = self.num_kv_heads * self.head_dim, self.num_heads * self.head_dim
        attention = 2 * self.d_model * (q_width + kv_width)
        biases = q_width + 2 * kv_width if self.qkv_bias or self.has_biases else 0
        biases += self.d_model if self.has_biases else 0
        norms = 2 * self._num_norm_params + (2 * self.head_dim if self.qk_norm else 0)
        router = self.d_model * self.num_experts
        return attention + biases + norms + router + num_experts * self.num_expert_params

    def _num_matmul_params(self, num_experts: int) -> int:
        return self.num_embedding_params + self.num_layers * self._num_layer_params(num_experts) + self._num_norm_params

    def _num_params(self, num_experts: int) -> int:
        num_lookups = (0 if self.tied_embeddings else self.num_embedding_params) + self.num_positions * self.d_model
        return self._num_matmul_params(num_experts) + num_lookups

    @property
    def _num_norm_params(self) -> int:
        return (2 if self.has_biases else 1) * self.d_model
