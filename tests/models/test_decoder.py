"""The decoder against a forward pass in NumPy, and its three ways of running against each other."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kinetics_jax.attention import PagedCache, init_shared_cache, write_prompt
from kinetics_jax.models import Decoder, abstract_decoder
from kinetics_jax.models._mlp import MixtureOfExperts
from kinetics_jax.specs import MODELS, BlockTopK, Dense, Llama3Rope, ModelSpec, YarnRope
from tests.models.tiny_models import EXPERTS, TINY, VARIANTS, random_decoder

TOKEN_IDS = np.random.default_rng(1).integers(0, 32, (2, 13))
PROMPT_LEN = 6


def reference_logits(model: Decoder, token_ids: np.ndarray) -> np.ndarray:
    """Run the equations in float64, one sequence, head by head and expert by expert, without code of the package."""
    spec = model.spec
    weights = {path: np.asarray(leaf[...], np.float64) for path, leaf in nnx.to_flat_state(nnx.state(model))}
    table = weights["embed", "embedding"]
    num_tokens, half = len(token_ids), spec.head_dim // 2
    frequency, length = reference_frequencies(spec)
    angle = np.arange(num_tokens)[:, None] * frequency
    causal = np.tril(np.ones((num_tokens, num_tokens), bool))

    def norm(x_TD: np.ndarray, *path: str | int) -> np.ndarray:
        return x_TD / np.sqrt((x_TD**2).mean(-1, keepdims=True) + spec.norm_eps) * weights[path]

    def rotate(x_TH: np.ndarray) -> np.ndarray:
        left, right = length * x_TH[:, :half], length * x_TH[:, half:]
        return np.concatenate(
            [left * np.cos(angle) - right * np.sin(angle), right * np.cos(angle) + left * np.sin(angle)], axis=1
        )

    x_TD = table[token_ids]
    for index in range(spec.num_layers):
        layer = {path[2:]: weight for path, weight in weights.items() if path[:2] == ("layers", index)}
        hidden_TD = norm(x_TD, "layers", index, "attention_norm", "scale")
        for n in range(spec.num_heads):
            k = n // spec.group_size
            q_TH, k_TH, v_TH = (
                hidden_TD @ layer[name, "kernel"][:, head] + (layer[name, "bias"][head] if spec.qkv_bias else 0)
                for name, head in (("q_proj", n), ("k_proj", k), ("v_proj", k))
            )
            if spec.qk_norm:
                q_TH = norm(q_TH, "layers", index, "q_norm", "scale")
                k_TH = norm(k_TH, "layers", index, "k_norm", "scale")
            score_TT = np.where(causal, rotate(q_TH) @ rotate(k_TH).T / np.sqrt(spec.head_dim), -np.inf)
            weight_TT = np.exp(score_TT - score_TT.max(-1, keepdims=True))
            x_TD = x_TD + weight_TT / weight_TT.sum(-1, keepdims=True) @ v_TH @ layer["o_proj", "kernel"][n]
        x_TD = x_TD + reference_mlp(spec, layer, norm(x_TD, "layers", index, "mlp_norm", "scale"))
    head = table.T if spec.tied_embeddings else weights["lm_head", "kernel"]
    return norm(x_TD, "final_norm", "scale") @ head


def reference_mlp(spec: ModelSpec, layer: dict[tuple, np.ndarray], hidden_TD: np.ndarray) -> np.ndarray:
    def swiglu(x_D: np.ndarray, gate_DF: np.ndarray, up_DF: np.ndarray, down_FD: np.ndarray) -> np.ndarray:
        gated = x_D @ gate_DF
        return (gated / (1 + np.exp(-gated)) * (x_D @ up_DF)) @ down_FD

    names = ("gate_proj", "up_proj", "down_proj")
    if not spec.num_experts:
        return swiglu(hidden_TD, *(layer["mlp", name, "kernel"] for name in names))
    mixed_TD = np.zeros_like(hidden_TD)
    for token, x_D in enumerate(hidden_TD):
        share_E = np.exp(x_D @ layer["mlp", "router", "kernel"])
        share_E = share_E / share_E.sum()
        chosen = np.argsort(-share_E)[: spec.num_active_experts]
        total = share_E[chosen].sum() if spec.norm_topk_prob else 1.0
        for expert in chosen:
            kernels = (layer["mlp", name][expert] for name in names)
            mixed_TD[token] += share_E[expert] / total * swiglu(x_D, *kernels)
    return mixed_TD


def reference_frequencies(spec: ModelSpec) -> tuple[np.ndarray, float]:
    """Return the angles from one token to the next, and the factor on what is rotated; theta 100, 8 wide, 64 tokens."""
    plain = spec.rope_theta ** (-np.arange(spec.head_dim // 2) / (spec.head_dim // 2))
    match spec.rope_scaling:
        case Llama3Rope():
            # Turns over 64 tokens: 10.2, 3.22, 1.02, 0.32; more than 4 stay, fewer than 1 are slowed 8 times.
            kept = np.array([1.0, (64 * 100**-0.25 / 2 / np.pi - 1) / 3, (6.4 / 2 / np.pi - 1) / 3, 0.0])
            return plain * (kept + (1 - kept) / 8), 1.0
        case YarnRope():
            # 32 turns would lie before pair 0, one turn at pair 2.02, so the slowing grows over pairs 0 to 3.
            slowed = np.arange(4) / 3
            return plain * (1 - slowed + slowed / 4), 0.1 * np.log(4) + 1
    return plain, 1.0


def prefilled(model: Decoder, *, page_len: int = 4, poison: bool = False) -> PagedCache:
    """Return a cache that holds the first tokens of both sequences' common prompt, TOKEN_IDS[0]."""
    cache = init_shared_cache(
        model.spec, num_trials=2, max_prompt_len=8, max_gen_len=8, page_len=page_len, dtype=model.dtype
    )
    if poison:
        cache = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan) if leaf.ndim > 2 else leaf, cache)
    _, keys, values = jax.jit(Decoder.prefill)(model, jnp.asarray(TOKEN_IDS[:1, :8]))
    return jax.jit(write_prompt)(cache, keys[:, 0], values[:, 0], PROMPT_LEN)


