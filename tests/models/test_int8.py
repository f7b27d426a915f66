"""Decoders with int8 weights against decoders that hold the same weights as floats."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from checkpoints_conversion import quantise
from kinetics_jax.attention import init_shared_cache, write_prompt
from kinetics_jax.models import Decoder, abstract_decoder
from kinetics_jax.models._experts import Int8Experts, mix_experts
from kinetics_jax.models._linear import Linear
from kinetics_jax.specs import MODELS, Dense
from tests.models.test_decoder import reference_logits
from tests.models.test_experts import SHARED, Operands, by_hand, draw
from tests.models.tiny_models import VARIANTS, random_decoder

TOKEN_IDS = np.random.default_rng(1).integers(0, 32, 9)
PROMPT_LEN = 5


def dequantised(int8: Decoder) -> Decoder:
    """Return the float decoder whose weights are the int8 ones times their scales."""
    leaves = dict(nnx.to_flat_state(nnx.state(int8)))
    graphdef, state = nnx.split(abstract_decoder(int8.spec, dtype=int8.dtype))
    filled = []
    for path, leaf in nnx.to_flat_state(state):
        weights = leaves[path][...]
        scale = leaves.get((*path[:-1], f"{path[-1]}_scale"))
        if scale is not None:
            num_stacked = int("kernel" not in path)
            num_inputs = weights.ndim - scale.ndim
            steps = jnp.expand_dims(scale[...], tuple(range(num_stacked, num_stacked + num_inputs)))
            weights = weights.astype(jnp.float32) * jnp.broadcast_to(steps, weights.shape)
        filled.append((path, leaf.replace(weights)))
    return nnx.merge(graphdef, nnx.from_flat_state(filled))


@jax.jit
def prefilled_and_decoded(model: Decoder, token_ids: jax.Array) -> jax.Array:
    hidden, keys, values = model.prefill(token_ids[None, :PROMPT_LEN])
    gen_len = token_ids.shape[0] - PROMPT_LEN
    cache = init_shared_cache(model.spec, num_trials=1, max_prompt_len=PROMPT_LEN, max_gen_len=gen_len, page_len=4)
    cache = write_prompt(cache, keys[:, 0], values[:, 0], PROMPT_LEN)

    def step(cache, token):
        logits, cache = model.decode_step(token[None], cache, Dense())
        return cache, logits[0]

    return jnp.concatenate([model.next_logits(hidden[0]), jax.lax.scan(step, cache, token_ids[PROMPT_LEN:])[1]])


def int8_linear(**arrays: np.ndarray) -> Linear:
    linear = Linear((2,), (3,), use_bias="bias" in arrays, dtype="float32", param_dtype="float32", rngs=nnx.Rngs(0))
    for name, array in arrays.items():
        setattr(linear, name, nnx.Param(jnp.asarray(array)))
    return linear


def test_linear_by_hand():
    linear = int8_linear(
        kernel=np.array([[1, -127, 0], [2, 127, 3]], np.int8),
        kernel_scale=np.array([0.5, 1.0, 2.0], np.float32),
        bias=np.array([10.0, 0.0, -1.0], np.float32),
    )
    hidden = jnp.array([[1.0, 1.0], [2.0, -1.0]])
    assert linear(hidden).tolist() == [[11.5, 0.0, 5.0], [10.0, -381.0, -7.0]]
    assert linear.product(hidden[0]).tolist() == [1.5, 0.0, 6.0]


def test_bfloat16_products_are_scaled_before_they_are_rounded():
    """257 times 1 / 257: as bfloat16 the product would be 256 first."""
    linear = int8_linear(
        kernel=np.array([[127, 0, 0], [3, 0, 0]], np.int8), kernel_scale=np.full(3, 1 / 257, np.float32)
    )
    linear.dtype = jnp.dtype("bfloat16")
    result = linear(jnp.array([2.0, 1.0], jnp.bfloat16))
    assert result.dtype == jnp.bfloat16
    assert result.tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("name", ["Qwen2, untied, Llama 3 rotary", "experts, MQA, YaRN"])
def test_prefill_and_decode_compute_what_the_int8_weights_say(name: str):
    int8 = quantise(random_decoder(replace(VARIANTS[name], num_layers=1)))
    logits = prefilled_and_decoded(int8, jnp.asarray(TOKEN_IDS))
    np.testing.assert_allclose(logits, reference_logits(dequantised(int8), TOKEN_IDS), atol=1e-4)


@pytest.mark.parametrize("name", VARIANTS)
def test_int8_decoder_in_bfloat16_gives_float32_logits(name: str):
    with jax.numpy_dtype_promotion("standard"):  # jax.nn.dot_product_attention widens bfloat16
        model = abstract_decoder(VARIANTS[name], dtype="bfloat16", int8=True)
        assert nnx.eval_shape(lambda model: model(jnp.asarray(TOKEN_IDS[None])), model).dtype == jnp.float32


def test_weights_of_a_real_size_take_a_byte_each():
    leaves = jax.tree.leaves(nnx.state(abstract_decoder(MODELS["Qwen3-8B"], dtype="bfloat16", int8=True)))
    in_layer = 4096 * (32 + 8 + 8 + 32) * 128 + 3 * 4096 * 12_288
    channels_in_layer = (32 + 8 + 8) * 128 + 4096 + 2 * 12_288 + 4096
    num_weights = {dtype: sum(leaf.size for leaf in leaves if leaf.dtype == dtype) for dtype in ("int8", "float32")}
    assert num_weights == {"int8": 36 * in_layer + 151_936 * 4096, "float32": 36 * channels_in_layer + 151_936}
    num_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    assert num_bytes == pytest.approx(8.82e9, rel=1e-3)  # 16.38e9 in bfloat16


def rounded_experts(operands: Operands) -> tuple[Operands, list[Int8Experts]]:
    """Return whole numbers times powers of two, as floats and as int8."""
    rng = np.random.default_rng(3)
    floats, int8 = [], []
    for kernel in operands[3:]:
        values = rng.integers(-127, 128, kernel.shape).astype(np.int8)
        scale = 2.0 ** rng.integers(-9, -6, (kernel.shape[0], kernel.shape[2])).astype(np.float32)
        floats.append(values * scale[:, None])
        int8.append(Int8Experts(jnp.asarray(values), jnp.asarray(scale)))
    gate, up, down = floats
    return operands._replace(gate=gate, up=up, down=down), int8


@pytest.mark.parametrize("num_tokens", [1, 16])
def test_int8_mixture_equals_the_loop(num_tokens: int):
    operands, int8 = rounded_experts(draw(num_tokens))
    result = jax.jit(mix_experts)(*operands[:3], *int8)
    np.testing.assert_allclose(result, by_hand(operands), rtol=1e-5, atol=1e-5)


def test_int8_mixture_in_bfloat16_stays_close():
    operands, int8 = rounded_experts(draw(11))
    result = jax.jit(mix_experts)(jnp.asarray(operands.hidden, jnp.bfloat16), *operands[1:3], *int8)
    assert result.dtype == jnp.bfloat16
    wanted = by_hand(operands)
    assert np.abs(result.astype(jnp.float32) - wanted).max() < 0.03 * np.abs(wanted).max()  # as floats do


def test_int8_mixture_under_vmap_equals_a_loop():
    operands, int8 = rounded_experts(draw(7, batch=(2,)))
    rows = [
        operands._replace(hidden=hidden, experts=experts, weights=weights)
        for hidden, experts, weights in zip(*operands[:3], strict=True)
    ]
    wanted = [by_hand(row) for row in rows]
    result = jax.jit(jax.vmap(mix_experts, SHARED))(*operands[:3], *int8)
    np.testing.assert_allclose(result, wanted, rtol=1e-5, atol=1e-5)

    one = rows[0]
    gates = Int8Experts(jnp.stack([int8[0].values, -int8[0].values]), jnp.stack([int8[0].scale] * 2))
    result = jax.jit(jax.vmap(mix_experts, (None, None, None, 0, None, None)))(*one[:3], gates, *int8[1:])
    wanted = [by_hand(one), by_hand(one._replace(gate=-one.gate))]
    np.testing.assert_allclose(result, wanted, rtol=1e-5, atol=1e-5)


def test_only_experts_in_use_leave_int8():
    """One token of two experts: a float copy of all five would be most of the memory of a decode step."""
    operands, int8 = rounded_experts(draw(1))
    text = jax.jit(mix_experts).lower(*operands[:3], *int8).as_text()
    assert "tensor<5x6x10xi8>" in text
    assert "tensor<2x6x10xf32>" in text
    assert "tensor<5x6x10xf32>" not in text


def test_tpus_multiply_int8_experts_by_ragged_dot():
    operands, int8 = rounded_experts(draw(3))
    text = jax.jit(mix_experts).trace(*operands[:3], *int8).lower(lowering_platforms=("tpu",)).as_text()
    assert "ragged_dot" in text


def test_int8_experts_have_no_gradient():
    operands, int8 = rounded_experts(draw(3))
    hidden, experts, weights = map(jnp.asarray, operands[:3])
    with pytest.raises(NotImplementedError, match="int8 experts have no gradient"):
        jax.grad(lambda hidden: jnp.sum(mix_experts(hidden, experts, weights, *int8)))(hidden)
