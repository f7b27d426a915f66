"""`verify_checkpoint` agrees with other programs, finds the first layer that is wrong, reads no bad golden file."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from checkpoints_conversion import read_golden, save_checkpoint, verify_checkpoint, write_golden
from kinetics_jax.models import Decoder
from tests.conversion.make_golden_logits import FAMILIES, FAMILY_LOGITS, GOLDEN

MISSING = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
needs_torch = pytest.mark.skipif(bool(MISSING), reason=f"needs {' and '.join(MISSING)} (extra `hf` plus torch)")


@pytest.fixture(scope="module")
def right(tiny_model: Decoder, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a Hugging Face folder and its golden file, hidden states included."""
    folder = tmp_path_factory.mktemp("right") / "tiny"
    save_checkpoint(tiny_model, folder, dtype="float32")
    golden = folder.parent / "golden.safetensors"
    reference = write_golden(folder, golden, engine="kinetics")
    assert reference.logits.shape == (2, 32, 32)
    return folder, golden


@pytest.fixture
def damage(tiny_model: Decoder, tmp_path: Path) -> Callable[..., Path]:
    """Return a maker of folders in which a tensor is changed; all have one name, so that programs compile once."""

    def make(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Path:
        folder = tmp_path / "tiny"
        save_checkpoint(tiny_model, folder, dtype="float32")
        file = folder / "model.safetensors"
        tensors = load_file(file)
        save_file(
            tensors | {name: np.ascontiguousarray(change(tensors[name]), np.float32)}, file, metadata={"format": "pt"}
        )
        return folder

    return make


def test_a_folder_agrees_with_what_transformers_said():
    name = "qwen2-gqa-yarn"  # test_golden.py compares all families
    report = verify_checkpoint(GOLDEN / name, against=GOLDEN / name / FAMILY_LOGITS)
    assert report.agrees
    assert report.layers == ()
    assert 0 < report.error.max_abs < 1e-5 * report.largest_logit
    assert (report.error.num_positions, report.error.top1_agreement) == (42, 1.0)
    assert (report.dtype, report.int8, report.rounded, report.tolerance) == ("float32", False, False, 1e-4)
    assert f"{name} (float32) agrees with {FAMILY_LOGITS}" in str(report)


def test_a_folder_agrees_with_itself_and_its_golden_file(right: tuple[Path, Path]):
    folder, golden = right
    for report in (
        verify_checkpoint(folder, against=golden),
        verify_checkpoint(folder, against=folder, engine="kinetics"),
    ):
        assert report.agrees
        assert report.error.max_abs == 0
        assert report.to_dict()["agrees"] is True


def swap_halves(tensor: np.ndarray) -> np.ndarray:
    return np.roll(tensor, len(tensor) // 2, axis=0)


@pytest.mark.parametrize(
    ("tensor", "after"),
    [
        ("model.embed_tokens.weight", "embedding"),
        ("model.layers.0.self_attn.q_proj.weight", "layer 0"),
        ("model.layers.1.mlp.up_proj.weight", "layer 1"),
        ("model.norm.weight", None),
    ],
)
def test_the_first_wrong_layer_is_named(tensor: str, after: str | None, right: tuple[Path, Path], damage: Callable):
    report = verify_checkpoint(damage(tensor, swap_halves), against=right[1])
    assert not report.agrees
    assert len(report.layers) == 3
    first = report.first_difference
    if after is None:
        assert first is None
        assert "Every hidden state agrees: the final norm or the output head differs" in str(report)
        return
    assert first is not None
    assert first.after == after
    before = report.layers[: report.layers.index(first)]
    assert all(layer.max_abs == 0 for layer in before)
    assert first.max_abs > 0.1
    assert f"DIFFERS from golden.safetensors\n{report.error}" in str(report)
    assert f"The first difference is after {after}: {first.max_abs:.3g} at most" in str(report)
    assert report.to_dict()["first_difference"]["after"] == after


def test_a_subtle_error_is_found(right: tuple[Path, Path], damage: Callable):
    """One norm weight of 12 is off by one percent."""
    report = verify_checkpoint(
        damage("model.layers.0.input_layernorm.weight", lambda tensor: np.where(np.arange(12) == 3, 1.01, 1) * tensor),
        against=right[1],
    )
    assert not report.agrees
    assert report.first_difference is not None
    assert report.first_difference.after == "layer 0"


def test_a_logit_that_is_no_number_never_agrees(right: tuple[Path, Path], damage: Callable):
    report = verify_checkpoint(damage("model.norm.weight", lambda tensor: tensor * np.nan), against=right[1])
    assert not report.agrees


def test_rounded_weights_are_judged_by_their_mean_error(tiny_model: Decoder, right: tuple[Path, Path], tmp_path: Path):
    save_checkpoint(tiny_model, tmp_path / "tiny", dtype="bfloat16")
    report = verify_checkpoint(tmp_path / "tiny", against=right[1])
    assert not report.agrees
    assert report.first_difference is not None
    assert report.first_difference.after == "embedding"
    report = verify_checkpoint(tmp_path / "tiny", against=right[1], rounded=True)
    assert report.agrees
    assert 1e-4 < report.error.mean_abs / report.largest_logit < report.tolerance == 0.02
    assert not verify_checkpoint(tmp_path / "tiny", against=right[1], tolerance=1e-7, rounded=True).agrees


def test_swapped_heads_are_no_rounding(right: tuple[Path, Path], damage: Callable):
    folder = damage("model.layers.1.self_attn.o_proj.weight", lambda tensor: np.roll(tensor, 8, axis=1))
    assert not verify_checkpoint(folder, against=right[1], rounded=True).agrees


def test_a_golden_file_may_hold_few_positions_and_no_hidden_states(right: tuple[Path, Path], tmp_path: Path):
    golden = load_file(right[1])
    positions = np.array([0, 31, 7])
    content = {"token_ids": golden["token_ids"], "logits": golden["logits"][:, positions], "positions": positions}
    np.savez(tmp_path / "few.npz", allow_pickle=False, **content)
    report = verify_checkpoint(right[0], against=tmp_path / "few.npz")
    assert report.agrees
    assert report.error.num_positions == 6
    np.savez(tmp_path / "few.npz", allow_pickle=False, **content | {"positions": positions[::-1]})
    report = verify_checkpoint(right[0], against=tmp_path / "few.npz")
    assert not report.agrees
    assert "it cannot be said which layer differs first" in str(report)


def test_token_ids_may_be_given(right: tuple[Path, Path]):
    token_ids = np.arange(64).reshape(2, 32)[:, ::-1] % 32
    report = verify_checkpoint(right[0], against=right[0], token_ids=token_ids, engine="kinetics")
    assert report.agrees
    for bad, message in (
        (token_ids + 1, r"must lie in 0..31; got 1..32"),
        (token_ids[0], r"shape \[B, T\]; got \[32\]"),
    ):
        with pytest.raises(ValueError, match=message):
            verify_checkpoint(right[0], against=right[0], token_ids=bad)
    with pytest.raises(ValueError, match=r"golden.safetensors has its own token ids"):
        verify_checkpoint(right[0], against=right[1], token_ids=token_ids)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logits": None}, "array logits is missing"),
        ({"token_ids": np.zeros(32, np.int64)}, r"token_ids must have 2 axes of whole numbers; got int64 \[32\]"),
        ({"token_ids": np.zeros((2, 32), np.float32)}, r"token_ids must have 2 axes of whole numbers; got float32"),
        ({"logits": np.zeros((2, 31, 32), np.float32)}, r"logits must be \[2, 32, V\]; got \[2, 31, 32\]"),
        ({"positions": np.arange(1, 33)}, r"positions must lie in 0..31; got 1..32"),
        ({"token_ids": np.full((2, 32), 32)}, r"token_ids must lie in 0..31; got 32..32"),
        ({"hidden_states": np.zeros((3, 2, 31, 12), np.float32)}, r"hidden_states must be \[L \+ 1, B, T, D\]"),
    ],
)
def test_bad_golden_files_are_refused(changes: dict, message: str, right: tuple[Path, Path], tmp_path: Path):
    content = load_file(right[1]) | changes
    save_file({name: array for name, array in content.items() if array is not None}, tmp_path / "bad.safetensors")
    with pytest.raises(ValueError, match=message):
        verify_checkpoint(right[0], against=tmp_path / "bad.safetensors")