@pytest.fixture(scope="module")
def decode_step() -> Callable:
    return jax.jit(Decoder.decode_step, static_argnums=3)


def decoded_logits(model: Decoder, cache: PagedCache, decode_step: Callable, attention=None) -> np.ndarray:
    """Feed the rest of both rows a token at a time; the logits after each [B, T - PROMPT_LEN, V]."""
    logits = []
    for tokens in TOKEN_IDS[:, PROMPT_LEN:].T:
        step_logits, cache = decode_step(model, jnp.asarray(tokens), cache, attention or Dense())
        logits.append(step_logits)
    assert cache.lengths.tolist() == [TOKEN_IDS.shape[1]] * 2
    return np.stack(logits, axis=1)


def full_logits(model: Decoder) -> np.ndarray:
    """The logits of both rows over the common prompt and each row's own rest, all at once."""
    token_ids = TOKEN_IDS.copy()
    token_ids[1, :PROMPT_LEN] = token_ids[0, :PROMPT_LEN]
    return np.asarray(jax.jit(Decoder.__call__)(model, jnp.asarray(token_ids)))


def test_logits_equal_the_numpy_reference(model: Decoder):
    logits = jax.jit(Decoder.__call__)(model, jnp.asarray(TOKEN_IDS))
    for row in range(2):
        np.testing.assert_allclose(logits[row], reference_logits(model, TOKEN_IDS[row]), atol=1e-4)


def test_prefill_and_decode_steps_equal_the_full_forward(tiny: Decoder, decode_step: Callable):
    """The golden logits of the conversion tests say the same of every family."""
    logits = decoded_logits(tiny, prefilled(tiny), decode_step)
    np.testing.assert_allclose(logits, full_logits(tiny)[:, PROMPT_LEN:], atol=1e-4)


def test_prefill_predicts_what_the_full_forward_predicts(tiny: Decoder):
    hidden, keys, values = jax.jit(Decoder.prefill)(tiny, jnp.asarray(TOKEN_IDS))
    assert keys.shape == values.shape == (2, 2, 13, 2, 8)
    logits = jax.jit(Decoder.__call__)(tiny, jnp.asarray(TOKEN_IDS))
    np.testing.assert_array_equal(jax.jit(Decoder.next_logits)(tiny, hidden), logits)


def test_unwritten_slots_of_the_cache_never_leak(tiny: Decoder, decode_step: Callable):
    clean = decoded_logits(tiny, prefilled(tiny), decode_step)
    poisoned = decoded_logits(tiny, prefilled(tiny, poison=True), decode_step)
    np.testing.assert_array_equal(poisoned, clean)


