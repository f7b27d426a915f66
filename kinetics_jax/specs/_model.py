"""Transformer geometry as data: what `models` builds and `cost` prices. Holds no arrays."""

from dataclasses import dataclass

from ._catalog import Catalog

_SIZES = ("num_layers", "d_model", "mlp_dim", "num_heads", "num_kv_heads", "head_dim", "vocab_size", "max_len")


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Describe a decoder-only transformer with grouped-query attention and a SwiGLU MLP.

    Attributes:
        name: The name used in tables, traces and figures.
        family: Models that differ only in size share a family ("Qwen3", "Kinetics-Mini").
        num_layers: Decoder layers, L.
        d_model: Residual width, D.
        mlp_dim: Hidden width of the MLP, F.
        num_heads: Query heads, N.
        num_kv_heads: Key-value heads, K; must divide `num_heads`.
        head_dim: Width of one head, H. Explicit: it is *not* d_model / num_heads in Qwen3-0.6B.
        vocab_size: Rows of the embedding, V.
        max_len: Longest context the model was trained for [tokens].
        rope_theta: Base of the rotary frequencies.
        norm_eps: Epsilon of every RMSNorm.
        tied_embeddings: Whether the output head is the input embedding.
        qk_norm: Whether queries and keys are RMS-normalised per head (Qwen3).
        hf_repo: Hub name of the published weights, or None.

    Raises:
        ValueError: If a size is not positive, `num_kv_heads` does not divide `num_heads`, or `head_dim` is odd.

    Example:
        >>> MODELS["Qwen3-0.6B"].kv_elements_per_token
        57344
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
    norm_eps: float = 1e-6
    tied_embeddings: bool = False
    qk_norm: bool = True
    hf_repo: str | None = None

    def __post_init__(self) -> None:
        for field in _SIZES:
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1; got {getattr(self, field)} in model {self.name!r}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_kv_heads must divide num_heads; got {self.num_kv_heads} and {self.num_heads} in {self.name!r}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even for rotary embeddings; got {self.head_dim} in {self.name!r}")

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
    def num_layer_params(self) -> int:
        """Parameters of one decoder layer, norms included."""
        attention = 2 * self.d_model * self.head_dim * (self.num_heads + self.num_kv_heads)
        norms = 2 * self.d_model + (2 * self.head_dim if self.qk_norm else 0)
        return attention + 3 * self.d_model * self.mlp_dim + norms

    @property
    def num_params(self) -> int:
        """Unique parameters: a tied embedding counts once (PAPER errata 13)."""
        num_tables = 1 if self.tied_embeddings else 2
        return num_tables * self.num_embedding_params + self.num_layers * self.num_layer_params + self.d_model

    @property
    def num_stored_params(self) -> int:
        """Parameters as published, the paper's P.

        The released files of Qwen3-0.6B and 1.7B store the tied head a second time (0.752e9 and 2.03e9),
        and the paper counts them so; Qwen3-4B, tied too, stores it once (4.02e9). PAPER errata 13.
        """
        stores_head_twice = self.tied_embeddings and self.name in _STORES_TIED_HEAD
        return self.num_params + (self.num_embedding_params if stores_head_twice else 0)

    @property
    def num_matmul_params(self) -> int:
        """Parameters that a token meets in a matrix product: all but the input embedding look-up."""
        return self.num_embedding_params + self.num_layers * self.num_layer_params + self.d_model


_STORES_TIED_HEAD = frozenset({"Qwen3-0.6B", "Qwen3-1.7B"})


def _qwen3(size: str, layers: int, d_model: int, mlp: int, heads: int, *, tied: bool) -> ModelSpec:
    """Build one row of the Qwen3 technical report's Table 1 (arXiv 2505.09388)."""
    return ModelSpec(
        name=f"Qwen3-{size}",
        family="Qwen3",
        num_layers=layers,
        d_model=d_model,
        mlp_dim=mlp,
        num_heads=heads,
        num_kv_heads=8,
        head_dim=128,
        vocab_size=151_936,
        max_len=40_960,
        tied_embeddings=tied,
        hf_repo=f"Qwen/Qwen3-{size}",
    )


def _mini(size: str, layers: int, d_model: int, mlp: int, heads: int) -> ModelSpec:
    """Build one size of the embedded family; KV per token grows 3x while parameters grow 55x, as in Qwen3."""
    return ModelSpec(
        name=f"Kinetics-Mini-{size}",
        family="Kinetics-Mini",
        num_layers=layers,
        d_model=d_model,
        mlp_dim=mlp,
        num_heads=heads,
        num_kv_heads=2,
        head_dim=32,
        vocab_size=64,
        max_len=1024,
        rope_theta=10_000.0,
        tied_embeddings=True,
    )


MODELS = Catalog(
    "model",
    {
        spec.name: spec
        for spec in (
            _qwen3("0.6B", 28, 1024, 3072, 16, tied=True),
            _qwen3("1.7B", 28, 2048, 6144, 16, tied=True),
            _qwen3("4B", 36, 2560, 9728, 32, tied=True),
            _qwen3("8B", 36, 4096, 12_288, 32, tied=False),
            _qwen3("14B", 40, 5120, 17_408, 40, tied=False),
            _qwen3("32B", 64, 5120, 25_600, 64, tied=False),
            _mini("0.1M", 2, 64, 192, 4),
            _mini("0.6M", 3, 128, 384, 4),
            _mini("1.7M", 4, 192, 576, 6),
            _mini("7M", 6, 320, 960, 10),
        )
    },
)