def test_pickles_and_torn_files_are_refused(right: tuple[Path, Path], tmp_path: Path):
    np.savez(tmp_path / "pickle.npz", token_ids=np.array([{}], object), logits=np.zeros((1, 1, 1)))
    with pytest.raises(ValueError, match=r"pickle.npz: it is no whole .npz file"):
        verify_checkpoint(right[0], against=tmp_path / "pickle.npz")
    (tmp_path / "torn.safetensors").write_bytes(right[1].read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"torn.safetensors: it is no whole .safetensors file"):
        verify_checkpoint(right[0], against=tmp_path / "torn.safetensors")
    with pytest.raises(ValueError, match="no such file or folder"):
        verify_checkpoint(right[0], against=tmp_path / "none.npz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_npz_is_a_value_error_or_says_the_same(save: Callable, tmp_path: Path):
    """Every byte turned over, and every length; a zip archive carries checksums."""
    token_ids, logits = np.array([[0, 1]]), np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    file = tmp_path / "golden.npz"
    save(file, token_ids=token_ids, logits=logits)
    whole = file.read_bytes()
    flipped = (whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :] for place in range(0, len(whole), 2))
    num_refused = 0
    for broken in (*flipped, *(whole[:length] for length in range(0, len(whole), 7))):
        file.write_bytes(broken)
        try:
            reference = read_golden(file)
        except ValueError:
            num_refused += 1
        else:
            np.testing.assert_array_equal(reference.logits, logits)
            np.testing.assert_array_equal(reference.token_ids, token_ids)
    assert num_refused > len(whole) / 4
    with file.open("wb") as opened:
        np.save(opened, logits)
    with pytest.raises(ValueError, match=r"it is no whole .npz file"):
        read_golden(file)