def test_sparse_step_differs_where_the_budget_is_small(tiny: Decoder, decode_step: Callable):
    clean = decoded_logits(tiny, prefilled(tiny), decode_step)
    sparse = decoded_logits(tiny, prefilled(tiny), decode_step, BlockTopK(page_len=4, num_pages=2))
    # Up to 8 tokens two pages hold all. Two programs: they add in other orders, so equal to rounding, not bit for bit.
    np.testing.assert_allclose(sparse[:, :2], clean[:, :2], atol=1e-5)
    assert (np.abs(sparse[:, 4:] - clean[:, 4:]).max(axis=(1, 2)) > 1e-3).all()


def test_decode_step_compiles_once_for_all_lengths(tiny: Decoder):
    num_traces = 0

    @jax.jit
    def step(model: Decoder, tokens: jax.Array, cache: PagedCache):
        nonlocal num_traces
        num_traces += 1
        return model.decode_step(tokens, cache, Dense())

    decoded_logits(tiny, prefilled(tiny), lambda model, tokens, cache, _: step(model, tokens, cache))
    assert num_traces == 1


def test_bfloat16_stays_close_and_gives_float32_logits(tiny: Decoder, half_tiny: Decoder):
    with jax.numpy_dtype_promotion("standard"):  # jax.nn.dot_product_attention widens bfloat16
        half = full_logits(half_tiny)
    full = full_logits(tiny)
    assert half.dtype == np.float32
    assert np.abs(half - full).max() < 0.05 * np.abs(full).max()  # bfloat16 keeps 8 bits, a few layers lose some


def test_bfloat16_experts_give_float32_logits():
    model = random_decoder(VARIANTS["experts, MQA, YaRN"], dtype="bfloat16")
    with jax.numpy_dtype_promotion("standard"):
        assert jax.eval_shape(model, jnp.asarray(TOKEN_IDS)).dtype == jnp.float32
    mlp = model.layers[0].mlp
    assert isinstance(mlp, MixtureOfExperts)
    experts, weights = mlp.route(jnp.ones((3, 24), jnp.bfloat16))
    assert weights.dtype == jnp.float32
    assert experts.shape == weights.shape == (3, 2)


def shapes(model: Decoder) -> dict[tuple, tuple]:
    return {path: (leaf.shape, leaf.dtype) for path, leaf in nnx.to_flat_state(nnx.state(model))}


@pytest.mark.parametrize("name", [name for name, spec in MODELS.items() if spec.family != "OPT"])
def test_abstract_decoder_has_the_parameters_of_its_spec(name: str):
    spec = MODELS[name]
    leaves = shapes(abstract_decoder(spec, dtype=jnp.bfloat16))
    assert sum(int(np.prod(shape)) for shape, _ in leaves.values()) == spec.num_params
    assert {dtype for _, dtype in leaves.values()} == {jnp.dtype("bfloat16")}
    assert {path[1] for path in leaves if path[0] == "layers"} == set(range(spec.num_layers))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (MODELS["OPT-125M"], "OPT-125M has gated_mlp=False, has_biases=True, num_positions=2050"),
        (replace(TINY, gated_mlp=False), "tiny has gated_mlp=False and"),
        (replace(TINY, has_biases=True), "tiny has has_biases=True and"),
        (replace(TINY, num_positions=64), "tiny has num_positions=64 and"),
    ],
    ids=lambda value: "",
)
def test_geometry_only_specs_are_refused(spec: ModelSpec, message: str):
    for build in (abstract_decoder, partial(Decoder, rngs=nnx.Rngs(0))):
        with pytest.raises(NotImplementedError, match=message):
            build(spec)


@pytest.mark.parametrize("name", ["Kinetics-Mini-1.7M", "tiny experts"])
def test_abstract_decoder_is_the_decoder_without_its_arrays(name: str):
    spec = EXPERTS if name == EXPERTS.name else MODELS[name]
    traced = nnx.eval_shape(lambda: Decoder(spec, rngs=nnx.Rngs(0)))
    abstract = abstract_decoder(spec)
    assert nnx.split(abstract)[0] == nnx.split(traced)[0]
    assert shapes(abstract) == shapes(traced)
    assert isinstance(abstract.spec, ModelSpec)
    assert abstract.spec == spec
