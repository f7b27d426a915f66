"""The models that have a name. Geometry from each publisher's config.json; counts are derived and tested."""

from dataclasses import replace

from ._catalog import Catalog
from ._model import ModelSpec
from ._rope import Llama3Rope


def _qwen3(size: str, layers: int, d_model: int, mlp: int, heads: int, *, tied: bool, twice: bool = False) -> ModelSpec:
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
        stores_tied_head=twice,
        hf_repo=f"Qwen/Qwen3-{size}",
    )


def _qwen3_moe(size: str, layers: int, d_model: int, expert_dim: int, heads: int) -> ModelSpec:
    """Build one row of the Qwen3 technical report's Table 2: 128 experts, 8 active (arXiv 2505.09388)."""
    return ModelSpec(
        name=f"Qwen3-{size}",
        family="Qwen3-MoE",
        num_layers=layers,
        d_model=d_model,
        mlp_dim=expert_dim,
        num_heads=heads,
        num_kv_heads=4,
        head_dim=128,
        vocab_size=151_936,
        max_len=40_960,
        num_experts=128,
        num_active_experts=8,
        hf_repo=f"Qwen/Qwen3-{size}",
    )


def _qwen2(
    name: str,
    layers: int,
    d_model: int,
    mlp: int,
    heads: int,
    kv_heads: int,
    *,
    family: str = "Qwen2.5",
    repo: str | None = None,
    vocab_size: int = 152_064,
    max_len: int = 32_768,
    rope_theta: float = 1e6,
    norm_eps: float = 1e-6,
    tied: bool = False,
) -> ModelSpec:
    """Build a Qwen2 geometry: QKV bias, no QK-norm (arXiv 2412.15115, Table 1; 2501.12948 for the distilled)."""
    return ModelSpec(
        name=name,
        family=family,
        num_layers=layers,
        d_model=d_model,
        mlp_dim=mlp,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=d_model // heads,
        vocab_size=vocab_size,
        max_len=max_len,
        rope_theta=rope_theta,
        norm_eps=norm_eps,
        tied_embeddings=tied,
        qk_norm=False,
        qkv_bias=True,
        hf_repo=repo or f"Qwen/{name}",
    )


def _llama(
    name: str,
    repo: str,
    layers: int,
    d_model: int,
    mlp: int,
    heads: int,
    *,
    family: str = "Llama-3",
    head_dim: int = 128,
    rope_factor: float = 8.0,
    tied: bool = False,
) -> ModelSpec:
    """Build a Llama 3.1 or 3.2 geometry (arXiv 2407.21783, Table 3; model cards for 3.2)."""
    return ModelSpec(
        name=name,
        family=family,
        num_layers=layers,
        d_model=d_model,
        mlp_dim=mlp,
        num_heads=heads,
        num_kv_heads=8,
        head_dim=head_dim,
        vocab_size=128_256,
        max_len=131_072,
        rope_theta=500_000.0,
        rope_scaling=Llama3Rope(factor=rope_factor, low_freq_factor=1.0, high_freq_factor=4.0, original_max_len=8192),
        norm_eps=1e-5,
        tied_embeddings=tied,
        qk_norm=False,
        hf_repo=repo,
    )


