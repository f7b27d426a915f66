"""`kinetics convert` and `kinetics export`, on the embedded model that is nearest at hand."""

import json
from pathlib import Path

import pytest
from rich.filesize import decimal

import kinetics_jax.cli.convert as convert_command
import kinetics_jax.cli.export as export_command
from checkpoints_conversion import load_checkpoint, save_checkpoint, weights_hash
from kinetics_jax.models import load_model
from kinetics_jax.specs import MODELS
from tests.cli.conftest import Kinetics

NAME = "Kinetics-Mini-0.1M"
ZOO = Path(__file__).resolve().parents[2] / "kinetics_jax" / "zoo" / NAME
NUM_BYTES = 2 * MODELS[NAME].num_params


def test_convert_and_export_return_the_same_weights(kinetics: Kinetics, tmp_path: Path):
    done = kinetics("convert", ZOO, tmp_path / "mine")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"{tmp_path / 'mine'}: {NAME}, bfloat16, {decimal(NUM_BYTES)} at ")
    assert load_model(tmp_path / "mine").spec == MODELS[NAME]
    done = kinetics("export", tmp_path / "mine", tmp_path / "back")
    assert done.code == 0
    assert weights_hash(tmp_path / "back") == weights_hash(ZOO)


def test_json_says_what_was_done(kinetics: Kinetics, tmp_path: Path):
    done = kinetics("convert", ZOO, tmp_path / "mine", "--dtype", "float32", "--json")
    report = json.loads(done.out)
    assert report.pop("seconds") > 0
    assert report == {
        "target": str(tmp_path / "mine"),
        "model": NAME,
        "dtype": "float32",
        "source_bytes": NUM_BYTES,
        "resumed_bytes": 0,
    }
    done = kinetics("export", tmp_path / "mine", tmp_path / "back", "--json")
    report = json.loads(done.out)
    assert report.pop("seconds") > 0
    assert report == {"target": str(tmp_path / "back"), "bytes": 2 * NUM_BYTES}


def test_a_target_is_replaced_only_by_force(kinetics: Kinetics, tmp_path: Path):
    assert kinetics("convert", ZOO, tmp_path / "mine").code == 0
    done = kinetics("convert", ZOO, tmp_path / "mine", "--dtype", "float32")
    assert done.code == 2
    assert "exists and is not empty" in done.err
    assert kinetics("convert", ZOO, tmp_path / "mine", "--dtype", "float32", "--force").code == 0
    assert load_model(tmp_path / "mine").dtype == "float32"


def interrupted(run, share: float):
    """Return a converter that is interrupted, as by Ctrl-C, once this share was done."""

    def convert(*args, on_progress, **options):
        def stop(done: int, total: int) -> None:
            on_progress(done, total)
            if done > share * total:
                raise KeyboardInterrupt

        return run(*args, on_progress=stop, **options)

    return convert


def test_ctrl_c_says_how_to_go_on(kinetics: Kinetics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        patch.setattr(convert_command, "convert_checkpoint", interrupted(convert_command.convert_checkpoint, 0.5))
        done = kinetics("convert", ZOO, tmp_path / "mine")
    assert done.code == 130
    said = " ".join(done.err.split())
    assert said.startswith("Stopped at ")
    assert f" of {decimal(NUM_BYTES)}. Run the same command to go on;" in said
    assert (tmp_path / "mine.partial").is_dir()
    assert not (tmp_path / "mine").exists()
    assert kinetics("convert", ZOO, tmp_path / "mine").code == 0
    with monkeypatch.context() as patch:
        patch.setattr(export_command, "export_checkpoint", interrupted(export_command.export_checkpoint, 0.5))
        done = kinetics("export", tmp_path / "mine", tmp_path / "back")
    assert (done.code, "nothing was written" in done.err) == (130, True)
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]


def test_mistakes_end_in_one_sentence(kinetics: Kinetics, tmp_path: Path):
    save_checkpoint(load_checkpoint(ZOO), tmp_path / "source")
    (tmp_path / "source" / "config.json").unlink()
    for args, said in (
        (("convert", tmp_path / "source", tmp_path / "mine"), "config.json is missing"),
        (("convert", ZOO, tmp_path / "mine", "--dtype", "int7"), "dtype must be 'float32', 'bfloat16' or None"),
        (("convert", ZOO, tmp_path / "mine", "--revision", "v1"), "revision 'v1' is for names on the hub"),
        (("export", tmp_path / "source", tmp_path / "back"), "holds no converted checkpoint"),
    ):
        done = kinetics(*args)
        assert (done.code, done.out) == (2, "")
        assert said in " ".join(done.err.split()), done.err
        assert done.err.count("Error:") == 1
