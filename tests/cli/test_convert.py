"""`kinetics convert` and `kinetics export`, on the embedded model that is nearest at hand."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from rich.filesize import decimal
from safetensors.numpy import load_file, save_file

import kinetics_jax.cli.convert as convert_command
import kinetics_jax.cli.export as export_command
from checkpoints_conversion import load_checkpoint, logit_error, quantise, save_checkpoint, weights_hash, write_golden
from kinetics_jax.models import Decoder, load_model
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
        "quantisation": None,
        "mesh": None,
        "source_bytes": NUM_BYTES,
        "resumed_bytes": 0,
        "logit_error": None,
        "verify": None,
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


def test_int8_reports_its_logit_error(kinetics: Kinetics, tmp_path: Path):
    """Against the source's own weights: what `quantise` does to the model in memory."""
    args = ("convert", ZOO, tmp_path / "mine", "--int8", "--token-ids", "1,2,3", "--token-ids", "6,5,4")
    done = kinetics(*args, "--json")
    report = json.loads(done.out)
    model, token_ids = load_checkpoint(ZOO), jnp.array([[1, 2, 3], [6, 5, 4]])
    forward = jax.jit(Decoder.__call__)
    wanted = logit_error(forward(model, token_ids), forward(quantise(model), token_ids))
    assert (report["quantisation"], report["verify"]) == ("int8", None)
    assert report["logit_error"] == pytest.approx(asdict(wanted), rel=0.01)
    assert report["logit_error"]["mean_abs"] > 1e-3
    done = kinetics(*args, "--force")
    assert re.search(r"/s; int8 kernels, by which logits differ by \d\S* at most .* of 6 positions;", done.out)
    done = kinetics(*args[:4], "--force", "--no-logit-error")
    assert done.out.endswith("/s; int8 kernels\n")


def test_verify_passes_what_was_converted_and_names_the_layer_that_was_not(kinetics: Kinetics, tmp_path: Path):
    done = kinetics("convert", ZOO, tmp_path / "mine", "--verify", "--mesh", "1x2", "--json")
    report = json.loads(done.out)
    assert (done.code, report["verify"]["agrees"], report["mesh"]) == (0, True, {"data": 1, "model": 2})
    assert report["logit_error"] == report["verify"]["error"]

    golden = tmp_path / "golden.safetensors"
    write_golden(ZOO, golden, engine="kinetics")
    done = kinetics("convert", ZOO, tmp_path / "mine", "--force", "--dtype", "bfloat16", "--verify-against", golden)
    assert done.code == 0
    assert "agrees with golden.safetensors" in done.out

    tensors = load_file(ZOO / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] *= tensors["model.norm.weight"].dtype.type(1.5)
    shutil.copytree(ZOO, tmp_path / "changed")
    save_file(tensors, tmp_path / "changed" / "model.safetensors", metadata={"format": "pt"})
    done = kinetics("convert", tmp_path / "changed", tmp_path / "other", "--verify-against", golden)
    assert done.code == 1
    assert "DIFFERS from golden.safetensors" in done.out
    assert "The first difference is after layer 1:" in done.out
    assert (tmp_path / "other" / "model.json").exists()  # to be looked at


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
        (
            ("convert", ZOO, tmp_path / "mine", "--mesh", "8"),
            "--mesh must be DATAxMODEL, two numbers of devices; got '8'",
        ),
        (("convert", ZOO, tmp_path / "mine", "--mesh", "1x3"), "the model axis must divide the query heads"),
        (("convert", ZOO, tmp_path / "mine", "--verify-against", "none.npz"), "cannot read none.npz: no such file"),
        (
            ("convert", ZOO, tmp_path / "mine", "--token-ids", "1"),
            "--token-ids is for --verify and for the logit error",
        ),
        (("convert", ZOO, tmp_path / "mine", "--verify", "--token-ids", "1;2"), "numbers with commas between"),
        (("convert", ZOO, tmp_path / "mine", "--verify", "--token-ids", "1", "--token-ids", "1,2"), "of one length"),
        (("export", tmp_path / "source", tmp_path / "back"), "holds no converted checkpoint"),
    ):
        done = kinetics(*args)
        assert (done.code, done.out) == (2, "")
        assert said in " ".join(done.err.split()), done.err
        assert done.err.count("Error:") == 1
        assert not (tmp_path / "mine").exists()


def test_converting_looks_for_no_device(tmp_path: Path):
    """In a process of its own: an accelerator that is woken gives most of its memory to who only converts."""
    code = "from kinetics_jax.cli import main; main()"
    seen = "\n    import jax._src.xla_bridge as bridge; print(bridge.backends_are_initialized())"
    done = subprocess.run(
        [sys.executable, "-c", f"try:\n    {code}\nfinally:{seen}", "convert", ZOO, tmp_path / "mine", "--mesh", "1x4"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ZOO.parents[2])},
    )
    assert done.stdout.splitlines()[-1] == "False"
