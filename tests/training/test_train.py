"""Training learns, repeats itself bit for bit, and draws its data inside the compiled step."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kinetics_jax.models import Decoder
from kinetics_jax.specs import ModelSpec
from kinetics_jax.tasks import PAD, Pathfind
from kinetics_jax.training import Recipe, TrainingBatch, TrainingReport, _loop, thought_loss, train, training_batch

TASK = Pathfind(max_gen_len=23)
RECIPE = Recipe(num_steps=40, batch_size=4, learning_rate=1e-2, warmup_steps=4, depth_weights=(1.0, 0.0, 0.0, 0.0, 1.0))
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


class Run(NamedTuple):
    model: Decoder
    report: TrainingReport
    num_batches_traced: int
    num_progress_calls: int


@pytest.fixture(scope="module")
def runs() -> list[Run]:
    """Train twice with one recipe, counting how often the host asks for a batch."""
    runs = []
    for _ in range(2):
        calls: list[int] = []
        batches: list[TrainingBatch] = []

        def counted(*args, batches=batches, **kwargs) -> TrainingBatch:
            batches.append(training_batch(*args, **kwargs))
            return batches[-1]

        # Optax's schedules promote the step number to float without a cast.
        with pytest.MonkeyPatch.context() as patch, jax.numpy_dtype_promotion("standard"):
            patch.setattr(_loop, "training_batch", counted)
            model, report = train(TINY, RECIPE, task=TASK, on_progress=lambda step, _, calls=calls: calls.append(step))
        assert all(isinstance(batch.token_ids, jax.core.Tracer) for batch in batches)
        runs.append(Run(model, report, len(batches), len(calls)))
    return runs


@pytest.fixture(scope="module")
def batch() -> TrainingBatch:
    """A batch that no step of the recipe draws."""
    draw = jax.jit(lambda step: training_batch(step, batch_size=16, depth_weights=RECIPE.depth_weights, max_gen_len=24))
    return draw(jnp.asarray(10_000))


def test_loss_falls_clearly_in_a_few_steps(runs: list[Run], batch: TrainingBatch):
    loss = jax.jit(thought_loss)
    untrained = jax.tree.map(lambda weight: weight, runs[0].model)
    nnx.update(untrained, jax.tree.map(lambda weight: weight * 0 if weight.ndim > 1 else weight, nnx.state(untrained)))
    before, after = float(loss(untrained, batch)), float(loss(runs[0].model, batch))
    assert before == pytest.approx(np.log(64), rel=1e-5)  # all words alike
    assert after < before - 0.5


def test_training_repeats_bit_for_bit(runs: list[Run]):
    one, other = runs
    assert one.report.losses == other.report.losses
    jax.tree.map(np.testing.assert_array_equal, nnx.state(one.model), nnx.state(other.model))


def test_data_are_drawn_inside_the_one_compiled_step(runs: list[Run]):
    """The host asks for a batch once, while tracing: afterwards the step number is all that it sends."""
    assert runs[0].num_batches_traced == 1


def test_data_need_no_host_callback():
    draw = jax.jit(lambda step: training_batch(step, batch_size=2, depth_weights=(1.0,) * 5, max_gen_len=8))
    assert "callback" not in draw.lower(jnp.asarray(0)).as_text()


def test_report_tells_steps_loss_and_device(runs: list[Run]):
    report = runs[0].report
    assert report.steps == [40]
    assert 1 < report.losses[0] < np.log(64) + 1
    assert report.seconds > 0
    assert report.device == jax.devices()[0].device_kind
    assert runs[0].num_progress_calls == 1


def test_batch_holds_prompts_thoughts_and_a_mask(batch: TrainingBatch):
    token_ids, mask = np.asarray(batch.token_ids), np.asarray(batch.loss_mask)
    assert token_ids.shape == (16, 294 + 24)
    assert mask.shape == (16, 24)
    np.testing.assert_array_equal(mask, token_ids[:, 294:] != PAD)
    words = np.array(TASK.vocabulary)[token_ids]
    assert set(words[:, 292]) == {"@4", "@8"}  # the two depths with weight
    assert (words[:, 293] == ":").all()
    assert (words[:, 294] == words[:, 290]).all()  # a thought starts at the source


def test_loss_ignores_prompts_and_padding(runs: list[Run], batch: TrainingBatch):
    """The mask decides: what is masked out may hold any word, the mean is over the rest."""
    model, loss = runs[0].model, jax.jit(thought_loss)
    half = batch._replace(loss_mask=batch.loss_mask & (jnp.arange(24) < 12))
    garbled = half._replace(token_ids=half.token_ids.at[:, 294 + 12 :].set(63))
    assert float(loss(model, garbled)) == float(loss(model, half))
    assert float(loss(model, half)) != float(loss(model, batch))