@pytest.mark.parametrize("name", ["qwen3-gqa-tied", "qwen3moe-gqa-normalised"])
def test_the_golden_file_of_another_model_is_refused(name: str, right: tuple[Path, Path]):
    with pytest.raises(ValueError, match=rf"golden.safetensors has hidden states .*; {name} has"):
        verify_checkpoint(GOLDEN / name, against=right[1])


def test_a_named_engine_is_never_replaced(right: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="engine 'transformers' needs torch and transformers"):
        verify_checkpoint(right[0], against=right[0], engine="transformers")
    report = verify_checkpoint(right[0], against=right[0])
    assert report.against == f"{right[0]}, run by kinetics_jax"


def test_golden_files_are_safetensors(right: tuple[Path, Path], tmp_path: Path):
    with pytest.raises(ValueError, match=r"written as .safetensors; got .*golden.npz"):
        write_golden(right[0], tmp_path / "golden.npz")


def test_hidden_states_lead_to_the_logits(tiny_model: Decoder, right: tuple[Path, Path]):
    golden = load_file(right[1])
    last = jnp.asarray(golden["hidden_states"][-1])
    np.testing.assert_allclose(tiny_model.next_logits(tiny_model.final_norm(last)), golden["logits"], atol=1e-5)
    embedding = np.asarray(tiny_model.embed.embedding[...])
    np.testing.assert_array_equal(golden["hidden_states"][0], embedding[golden["token_ids"]])


def test_transformers_are_asked_for_safetensors_only(right: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch):
    """Without this they would open pytorch_model.bin, a pickle."""
    asked: dict = {}

    def from_pretrained(folder: Path, **options: object) -> None:
        asked.update(options)
        raise OSError("no safetensors")

    torch, transformers = ModuleType("torch"), ModuleType("transformers")
    torch.__dict__["float32"] = "float32"
    transformers.__dict__["AutoModelForCausalLM"] = SimpleNamespace(from_pretrained=from_pretrained)
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "transformers", transformers)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    with pytest.raises(OSError, match="no safetensors"):
        verify_checkpoint(right[0], against=right[0])
    assert asked["use_safetensors"] is True
    assert asked["trust_remote_code"] is False


@needs_torch
@pytest.mark.filterwarnings("ignore")  # transformers' own
@pytest.mark.parametrize("name", FAMILIES)
def test_live_transformers_agree_layer_by_layer(name: str, tmp_path: Path):
    report = verify_checkpoint(GOLDEN / name, against=GOLDEN / name, engine="transformers")
    assert report.agrees
    assert report.against.endswith("run by transformers")
    write_golden(GOLDEN / name, tmp_path / "golden.safetensors", engine="transformers")
    report = verify_checkpoint(GOLDEN / name, against=tmp_path / "golden.safetensors", tolerance=0.0)
    assert len(report.layers) >= 2
    assert all(layer.max_abs < 1e-5 * layer.largest for layer in report.layers)
