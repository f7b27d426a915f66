"""`kinetics verify`: the exit code says whether it agrees, the text where it does not."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

GOLDEN = Path(__file__).parent.parent / "conversion" / "golden"
FOLDER = GOLDEN / "qwen3-gqa-tied"  # of one layer


def test_agreement_is_exit_code_0(kinetics):
    finished = kinetics("verify", FOLDER, "--against", FOLDER / "golden_logits.safetensors", "--json")
    assert finished.code == 0
    content = json.loads(finished.out)
    assert content["agrees"] is True
    assert content["error"]["max_abs"] < 1e-4
    assert content["first_difference"] is None


def test_disagreement_is_exit_code_1_and_names_the_layer(kinetics, tmp_path: Path):
    golden = tmp_path / "golden.safetensors"
    finished = kinetics("verify", FOLDER, "--against", FOLDER, "--engine", "kinetics", "--save-golden", golden)
    assert finished.code == 0
    assert "qwen3-gqa-tied (float32) agrees with golden.safetensors" in finished.out
    tensors = load_file(golden)
    changed = {name: tensors[name] + np.float32(0.5) for name in ("logits", "hidden_states")}
    changed["hidden_states"][0] -= np.float32(0.5)
    save_file(tensors | changed, golden)
    finished = kinetics("verify", FOLDER, "--against", golden)
    assert finished.code == 1
    assert "DIFFERS from golden.safetensors" in finished.out
    assert "The first difference is after layer 0: 0.5 at most, 0.5 on average" in finished.out
    assert kinetics("verify", FOLDER, "--against", golden, "--tolerance", 0.5).code == 0


def test_slips_cost_one_sentence(kinetics, tmp_path: Path):
    finished = kinetics("verify", FOLDER, "--against", tmp_path / "none.npz")
    assert finished.code == 2
    assert "cannot verify against" in finished.err
    golden = FOLDER / "golden_logits.safetensors"
    finished = kinetics("verify", FOLDER, "--against", golden, "--save-golden", tmp_path / "new.safetensors")
    assert finished.code == 2
    assert "--save-golden needs a model to run" in finished.err


def test_the_manifest_says_whether_conversion_rounded(kinetics, tmp_path: Path):
    golden = FOLDER / "golden_logits.safetensors"
    finished = kinetics("convert", FOLDER, tmp_path / "mine", "--dtype", "bfloat16", "--verify-against", golden)
    assert finished.code == 0
    assert "the mean error may be 0.02 of that" in finished.out
    finished = kinetics("verify", tmp_path / "mine", "--against", golden, "--exact")
    assert finished.code == 1
    assert "the largest error may be 0.0001 of that" in finished.out
