"""The training loop: one compiled step that draws its own data; the host waits for it every hundred steps only.

A scan over many steps in one call was slower when it was tried: see "Speed" in the notes of the zoo.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float

from kinetics_jax.models import Decoder
from kinetics_jax.specs import ModelSpec
from kinetics_jax.tasks import Pathfind

from ._batches import TrainingBatch, training_batch
from ._checkpoint import Checkpoints
from ._recipe import Recipe

_STEPS_PER_RECORD = 100

_State = tuple[Any, optax.OptState]
"""Weights and optimiser state."""


@dataclass(frozen=True, kw_only=True)
class _Run:
    """Tell runs apart: what a checkpoint must have been saved with to go on from."""

    spec: ModelSpec
    recipe: Recipe


@dataclass(frozen=True, kw_only=True)
class TrainingReport:
    """Tell what a run did.

    Attributes:
        steps: Step numbers at which the loss was recorded.
        losses: Mean loss over the steps since the last record [nats per thought token].
        seconds: Wall time of the run, compilation included [s].
        device: The accelerator it ran on.
    """

    steps: list[int]
    losses: list[float]
    seconds: float
    device: str


def thought_loss(model: Decoder, batch: TrainingBatch) -> Float[Array, ""]:
    """Return the mean cross-entropy over the thought tokens; prompts and padding carry no loss.

    Args:
        model: The model to judge.
        batch: Prompts with reference thoughts.

    Returns:
        The loss [nats per token].
    """
    thought_len = batch.loss_mask.shape[1]
    hidden, _, _ = model.prefill(batch.token_ids[:, :-1])
    logits = model.next_logits(hidden[:, -thought_len:])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.token_ids[:, -thought_len:])
    return jnp.where(batch.loss_mask, losses, 0).sum() / batch.loss_mask.sum(dtype=losses.dtype)


def train(
    spec: ModelSpec,
    recipe: Recipe,
    *,
    task: Pathfind,
    on_progress: Callable[[int, float], None] | None = None,
    checkpoints: Checkpoints | None = None,
) -> tuple[Decoder, TrainingReport]:
    """Train a model from scratch on a task's reference thoughts.

    AdamW with linear warm-up and cosine decay, bfloat16 arithmetic on float32 weights where the device is an
    accelerator, float32 arithmetic on CPU.

    Args:
        spec: The model to train.
        recipe: Every setting of the run.
        task: Where the data come from.
        on_progress: Called with (steps done, mean loss since the last call) about every hundred steps.
        checkpoints: Where to save the state now and then, and to go on from if something is there; None saves nothing.

    Returns:
        The trained model in float32, and the report. Ctrl-C propagates: nothing is returned.

    Raises:
        ValueError: If the checkpoints are of another model or recipe.

    References:
        Decoupled weight decay (arXiv 1711.05101).
    """
    started = time.perf_counter()
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    graph, weights = nnx.split(Decoder(spec, dtype=dtype, rngs=nnx.Rngs(recipe.seed)))
    optimizer = _make_optimizer(recipe)
    state = (weights, optimizer.init(weights))
    run_step = _compiled_step(graph, optimizer, recipe, task)

    run = _Run(spec=spec, recipe=recipe)
    saved = None if checkpoints is None else checkpoints.restore(run, state)
    state, record = saved or (state, {"steps": [], "losses": [], "seconds": 0.0})
    started -= record["seconds"]
    recent = []
    for step in range(max(record["steps"], default=0), recipe.num_steps):
        state, loss = run_step(state, jnp.asarray(step))
        recent.append(loss)
        if len(recent) < _STEPS_PER_RECORD and step + 1 < recipe.num_steps:
            continue
        record["steps"].append(step + 1)
        record["losses"].append(float(jnp.stack(recent).mean()))
        record["seconds"] = time.perf_counter() - started
        recent.clear()
        if checkpoints is not None:
            checkpoints.save(run, state, record)
        if on_progress is not None:
            on_progress(step + 1, record["losses"][-1])
    trained = Decoder(spec, rngs=nnx.Rngs(recipe.seed))
    nnx.update(trained, state[0])
    return trained, TrainingReport(**record, device=jax.devices()[0].device_kind)


def _compiled_step(
    graph: nnx.GraphDef[Decoder], optimizer: optax.GradientTransformation, recipe: Recipe, task: Pathfind
) -> Callable[[_State, Array], tuple[_State, Array]]:
    """Return the jitted step: (weights and optimiser state, step number) to the next state and the loss.

    The step number is all that comes from the host; the batch is drawn from it on the device.
    """

    @partial(jax.jit, donate_argnums=0)
    def run_step(state: _State, step: Array) -> tuple[_State, Array]:
        weights, optimizer_state = state
        batch = training_batch(
            step,
            batch_size=recipe.batch_size,
            depth_weights=recipe.depth_weights,
            max_gen_len=task.max_gen_len + 1,
        )
        loss, gradient = jax.value_and_grad(lambda w: thought_loss(nnx.merge(graph, w), batch))(weights)
        updates, optimizer_state = optimizer.update(gradient, optimizer_state, weights)
        return (optax.apply_updates(weights, updates), optimizer_state), loss

    return run_step


def _make_optimizer(recipe: Recipe) -> optax.GradientTransformation:
    """Return clipped AdamW on the recipe's schedule; norms are not decayed."""
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=recipe.learning_rate,
        warmup_steps=recipe.warmup_steps,
        decay_steps=recipe.num_steps,
        end_value=recipe.learning_rate / 100,
    )

    def is_matrix(weights):
        return jax.tree.map(lambda weight: weight.ndim > 1, weights)

    return optax.chain(
        optax.clip_by_global_norm(recipe.max_grad_norm),
        optax.adamw(schedule, b1=0.9, b2=0.98, weight_decay=recipe.weight_decay, mask=is_matrix),
    )
