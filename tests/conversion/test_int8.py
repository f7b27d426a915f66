"""Rounding to int8 by hand, its bound for any weights, and what it does to the logits of a trained model."""

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from safetensors.numpy import load_file

from checkpoints_conversion import _int8, load_checkpoint, logit_error, quantise, quantise_leaf
from kinetics_jax.models import Decoder, abstract_decoder
from kinetics_jax.specs import ModelSpec
from kinetics_jax.zoo import model_folder
from tests.conversion.make_golden_logits import GOLDEN

HEAD = "lm_head.kernel"


def rounded(path: str, leaf: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    leaves = quantise_leaf(path, leaf)
    assert list(leaves) == [path, f"{path}_scale"]
    values, scale = leaves.values()
    assert (values.dtype, scale.dtype) == (np.int8, np.float32)
    assert values.shape == leaf.shape
    return values, scale


def test_rounding_by_hand():
    # Channels with scale 1, 1/4 and 0; ties go to the even neighbour.
    columns = [[127.0, 0.5, 1.5, -2.5], [-31.75, 0.125, 0.375, 0.5], [0.0, 0.0, 0.0, 0.0]]
    values, scale = rounded(HEAD, np.array(columns, np.float32).T)
    assert scale.tolist() == [1.0, 0.25, 0.0]
    assert values.T.tolist() == [[127, 0, 2, -2], [-127, 0, 2, 2], [0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("path", "shape", "inputs"),
    [
        ("layers.0.q_proj.kernel", (5, 3, 2), (0,)),
        ("layers.11.v_proj.kernel", (5, 3, 2), (0,)),
        ("layers.1.o_proj.kernel", (3, 2, 5), (0, 1)),
        ("layers.1.mlp.down_proj.kernel", (4, 5), (0,)),
        ("layers.1.mlp.gate_proj", (3, 4, 5), (1,)),  # three experts
        ("layers.1.mlp.gate_proj", (4, 5), (0,)),  # one of them
        ("lm_head.kernel", (4, 5), (0,)),
    ],
)
def test_every_output_channel_has_its_scale(path: str, shape: tuple[int, ...], inputs: tuple[int, ...]):
    leaf = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    values, scale = rounded(path, leaf)
    np.testing.assert_array_equal(scale, np.abs(leaf).max(axis=inputs) / np.float32(127))
    np.testing.assert_array_equal(values, np.rint(leaf / np.expand_dims(scale, inputs)))


@pytest.mark.parametrize(
    "path",
    [
        "embed.embedding",
        "final_norm.scale",
        "layers.0.q_norm.scale",
        "layers.0.q_proj.bias",
        "layers.0.mlp.router.kernel",
    ],
)
def test_other_leaves_keep_their_floats(path: str):
    leaf = np.ones((4, 4), np.float32)
    assert quantise_leaf(path, leaf) == {path: leaf}


@given(
    leaf=arrays(
        np.float32, array_shapes(min_dims=2, max_dims=2, max_side=6), elements=st.floats(-(2.0**99), 2.0**99, width=32)
    )
)
def test_rounding_moves_no_weight_by_more_than_half_a_step(leaf: np.ndarray):
    values, scale = rounded(HEAD, leaf)
    largest = np.abs(leaf).max(axis=0)
    error = np.abs(leaf.astype(np.float64) - values * scale.astype(np.float64))
    bound = np.where(largest < 1.5e-36, largest, scale / 2 * (1 + 2e-5))  # half a step of 127 in float32: 127 * 2^-23
    assert (error <= bound).all()
    assert (np.abs(values).max(axis=0) == np.where(scale > 0, 127, 0)).all()


def test_stored_layout_dtype_and_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch):
    """Converters hand over transposed views of bfloat16, and no float32 copy of a whole tensor is made."""
    stored = np.random.default_rng(1).normal(size=(7, 6)).astype(jnp.bfloat16)
    wanted = rounded("layers.0.q_proj.kernel", np.ascontiguousarray(stored.T).astype(np.float32).reshape(6, 7, 1))
    monkeypatch.setattr(_int8, "_BLOCK_LEN", 13)  # two channels
    for got, want in zip(rounded("layers.0.q_proj.kernel", stored.T.reshape(6, 7, 1)), wanted, strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(bad: float):
    leaf = np.ones((3, 3), np.float32)
    leaf[1, 2] = bad
    with pytest.raises(ValueError, match=rf"leaf lm_head.kernel must have finite weights; got {bad}"):
        quantise_leaf(HEAD, leaf)


def test_rounding_twice_is_refused():
    with pytest.raises(ValueError, match=r"leaf lm_head.kernel is int8 already"):
        quantise_leaf(HEAD, np.ones((3, 3), np.int8))


@pytest.mark.parametrize("changes", [{}, {"tied_embeddings": False}, {"num_experts": 4, "num_active_experts": 2}])
def test_quantised_decoder_has_the_leaves_that_int8_decoders_ask_for(
    changes: dict, tiny_spec: ModelSpec, random_decoder: Callable[..., Decoder]
):
    spec = replace(tiny_spec, **changes)
    model = random_decoder(spec, dtype=jnp.bfloat16)
    int8 = quantise(model)
    wanted = abstract_decoder(spec, dtype=jnp.bfloat16, int8=True)
    assert nnx.split(int8)[0] == nnx.split(wanted)[0]

    def shapes(decoder: Decoder) -> dict:
        return {path: (leaf.shape, leaf.dtype) for path, leaf in nnx.to_flat_state(nnx.state(decoder))}

    assert shapes(int8) == shapes(wanted)
    before = dict(nnx.to_flat_state(nnx.state(model)))
    assert {leaf.dtype for leaf in before.values()} == {jnp.dtype("bfloat16")}
    for path, leaf in nnx.to_flat_state(nnx.state(int8)):
        if leaf.dtype == jnp.bfloat16:
            assert leaf[...] is before[path][...]


@pytest.mark.parametrize(
    # Measured on 64 positions, logits up to 38: 0.1M differs by 1.19 at most, 0.056 on average, KL 0.0017 nats, one
    # position prefers another token; 1.7M (logits up to 27) by 0.29, 0.017, 1.8e-4, one position.
    ("name", "max_abs", "mean_abs", "kl_nats"),
    [("Kinetics-Mini-0.1M", 2.5, 0.1, 4e-3), ("Kinetics-Mini-1.7M", 0.6, 0.035, 4e-4)],
)
def test_logits_of_trained_models_stay_close(name: str, max_abs: float, mean_abs: float, kl_nats: float):
    golden = load_file(GOLDEN / f"{name}.safetensors")
    model = quantise(load_checkpoint(model_folder(name)))
    logits = jax.jit(Decoder.__call__)(model, jnp.asarray(golden["token_ids"], jnp.int32))
    error = logit_error(golden["logits"], logits[:, golden["positions"]])
    assert mean_abs / 4 < error.mean_abs < mean_abs  # rounded, and not by more than it should be
    assert error.max_abs < max_abs
    assert 0 < error.kl_nats < kl_nats
    assert error.top1_agreement > 0.95


def test_logit_error_by_hand():
    wanted = np.log([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]])
    error = logit_error(wanted, np.log([[0.25, 0.5, 0.25], [0.1, 0.1, 0.8]]) + 3)
    assert error.max_abs == pytest.approx(3 + np.log(2))
    assert error.mean_abs == pytest.approx(3)
    assert error.kl_nats == pytest.approx(np.log(2) / 8)
    assert (error.top1_agreement, error.num_positions) == (0.5, 2)


def test_logit_error_is_no_number_where_a_logit_is_none():
    error = logit_error(np.ones((1, 3)), np.array([[1.0, np.nan, 0.0]]))
    assert np.isnan([error.max_abs, error.mean_abs, error.kl_nats]).all()


@pytest.mark.parametrize("shape", [(2, 4), (1, 3), (0, 3)])
def test_logits_of_another_shape_are_refused(shape: tuple[int, ...]):
    reference = np.zeros((0, 3) if shape[0] == 0 else (2, 3))
    with pytest.raises(ValueError, match="logits must have the shape of the reference"):
        logit_error(reference, np.zeros(shape))
