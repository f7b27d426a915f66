"""The mixture of experts against a loop over tokens and experts, under every transformation it must survive."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kinetics_jax.models._experts import mix_experts, tiled_matmul
from tests.models.tiny_models import EXPERTS, random_decoder

SHARED = (0, 0, 0, None, None, None)
"""Batch over tokens with shared kernels, as `vmap` over prompts does."""

tiled = jax.jit(tiled_matmul)
mixed = jax.jit(mix_experts)


class Operands(NamedTuple):
    hidden: np.ndarray
    experts: np.ndarray
    weights: np.ndarray
    gate: np.ndarray
    up: np.ndarray
    down: np.ndarray


def draw(num_tokens: int, *, num_experts: int = 5, num_active: int = 2, batch: tuple[int, ...] = ()) -> Operands:
    rng = np.random.default_rng(num_tokens)
    d_model, mlp_dim = 6, 10
    gate, up, down_T = (rng.normal(size=(3, num_experts, d_model, mlp_dim)) / 3).astype(np.float32)
    scores = rng.random((*batch, num_tokens, num_experts))
    return Operands(
        hidden=rng.normal(size=(*batch, num_tokens, d_model)).astype(np.float32),
        experts=np.argsort(scores, axis=-1)[..., :num_active].astype(np.int32),
        weights=rng.random((*batch, num_tokens, num_active)).astype(np.float32),
        gate=gate,
        up=up,
        down=np.ascontiguousarray(down_T.swapaxes(1, 2)),
    )


def by_hand(operands: Operands) -> np.ndarray:
    """Mix token by token in float64."""
    hidden, experts, weights, *kernels = operands
    gate, up, down = (kernel.astype(np.float64) for kernel in kernels)
    mixed = np.zeros(hidden.shape)
    for token, chosen in enumerate(experts):
        for place, expert in enumerate(chosen):
            gated = hidden[token] @ gate[expert]
            inner = gated / (1 + np.exp(-gated)) * (hidden[token] @ up[expert])
            mixed[token] += weights[token, place] * (inner @ down[expert])
    return mixed


def dense(hidden, experts, weights, gate, up, down) -> jax.Array:
    """Mix by running every expert on every token: wasteful, and plain to differentiate."""
    share = (jax.nn.one_hot(experts, gate.shape[0]) * weights[..., None]).sum(axis=-2)
    inner = jax.nn.silu(jnp.einsum("TD,EDF->TEF", hidden, gate)) * jnp.einsum("TD,EDF->TEF", hidden, up)
    return jnp.einsum("TEF,EFD,TE->TD", inner, down, share)


@pytest.mark.parametrize(
    "group_sizes",
    [[3, 1, 0, 5], [0, 9, 0, 0], [0, 0, 0, 9], [3, 2, 2, 2], [0, 1, 0, 1], [0, 0, 0, 2], [1, 2, 3, 60]],
    ids=str,
)
def test_tiles_multiply_each_group_by_its_kernel(group_sizes: list[int]):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(sum(group_sizes), 6)).astype(np.float32)
    kernels = rng.normal(size=(4, 6, 3)).astype(np.float32)
    wanted = np.einsum("SD,SDF->SF", rows.astype(np.float64), kernels[np.repeat(range(4), group_sizes)])
    np.testing.assert_allclose(tiled(rows, kernels, jnp.asarray(group_sizes)), wanted, atol=1e-5)
    if group_sizes == [3, 1, 0, 5]:  # what TPUs run
        result = jax.lax.ragged_dot(jnp.asarray(rows), jnp.asarray(kernels), jnp.asarray(group_sizes))
        np.testing.assert_allclose(result, wanted, atol=1e-5)


@pytest.mark.parametrize(("num_tokens", "num_experts", "num_active"), [(1, 5, 2), (16, 5, 2), (3, 3, 3)])
def test_mixture_equals_the_loop(num_tokens: int, num_experts: int, num_active: int):
    operands = draw(num_tokens, num_experts=num_experts, num_active=num_active)
    np.testing.assert_allclose(mixed(*operands), by_hand(operands), atol=1e-5)


def test_no_expert_has_a_capacity():
    """All tokens on one expert: none is dropped."""
    operands = draw(16)._replace(experts=np.full((16, 2), 3, np.int32))
    np.testing.assert_allclose(mixed(*operands), by_hand(operands), atol=1e-5)


def test_vmap_over_tokens_and_over_kernels_equals_a_loop():
    operands = draw(7, batch=(2, 3))
    result = jax.jit(jax.vmap(jax.vmap(mix_experts, SHARED), SHARED))(*operands)
    first, *rest = operands
    wanted = [
        [by_hand(Operands(first[i, j], rest[0][i, j], rest[1][i, j], *rest[2:])) for j in range(3)] for i in range(2)
    ]
    np.testing.assert_allclose(result, wanted, atol=1e-5)

    one = draw(7)
    gates = np.stack([one.gate, -one.gate])
    result = jax.jit(jax.vmap(mix_experts, (None, None, None, 0, None, None)))(*one._replace(gate=gates))
    wanted = [by_hand(one), by_hand(one._replace(gate=-one.gate))]
    np.testing.assert_allclose(result, wanted, atol=1e-5)


def test_gradients_equal_those_of_the_dense_mixture():
    """Summed over a batch, so that folding and its way back are part of it."""
    hidden, experts, weights, *kernels = map(jnp.asarray, draw(9, batch=(2,)))

    def loss(mix, hidden, weights, gate, up, down):
        return jnp.sum(jnp.sin(jax.vmap(mix, SHARED)(hidden, experts, weights, gate, up, down)))

    gradient = jax.jit(jax.grad(loss, (1, 2, 3, 4, 5)), static_argnums=0)
    got, wanted = (gradient(mix, hidden, weights, *kernels) for mix in (mix_experts, dense))
    for ours, theirs in zip(got, wanted, strict=True):
        assert np.abs(theirs).max() > 0.1
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_gradients_of_the_routed_mixture_match_differences():
    """The router too is learned: its probabilities scale the experts."""
    graph, state = nnx.split(random_decoder(EXPERTS).layers[0].mlp)
    rng = np.random.default_rng(4)  # no token changes its experts within the step, where the loss would jump
    direction = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) / 5, leaf.dtype), state)
    hidden = rng.normal(size=(2, 4, EXPERTS.d_model)).astype(np.float32)

    def loss(step: jax.Array) -> jax.Array:
        moved = nnx.merge(graph, jax.tree.map(lambda leaf, along: leaf + step * along, state, direction))
        return jnp.sum(jnp.sin(moved(jnp.asarray(hidden))))

    value_and_slope = jax.jit(jax.value_and_grad(loss))
    slope = value_and_slope(jnp.float32(0))[1]
    before, after = (value_and_slope(jnp.float32(step))[0] for step in (-3e-3, 3e-3))
    assert abs(slope) > 0.1
    np.testing.assert_allclose(slope, (after - before) / 6e-3, rtol=0.005)


def test_bfloat16_stays_close():
    operands = draw(11)
    halves = [jnp.asarray(operand, jnp.bfloat16) for operand in operands]
    result = mixed(halves[0], operands.experts, operands.weights, *halves[3:])
    assert result.dtype == jnp.bfloat16
    wanted = by_hand(operands)
    assert np.abs(result.astype(jnp.float32) - wanted).max() < 0.03 * np.abs(wanted).max()


def test_only_tpus_are_given_ragged_dot():
    """Other devices would compute every expert on every row."""
    traced = jax.jit(mix_experts).trace(*draw(3))
    for platform, has_ragged_dot in (("tpu", True), ("cuda", False), ("cpu", False)):
        assert ("ragged_dot" in traced.lower(lowering_platforms=(platform,)).as_text()) == has_ragged_dot
