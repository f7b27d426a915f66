"""`kinetics train`: a whole folder or none, the shipped recipes, and an interrupted run that ends the same."""

import dataclasses
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from kinetics_jax.specs import MODELS
from kinetics_jax.training import (
    MINI_RECIPES,
    Checkpoints,
    Recipe,
    TrainingBatch,
    _loop,
    mini_recipe,
    read_training_record,
)
from kinetics_jax.zoo import MINI_MODELS, load_zoo_model, model_folder

NAME = "Kinetics-Mini-0.1M"
TINY = Recipe(num_steps=4, warmup_steps=1, batch_size=2)
TINY_SPEC = dataclasses.replace(MODELS[NAME], num_layers=1)


def tiny_batch(step: jax.Array, *, batch_size: int, **_: object) -> TrainingBatch:
    """Return random tokens that depend on the step; the task's own batches take longer to compile than the model."""
    token_ids = jax.random.randint(jax.random.key(step), (batch_size, 12), 0, 64)
    return TrainingBatch(token_ids=token_ids, loss_mask=token_ids[:, 4:] > 0)


@pytest.fixture
def tiny_recipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make the recipe of the smallest size a matter of seconds, with a record of the loss every two steps."""
    monkeypatch.setitem(MINI_RECIPES, NAME, TINY)
    monkeypatch.setattr(_loop, "_STEPS_PER_RECORD", 2)
    monkeypatch.setattr(_loop, "training_batch", tiny_batch)
    monkeypatch.setattr("kinetics_jax.cli.train.MODELS", {NAME: TINY_SPEC})
    monkeypatch.setattr("kinetics_jax.cli.train.Checkpoints", partial(Checkpoints, interval=2))
    compiled = {}  # the runs of one test share the compiled step; their optimisers are alike
    compile_step = _loop._compiled_step

    def compiled_step(graph, optimizer, recipe, task):
        if recipe not in compiled:
            compiled[recipe] = compile_step(graph, optimizer, recipe, task)
        return compiled[recipe]

    monkeypatch.setattr(_loop, "_compiled_step", compiled_step)
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam mixes float and int32
        yield


@pytest.mark.usefixtures("tiny_recipe")
def test_an_interrupted_run_continues_to_the_same_weights(kinetics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole, resumed, checkpoints = tmp_path / "whole", tmp_path / "resumed", tmp_path / "checkpoints"
    finished = kinetics("train", NAME, "--out", whole)
    assert finished.code == 0, finished.err
    assert str(whole) in finished.out

    save = Checkpoints.save

    def save_and_stop(self, *args):
        save(self, *args)
        raise KeyboardInterrupt

    resume = ("train", NAME, "--out", resumed, "--checkpoints", checkpoints)
    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "save", save_and_stop)
        assert kinetics(*resume).code != 0
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "checkpoints"}, "something half-written is left"

    assert kinetics(*resume).code == 0
    weights = [(folder / "model.safetensors").read_bytes() for folder in (whole, resumed)]
    assert weights[0] == weights[1]
    records = [read_training_record(folder).report for folder in (whole, resumed)]
    assert records[0].steps == records[1].steps == [2, 4]
    assert records[0].losses == records[1].losses
    check_folder(whole)

    other = kinetics("train", NAME, "--out", tmp_path / "other", "--checkpoints", checkpoints, "--seed", 1)
    assert other.code == 2
    assert "another run" in other.err
    assert not (tmp_path / "other").exists()


def check_folder(folder: Path) -> None:
    """The folder has the layout of the zoo and loads like it."""
    shipped = model_folder(NAME)
    content, wanted = (json.loads((at / "training.json").read_text()) for at in (folder, shipped))
    assert content.keys() == wanted.keys()
    assert content["recipe"].keys() == wanted["recipe"].keys()
    assert content["versions"].keys() == wanted["versions"].keys()
    assert content["recipe"] == {**dataclasses.asdict(TINY), "depth_weights": list(TINY.depth_weights)}
    config, *tokenizer = (
        [json.loads((at / file).read_text()) for at in (folder, shipped)]
        for file in ("config.json", "tokenizer.json", "tokenizer_config.json")
    )
    assert config[0] == {**config[1], "num_hidden_layers": 1}
    assert all(written == wanted for written, wanted in tokenizer)
    assert folder.stat().st_mode & 0o777 == 0o755
    loaded = load_zoo_model(str(folder))
    assert loaded.model.spec.num_params == TINY_SPEC.num_params
    assert np.isfinite(np.asarray(loaded.model.embed.embedding[...])).all()
    assert loaded.weights_hash != load_zoo_model(NAME).weights_hash


@pytest.mark.parametrize("name", MINI_MODELS)
def test_recipes_are_those_of_the_shipped_weights(name: str):
    assert read_training_record(model_folder(name)).recipe == MINI_RECIPES[name] == mini_recipe(name)


def test_a_short_run_shortens_the_warm_up():
    assert mini_recipe(NAME, num_steps=100).warmup_steps == 10
    assert mini_recipe(NAME, num_steps=20_000, seed=3).warmup_steps == MINI_RECIPES[NAME].warmup_steps
    assert mini_recipe(NAME, seed=3) == dataclasses.replace(MINI_RECIPES[NAME], seed=3)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("Qwen3-8B", "--out", "new"), ("no recipe for model 'Qwen3-8B'", NAME)),
        ((NAME, "--out", "new", "--steps", 0), ("num_steps must be at least 1; got 0",)),
        ((NAME, "--out", "new", "--steps", -3), ("num_steps must be at least 1; got -3",)),
        ((NAME, "--out", "file/new"), ("file",)),
        ((NAME, "--out", "full"), ("full", "not an empty folder")),
        ((NAME, "--out", "file"), ("file", "not an empty folder")),
    ],
)
def test_a_slip_is_seen_before_any_training(kinetics, tmp_path: Path, monkeypatch, args, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("kinetics_jax.cli.train.run_training", None)
    Path("file").write_text("")
    Path("full").mkdir()
    Path("full/kept").write_text("")
    finished = kinetics("train", *args)
    assert finished.code == 2
    assert finished.err.splitlines()[-1].startswith("Error: ")
    assert all(words in finished.err for words in said)
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")} == {"file", "full", "full/kept"}


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"steps": [1], "losses": [1.0]}',
        '{"steps": [], "losses": [], "seconds": 1.0, "device": "", "recipe": {"num_steps": 9, "warmup_steps": 0, '
        '"depth_weights": [1, 1, 1, 1, 1]}, "versions": {}}',
    ],
)
def test_a_damaged_record_is_named(tmp_path: Path, text: str):
    (tmp_path / "training.json").write_text(text)
    with pytest.raises(ValueError, match=r"cannot read .*training\.json"):
        read_training_record(tmp_path)