def _opt(size: str, layers: int, d_model: int, heads: int) -> ModelSpec:
    """Build one row of OPT's Table 1 (arXiv 2205.01068): geometry only, `models` does not run it.

    OPT-350M is left out: it alone projects its embedding from a narrower width.
    """
    return ModelSpec(
        name=f"OPT-{size}",
        family="OPT",
        num_layers=layers,
        d_model=d_model,
        mlp_dim=4 * d_model,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=d_model // heads,
        vocab_size=50_272,
        max_len=2048,
        norm_eps=1e-5,
        tied_embeddings=True,
        qk_norm=False,
        gated_mlp=False,
        has_biases=True,
        num_positions=2050,
        hf_repo=f"facebook/opt-{size.lower()}" if size != "175B" else None,
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


_DISTILL = "DeepSeek-R1-Distill-Qwen"

MODELS = Catalog(
    "model",
    {
        spec.name: spec
        for spec in (
            _qwen3("0.6B", 28, 1024, 3072, 16, tied=True, twice=True),
            _qwen3("1.7B", 28, 2048, 6144, 16, tied=True, twice=True),
            _qwen3("4B", 36, 2560, 9728, 32, tied=True),
            _qwen3("8B", 36, 4096, 12_288, 32, tied=False),
            _qwen3("14B", 40, 5120, 17_408, 40, tied=False),
            _qwen3("32B", 64, 5120, 25_600, 64, tied=False),
            _qwen3_moe("30B-A3B", 48, 2048, 768, 32),
            _qwen3_moe("235B-A22B", 94, 4096, 1536, 64),
            _qwen2("Qwen2.5-0.5B-Instruct", 24, 896, 4864, 14, 2, vocab_size=151_936, tied=True),
            _qwen2("Qwen2.5-1.5B-Instruct", 28, 1536, 8960, 12, 2, vocab_size=151_936, tied=True),
            _qwen2("Qwen2.5-3B-Instruct", 36, 2048, 11_008, 16, 2, vocab_size=151_936, tied=True),
            _qwen2("Qwen2.5-7B-Instruct", 28, 3584, 18_944, 28, 4),
            _qwen2("Qwen2.5-14B-Instruct", 48, 5120, 13_824, 40, 8),
            _qwen2("Qwen2.5-32B-Instruct", 64, 5120, 27_648, 40, 8),
            _qwen2("Qwen2.5-72B-Instruct", 80, 8192, 29_568, 64, 8),
            *(
                _qwen2(
                    f"{_DISTILL}-{size}",
                    *sizes,
                    family=_DISTILL,
                    repo=f"deepseek-ai/{_DISTILL}-{size}",
                    max_len=131_072,
                    rope_theta=theta,
                    norm_eps=norm_eps,
                    vocab_size=vocab_size,
                )
                for size, sizes, theta, norm_eps, vocab_size in (
                    ("1.5B", (28, 1536, 8960, 12, 2), 1e4, 1e-6, 151_936),
                    ("7B", (28, 3584, 18_944, 28, 4), 1e4, 1e-6, 152_064),
                    ("14B", (48, 5120, 13_824, 40, 8), 1e6, 1e-5, 152_064),
                    ("32B", (64, 5120, 27_648, 40, 8), 1e6, 1e-5, 152_064),
                )
            ),
            _llama(
                "Llama-3.2-1B-Instruct",
                "meta-llama/Llama-3.2-1B-Instruct",
                *(16, 2048, 8192, 32),
                head_dim=64,
                rope_factor=32.0,
                tied=True,
            ),
            _llama(
                "Llama-3.2-3B-Instruct",
                "meta-llama/Llama-3.2-3B-Instruct",
                *(28, 3072, 8192, 24),
                rope_factor=32.0,
                tied=True,
            ),
            _llama("Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-8B-Instruct", 32, 4096, 14_336, 32),
            _llama("Llama-3.1-70B-Instruct", "meta-llama/Llama-3.1-70B-Instruct", 80, 8192, 28_672, 64),
            _llama("Llama-3.1-405B-Instruct", "meta-llama/Llama-3.1-405B-Instruct", 126, 16_384, 53_248, 128),
            _llama(
                "DeepSeek-R1-Distill-Llama-8B",
                "deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
                *(32, 4096, 14_336, 32),
                family="DeepSeek-R1-Distill-Llama",
            ),
            _opt("125M", 12, 768, 12),
            _opt("1.3B", 24, 2048, 32),
            _opt("2.7B", 32, 2560, 32),
            _opt("6.7B", 32, 4096, 32),
            _opt("13B", 40, 5120, 40),
            _opt("30B", 48, 7168, 56),
            _opt("66B", 64, 9216, 72),
            _opt("175B", 96, 12_288, 96),
            _mini("0.1M", 2, 64, 192, 4),
            _mini("0.6M", 3, 128, 384, 4),
            _mini("1.7M", 4, 192, 576, 6),
            _mini("7M", 6, 320, 960, 10),
        )
    },
)


def published(spec: ModelSpec) -> ModelSpec:
    """Return the named model with the geometry of `spec`, or `spec` itself if there is none.

    Where several share it, the one that `spec` is named after, else the first of the table.
    """
    same = [known for known in MODELS.values() if _geometry(known) == _geometry(spec)]
    return next((known for known in same if known.name == spec.name), next(iter(same), spec))


def _geometry(spec: ModelSpec) -> ModelSpec:
    return replace(spec, name="", family="", hf_repo=None, stores_tied_head=False)
