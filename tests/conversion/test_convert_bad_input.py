"""What cannot be converted is said in one ValueError that names tensor and file; nothing is written."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tensorstore
from safetensors.numpy import load_file, save_file

from checkpoints_conversion import (
    convert_checkpoint,
    export_checkpoint,
    local_source,
    save_checkpoint,
    weights_hash,
)
from kinetics_jax.models import load_model
from tests.conversion.families import (
    EMBEDDING,
    HEAD,
    INDEX,
    QWEN3,
    WEIGHTS,
    files_of,
    make_shards,
    store_head_twice,
)

NORM, QUERY = "model.layers.1.input_layernorm.weight", "model.layers.0.self_attn.q_proj.weight"
Tensors = dict[str, np.ndarray]
Change = Callable[[Path], None]


@pytest.fixture
def source(random_decoder, tmp_path: Path) -> Path:
    save_checkpoint(random_decoder(QWEN3), tmp_path / "source", dtype="float32")
    return tmp_path / "source"


def rewrite(change: Callable[[Tensors], Any]) -> Change:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    return edit


def configure(**fields: Any) -> Change:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | fields))

    return edit


def index(change: Callable[[dict[str, str]], Any]) -> Change:
    def edit(folder: Path) -> None:
        make_shards(folder)
        content = json.loads((folder / INDEX).read_text())
        change(content["weight_map"])
        (folder / INDEX).write_text(json.dumps(content))

    return edit


def cut(folder: Path) -> None:
    make_shards(folder)
    shard = folder / "model-00002-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-5])


def pickle_only(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def differing_head(folder: Path) -> None:
    store_head_twice(folder)
    rewrite(lambda tensors: tensors.update({HEAD: tensors[HEAD] + 1}))(folder)


SHARD = "model-00001-of-00003.safetensors"
BROKEN: dict[str, tuple[Change, list[str]]] = {
    "missing tensor": (rewrite(lambda tensors: tensors.pop(NORM)), [f"tensor {NORM} [12] is missing"]),
    "extra tensor": (
        rewrite(lambda tensors: tensors.update({"model.layers.0.mlp.bias": np.zeros(3, np.float32)})),
        ["tensor model.layers.0.mlp.bias in model.safetensors has no place"],
    ),
    "wrong shape": (
        rewrite(lambda tensors: tensors.update({QUERY: tensors[QUERY].T.copy()})),
        [f"tensor {QUERY} in model.safetensors must have shape [48, 12] by config.json; got [12, 48]"],
    ),
    "wrong dtype": (
        rewrite(lambda tensors: tensors.update({NORM: tensors[NORM].astype(np.int32)})),
        [f"tensor {NORM} in model.safetensors must be one of F32, BF16, F16; got I32"],
    ),
    "truncated shard": (cut, ["model-00002-of-00003.safetensors is no whole safetensors file"]),
    "index names a missing file": (
        index(lambda places: places.update({NORM: "model-00009-of-00003.safetensors"})),
        ["model-00009-of-00003.safetensors is missing", f"holds tensor {NORM}, which {INDEX} does not place there"],
    ),
    "index leaves the folder": (
        index(lambda places: places.update({NORM: "../source/model-00001-of-00003.safetensors"})),
        [f"{INDEX} names '../source/model-00001-of-00003.safetensors', which is no safetensors file of this folder"],
    ),
    "index places what is not there": (
        index(lambda places: places.update({"ghost": SHARD})),
        [f"{INDEX} places tensor ghost in {SHARD}, which does not hold it"],
    ),
    "pickle": (pickle_only, ["model.safetensors is missing", "pytorch_model.bin may be pickles, which run code"]),
    "pickled shard": (
        index(lambda places: places.update({NORM: "pytorch_model-00001.bin"})),
        ["names 'pytorch_model-00001.bin', which is no safetensors file"],
    ),
    "unknown config field": (configure(rotary_pct=0.5), ["unknown field 'rotary_pct'"]),
    "no config": (lambda folder: (folder / "config.json").unlink(), ["config.json is missing"]),
    "tied, but the head differs": (differing_head, [f"tensor {HEAD} in model.safetensors differs from {EMBEDDING}"]),
    "tied head of another dtype": (
        rewrite(lambda tensors: tensors.update({HEAD: tensors[EMBEDDING].astype(np.float16)})),
        [f"tensor {HEAD} in model.safetensors differs from {EMBEDDING}"],
    ),
    "untied, but no head": (
        configure(tie_word_embeddings=False),
        [f"tensor {HEAD} [32, 12] is missing from the weight files"],
    ),
    "everything at once": (
        lambda folder: (
            rewrite(lambda tensors: (tensors.pop(NORM), tensors.update({"extra": np.zeros(3, np.float32)})))(folder),
            configure(tie_word_embeddings=False)(folder),
        )[0],
        ["3 problems", f"tensor {NORM} [12] is missing", "tensor extra in model.safetensors", f"tensor {HEAD}"],
    ),
    "config and files": (
        lambda folder: (configure(rotary_pct=0.5)(folder), (folder / WEIGHTS).write_bytes(b"no"))[0],
        ["2 problems", "unknown field 'rotary_pct'", "model.safetensors is no whole safetensors file"],
    ),
}


@pytest.mark.parametrize("what", list(BROKEN))
def test_broken_sources_are_refused(source: Path, what: str):
    change, wanted = BROKEN[what]
    change(source)
    before = files_of(source)
    with pytest.raises(ValueError, match=r"cannot convert .*source") as caught:
        convert_checkpoint(source, source.with_name("mine"))
    message = str(caught.value)
    assert all(part in message for part in wanted), message
    assert files_of(source) == before
    assert [file.name for file in source.parent.iterdir()] == ["source"]


@pytest.mark.parametrize("place", ["source", "source/inner", ".", "source/../source"])
def test_target_and_source_never_lie_in_each_other(source: Path, place: str):
    before = files_of(source.parent)
    with pytest.raises(ValueError, match="must not lie in each other"):
        convert_checkpoint(source, source.parent / place, force=True)
    assert files_of(source.parent) == before


def test_only_checkpoints_are_replaced(source: Path):
    (source.parent / "thesis").mkdir()
    (source.parent / "thesis" / "chapter.tex").write_text("mine")
    (source.parent / "notes").write_text("mine")
    (source.parent / "new.partial").mkdir()
    for target, said in (("thesis", r"model\.json is missing\) and is never"), ("notes", "is a file; choose a folder")):
        with pytest.raises(ValueError, match=said):
            convert_checkpoint(source, source.parent / target, force=True)
    with pytest.raises(ValueError, match=r"new\.partial is in the way and not ours"):
        convert_checkpoint(source, source.parent / "new")
    assert (source.parent / "thesis" / "chapter.tex").read_text() == "mine"


def test_what_no_folder_can_replace_is_refused(source: Path, monkeypatch: pytest.MonkeyPatch):
    """A rename onto them would fail after all the work."""
    (source.parent / "real").mkdir()
    (source.parent / "link").symlink_to(source.parent / "real")
    with pytest.raises(ValueError, match=r"link is a link or a mount point, which no folder can replace"):
        convert_checkpoint(source, source.parent / "link")
    with monkeypatch.context() as patch:
        patch.setattr(os.path, "ismount", lambda path: Path(path).name == "real")
        with pytest.raises(ValueError, match=r"real is a link or a mount point"):
            convert_checkpoint(source, source.parent / "real")
    monkeypatch.chdir(source.parent / "real")
    for nameless in (".", "..", ""):
        with pytest.raises(ValueError, match=r"must have a name of its own; choose a folder in it|lie in each other"):
            convert_checkpoint(source, nameless)
    assert sorted(file.name for file in source.parent.iterdir()) == ["link", "real", "source"]


def test_a_refusing_disk_is_found_before_any_work(source: Path, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: False)
        with pytest.raises(ValueError, match=rf"{source.parent} may not be written to; choose another target"):
            convert_checkpoint(source, source.with_name("mine"))
    usage = shutil.disk_usage(source)._replace(free=20_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    lacking = 4 * QWEN3.num_params - 20_000
    said = rf"the disk of {source.parent} lacks {lacking / 1e9:.3g} GB of the {4 * QWEN3.num_params / 1e9:.3g} GB"
    with pytest.raises(ValueError, match=said):
        convert_checkpoint(source, source.with_name("mine"))
    assert [file.name for file in source.parent.iterdir()] == ["source"]


def test_problems_of_source_and_target_come_together(source: Path):
    (source.parent / "notes").write_text("mine")
    rewrite(lambda tensors: tensors.pop(NORM))(source)
    with pytest.raises(ValueError, match="2 problems") as caught:
        convert_checkpoint(source, source.parent / "notes")
    assert "notes is a file" in str(caught.value)
    assert NORM in str(caught.value)


@pytest.mark.parametrize("dtype", ["int8", "float64", "bf16"])
def test_other_dtypes_are_refused(source: Path, dtype: str):
    with pytest.raises(ValueError, match=rf"dtype must be 'float32', 'bfloat16' or None.*got '{dtype}'"):
        convert_checkpoint(source, source.with_name("mine"), dtype=dtype)


def test_other_sources_are_refused(source: Path):
    with pytest.raises(ValueError, match="no such folder, and no name on the hub"):
        convert_checkpoint(source.with_name("nowhere"), source.with_name("mine"))
    with pytest.raises(ValueError, match="revision 'main' is for names on the hub; this is a local path"):
        convert_checkpoint(source, source.with_name("mine"), revision="main")
    with pytest.raises(ValueError, match=r"cannot read .*nowhere.gguf: no such file"):
        convert_checkpoint(source.with_name("nowhere.gguf"), source.with_name("mine"))


class Hub:
    """Stand in for huggingface_hub: a cache folder for each commit."""

    def __init__(self, cache: Path, source: Path):
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.snapshot = cache / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
        shutil.copytree(source, self.snapshot)

    def snapshot_download(self, repo: str, **options: Any) -> str:
        self.calls.append((repo, options))
        if options["revision"] == "nowhere":
            raise OSError("404: no such revision")
        return str(self.snapshot)


@pytest.fixture
def hub(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub(tmp_path / "cache", source)
    module = ModuleType("huggingface_hub")
    module.__dict__["snapshot_download"] = hub.snapshot_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    monkeypatch.chdir(tmp_path)
    return hub


def test_a_hub_name_is_downloaded_and_its_commit_noted(hub: Hub, source: Path, tmp_path: Path):
    convert_checkpoint("Someone/Tiny-1B", tmp_path / "mine", revision="v1")
    ((repo, options),) = hub.calls
    assert (repo, options["revision"]) == ("Someone/Tiny-1B", "v1")
    patterns = options["allow_patterns"]
    assert "*.safetensors" in patterns
    assert not any(pattern in ("*", "*.bin", "*.pt", "*.py") for pattern in patterns)
    manifest = json.loads((tmp_path / "mine" / "manifest.json").read_text())
    assert manifest["source"] == {"repo": "Someone/Tiny-1B", "revision": hub.snapshot.name}
    assert load_model(tmp_path / "mine").spec == replace(QWEN3, name="Tiny-1B")
    export_checkpoint(tmp_path / "mine", tmp_path / "back")
    assert weights_hash(tmp_path / "back") == weights_hash(source)


def test_a_folder_comes_before_the_hub(hub: Hub, source: Path, tmp_path: Path):
    (tmp_path / "Someone").mkdir()
    source.rename(tmp_path / "Someone" / "Tiny-1B")
    convert_checkpoint("Someone/Tiny-1B", tmp_path / "mine")
    assert hub.calls == []


def test_a_hub_that_refuses_is_named(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(
        OSError, match=r"Someone/Tiny-1B is no local folder, and the hub did not give it at nowhere: 404"
    ):
        convert_checkpoint("Someone/Tiny-1B", tmp_path / "mine", revision="nowhere")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"huggingface_hub, which could download it, is missing.*\[hf\]"):
        convert_checkpoint("Someone/Tiny-1B", tmp_path / "mine")
    assert not (tmp_path / "mine").exists()


@pytest.fixture
def converted(source: Path) -> Path:
    return convert_checkpoint(source, source.with_name("mine"))


def edit_json(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"format": "other"}, "it must be an object with format"),
        ({"version": 2}, "version must be 1; got 2. Use a newer kinetics_jax"),
        ({"quantisation": "int4"}, "quantisation must be .*; got 'int4'"),
        ({"dtype": "int3"}, "dtype must be 'float32' or 'bfloat16' or 'float16'; got 'int3'"),
        ({"spec": {"name": "x"}}, "cannot read a ModelSpec: family, num_layers, .* are missing"),
        ({"spec": None}, "spec must be an object"),
        ({"spec": replace(QWEN3, num_layers=10**12).to_dict()}, r"24 leaves for 1000000000000 layers"),
        ({"spec": replace(QWEN3, num_layers=3).to_dict()}, r"leaf layers\.2\.\S+ is missing"),
        ({"spec": replace(QWEN3, mlp_dim=22).to_dict()}, r"leaf layers\.0\.mlp\S+ must have shape \[12, 22\]"),
        ({"spec": replace(QWEN3, qk_norm=False).to_dict()}, r"leaf layers\.0\.k_norm\.scale has no place"),
    ],
)
def test_a_model_file_that_does_not_fit_is_refused(converted: Path, fields: dict[str, Any], said: str):
    edit_json(converted / "model.json", **fields)
    with pytest.raises(ValueError, match=said):
        load_model(converted)


@pytest.mark.parametrize("what", ["tensor left out", "other place", "escaping file", "no list", "newer"])
def test_a_manifest_that_does_not_fit_is_refused(converted: Path, what: str):
    file = converted / "manifest.json"
    manifest = json.loads(file.read_text())
    if what == "tensor left out":
        manifest["tensors"].pop()
    elif what == "other place":
        manifest["tensors"][0]["leaf"] = "layers.0.k_proj.kernel"
    elif what == "escaping file":
        manifest["tensors"][0]["file"] = "../model.safetensors"
    elif what == "no list":
        manifest["tensors"] = {"a": 1}
    else:
        manifest["version"] = 2
    file.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"cannot export .*manifest\.json"):
        export_checkpoint(converted, converted.with_name("back"))
    assert not converted.with_name("back").exists()


def test_no_checkpoint_at_all(tmp_path: Path):
    for door in (load_model, lambda path: export_checkpoint(path, tmp_path / "back")):
        with pytest.raises(ValueError, match=r"holds no converted checkpoint: model.json is missing"):
            door(tmp_path)


def test_missing_weights_are_named(converted: Path):
    shutil.rmtree(converted / "weights")
    with pytest.raises(ValueError, match=r"weights is missing: model.json has no weights beside it"):
        load_model(converted)
    with pytest.raises(ValueError, match=r"cannot export .*: weights is missing"):
        export_checkpoint(converted, converted.with_name("back"))


@pytest.mark.parametrize("sizes", [{"num_layers": 10**12}, {"num_experts": 10**12, "num_active_experts": 1}])
def test_a_model_file_of_absurd_sizes_is_not_exported(converted: Path, sizes: dict[str, int]):
    edit_json(converted / "model.json", spec=replace(QWEN3, **sizes).to_dict())
    with pytest.raises(ValueError, match=r"manifest.json lists 24 tensors, fewer than model.json has layers"):
        export_checkpoint(converted, converted.with_name("back"))


def test_weights_that_are_no_floats_are_not_loaded(converted: Path):
    kvstore = {"driver": "ocdbt", "base": f"file://{converted}/weights/", "path": "final_norm.scale/"}
    spec = {"driver": "zarr3", "kvstore": kvstore, "metadata": {"shape": [QWEN3.d_model], "data_type": "int32"}}
    tensorstore.open(spec, create=True, delete_existing=True).result().write(1).result()
    with pytest.raises(ValueError, match=r"leaf final_norm\.scale must be floats; got int32"):
        load_model(converted)


@pytest.mark.parametrize("origin", ["repo", ["repo"], 5, {"repo": 3}, {"repo": "Someone/Tiny-1B"}])
def test_a_manifest_whose_source_is_malformed_is_refused(converted: Path, origin: Any):
    edit_json(converted / "manifest.json", source=origin)
    with pytest.raises(ValueError, match=r"manifest\.json is malformed"):
        local_source(converted, "anywhere")


def test_changed_weights_are_not_exported(converted: Path):
    """Whole chunks of other numbers, which only the SHA-256 of the manifest tells from the source's."""
    file = converted / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["tensors"][3]["sha256"] = "0" * 64
    file.write_text(json.dumps(manifest))
    name = manifest["tensors"][3]["name"]
    with pytest.raises(ValueError, match=rf"no longer holds the bytes of tensor {name}, by the SHA-256"):
        export_checkpoint(converted, converted.with_name("back"))
    assert sorted(file.name for file in converted.parent.iterdir()) == ["mine", "source"]
