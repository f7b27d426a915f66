"""config.json of a checkpoint folder: what is written follows the spec, what is read takes the folder's name."""

import json
from pathlib import Path

import pytest

from checkpoints_conversion import load_checkpoint, save_checkpoint
from kinetics_jax.models import Decoder
from kinetics_jax.specs import ModelSpec


def test_a_folder_holds_the_config_of_its_spec(tiny_model: Decoder, tmp_path: Path):
    save_checkpoint(tiny_model, tmp_path / "tiny", dtype="float32", bos_token_id=1, eos_token_id=2, pad_token_id=0)
    config = json.loads((tmp_path / "tiny" / "config.json").read_text())
    assert config == tiny_model.spec.to_hf_config(dtype="float32", bos_token_id=1, eos_token_id=2, pad_token_id=0)
    assert (config["eos_token_id"], config["torch_dtype"]) == (2, "float32")


def test_unknown_geometry_is_named_after_its_folder(tiny_spec: ModelSpec, tiny_folder: Path):
    assert load_checkpoint(tiny_folder).spec == tiny_spec
    renamed = tiny_folder.rename(tiny_folder.with_name("mine"))
    assert load_checkpoint(renamed).spec.name == "mine"


def test_problems_of_the_config_are_listed_once(tiny_folder: Path, edit_config):
    edit_config(hidden_act="gelu", quantization_config={}, num_key_value_heads=4)
    with pytest.raises(ValueError, match=r"cannot load .*tiny: config\.json: 3 problems") as caught:
        load_checkpoint(tiny_folder)
    message = str(caught.value)
    assert all(message.count(word) == 1 for word in ("cannot", "'gelu'", "'quantization_config'", "got 4 and 6"))
