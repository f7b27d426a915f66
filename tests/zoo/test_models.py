"""The embedded models: all load, are what their spec says, and stay within their size."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from kinetics_jax.specs import MODELS
from kinetics_jax.tasks import Pathfind
from kinetics_jax.zoo import MINI_MODELS, RECORDED_TRACES, load_zoo_model, model_folder

FILES = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "training.json"}
SMALLEST = "Kinetics-Mini-0.1M"


@pytest.mark.parametrize("name", MINI_MODELS)
def test_every_model_loads_and_is_its_spec(name: str):
    loaded = load_zoo_model(name)
    assert loaded.model.spec == MODELS[name]
    leaves = jax.tree.leaves(loaded.model)
    assert sum(leaf.size for leaf in leaves) == MODELS[name].num_params
    assert all(leaf.dtype == np.float32 for leaf in leaves)
    assert all(np.isfinite(leaf).all() for leaf in leaves)


@pytest.mark.parametrize("name", MINI_MODELS)
def test_every_folder_is_complete_and_speaks_the_tasks_words(name: str):
    assert {path.name for path in model_folder(name).iterdir()} >= FILES
    tokenizer = load_zoo_model(name).tokenizer
    vocabulary = Pathfind().vocabulary
    assert tokenizer.encode(" ".join(vocabulary)) == list(range(len(vocabulary)))
    assert tokenizer.vocab_size == MODELS[name].vocab_size == len(vocabulary)


def test_weights_and_traces_stay_small():
    weights = sum(path.stat().st_size for name in MINI_MODELS for path in model_folder(name).iterdir())
    traces = sum(path.stat().st_size for path in RECORDED_TRACES.iterdir())
    assert weights <= 32e6
    assert traces <= 20e6


def test_weights_load_in_half_precision():
    leaves = jax.tree.leaves(load_zoo_model(SMALLEST, dtype="bfloat16").model)
    assert {str(leaf.dtype) for leaf in leaves} == {"bfloat16"}


def test_a_folder_in_the_same_layout_loads_by_path(tmp_path: Path):
    folder = tmp_path / SMALLEST
    shutil.copytree(model_folder(SMALLEST), folder)
    mine, embedded = load_zoo_model(str(folder)), load_zoo_model(SMALLEST)
    assert mine.weights_hash == embedded.weights_hash
    jax.tree.map(np.testing.assert_array_equal, mine.model, embedded.model)


def test_unknown_names_list_the_known(tmp_path: Path):
    for load in (load_zoo_model, model_folder):
        with pytest.raises(ValueError, match=r"the zoo has no model 'GPT-9'.*Known: .*0.1M, .*0.6M, .*1.7M, .*7M"):
            load("GPT-9")
    with pytest.raises(ValueError, match="nor is there such a folder"):
        load_zoo_model(str(tmp_path / "missing"))


def test_truncated_weights_are_named(tmp_path: Path):
    folder = tmp_path / SMALLEST
    shutil.copytree(model_folder(SMALLEST), folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        load_zoo_model(str(folder))
