"""Training learns, repeats itself bit for bit, and draws its data inside the compiled step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.core import Tracer

from kinetics_jax.models import Decoder
from kinetics_jax.specs import ModelSpec
from kinetics_jax.tasks import PAD, Pathfind
from kinetics_jax.training import Recipe, TrainingBatch, TrainingReport, _loop, thought_loss, train, training_batch

TASK = Pathfind(max_gen_len=23)
RECIPE = Recipe(num_steps=45, batch_size=4, learning_rate=3e-2, warmup_steps=4, depth_weights=(1.0, 0.0, 0.0, 0.0, 1.0))
TINY = ModelSpec(
    name="tiny",
    family="test",
    num_layers=1,
    d_model=16,
    mlp_dim=16,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    vocab_size=64,
    max_len=512,
    tied_embeddings=True,
)


class Runs(NamedTuple):
    models: list[Decoder]
    reports: list[TrainingReport]
    progress: list[int]
    batches: list[TrainingBatch]


@pytest.fixture(scope="module")
def runs() -> Runs:
    """Train twice with one recipe and one compiled step; keep every batch that the host sees drawn."""
    runs = Runs([], [], [], [])
    steps: list[Callable] = []
    compile_step = _loop._compiled_step

    def compile_once(*args: Any) -> Callable:
        if not steps:
            steps.append(compile_step(*args))
        return steps[0]

    def drawn(*args: Any, **settings: Any) -> TrainingBatch:
        runs.batches.append(training_batch(*args, **settings))
        return runs.batches[-1]

    # Optax's schedules promote the step number to float without a cast.
    with pytest.MonkeyPatch.context() as patch, jax.numpy_dtype_promotion("standard"):
        patch.setattr(_loop, "training_batch", drawn)
        patch.setattr(_loop, "_compiled_step", compile_once)
        patch.setattr(_loop, "_STEPS_PER_RECORD", 10)
        for _ in range(2):
            model, report = train(TINY, RECIPE, task=TASK, on_progress=lambda step, _: runs.progress.append(step))
            runs.models.append(model)
            runs.reports.append(report)
    return runs


@pytest.fixture(scope="module")
def batch() -> TrainingBatch:
    """A batch that no step of the recipe draws."""
    draw = jax.jit(lambda step: training_batch(step, batch_size=16, depth_weights=RECIPE.depth_weights, max_gen_len=24))
    return draw(jnp.asarray(10_000))


def test_loss_falls_clearly_in_a_few_steps(runs: Runs):
    losses = runs.reports[0].losses
    assert losses[-1] < losses[0] - 0.3
    assert losses[-1] < np.log(64) - 0.15  # below all words alike


def test_training_repeats_bit_for_bit(runs: Runs):
    assert runs.reports[0].losses == runs.reports[1].losses
    jax.tree.map(np.testing.assert_array_equal, *map(nnx.state, runs.models))


def test_data_are_drawn_inside_the_one_compiled_step(runs: Runs):
    """The host asks for a batch once, while tracing: afterwards the step number is all that it sends."""
    (batch,) = runs.batches
    assert isinstance(batch.token_ids, Tracer)


def test_data_need_no_host_callback():
    draw = jax.jit(lambda step: training_batch(step, batch_size=2, depth_weights=(1.0,) * 5, max_gen_len=8))
    assert "callback" not in draw.lower(jnp.asarray(0)).as_text()


def test_report_tells_steps_loss_and_device(runs: Runs):
    report = runs.reports[0]
    assert report.steps == [10, 20, 30, 40, 45]
    assert len(report.losses) == 5
    assert report.seconds > 0
    assert report.device == jax.devices()[0].device_kind
    assert runs.progress == report.steps * 2


def test_batch_holds_prompts_thoughts_and_a_mask(batch: TrainingBatch):
    token_ids, mask = np.asarray(batch.token_ids), np.asarray(batch.loss_mask)
    assert token_ids.shape == (16, 294 + 24)
    assert mask.shape == (16, 24)
    np.testing.assert_array_equal(mask, token_ids[:, 294:] != PAD)
    words = np.array(TASK.vocabulary)[token_ids]
    assert set(words[:, 292]) == {"@4", "@8"}  # the two depths with weight
    assert (words[:, 293] == ":").all()
    assert (words[:, 294] == words[:, 290]).all()  # a thought starts at the source


def test_loss_is_the_mean_over_what_the_mask_leaves(runs: Runs, batch: TrainingBatch):
    """By hand from the logits; and words behind the last one that counts may be anything."""
    model, loss = runs.models[0], jax.jit(thought_loss)
    half = batch._replace(loss_mask=batch.loss_mask & (jnp.arange(24) < 12)[None])
    log_probs = np.asarray(jax.jit(lambda model, ids: jax.nn.log_softmax(model(ids)))(model, half.token_ids[:, :-1]))
    thought = np.asarray(half.token_ids)[:, 294:]
    said = np.take_along_axis(log_probs[:, 293:], thought[..., None], axis=-1)[..., 0]
    assert float(loss(model, half)) == pytest.approx(-said[np.asarray(half.loss_mask)].mean(), rel=1e-5)
    garbled = half._replace(token_ids=half.token_ids.at[:, 294 + 12 :].set(63))
    assert float(loss(model, garbled)) == float(loss(model, half))
