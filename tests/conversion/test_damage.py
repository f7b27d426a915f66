"""Flipped and truncated bytes, in what is converted and in what was: an error or the same numbers, nothing between.

Bytes of a tensor in a safetensors file carry no checksum: there a flip is another checkpoint, with another hash.
"""

import gc
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorstore

from checkpoints_conversion import convert_checkpoint, export_checkpoint, save_checkpoint, weights_hash
from kinetics_jax.models import Decoder, load_model
from tests.conversion.families import QWEN3, WEIGHTS, assert_same_weights, leaves_of

# Orbax closes its event loop on the first error, while TensorStore still reads other leaves.
LEFT_BEHIND = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

SPEC = replace(QWEN3, name="tiny", num_layers=1)


@pytest.fixture(scope="module")
def model(random_decoder) -> Decoder:
    return random_decoder(SPEC)


@pytest.fixture(scope="module")
def folder(model: Decoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damage") / "tiny"
    save_checkpoint(model, folder, dtype="float32")
    return folder


@pytest.fixture(scope="module")
def whole(folder: Path) -> bytes:
    return (folder / WEIGHTS).read_bytes()


def damages(content: bytes, start: int, end: int, *, count: int, seed: int) -> Iterator[bytes]:
    """Yield copies with a bit, a byte or a run flipped between two places."""
    random = np.random.default_rng(seed)
    for _ in range(count):
        broken = bytearray(content)
        place = int(random.integers(start, end))
        length = int(random.choice([1, 1, 1, 4, 16]))
        for index in range(place, min(place + length, end)):
            broken[index] ^= int(random.choice([1 << int(random.integers(8)), 255, int(random.integers(1, 256))]))
        yield bytes(broken)


def header_end(content: bytes) -> int:
    return 8 + int.from_bytes(content[:8], "little")


def test_a_damaged_header_raises_or_says_the_same(model: Decoder, folder: Path, whole: bytes, tmp_path: Path):
    num_refused = 0
    for broken in damages(whole, 0, header_end(whole), count=250, seed=1):
        (folder / WEIGHTS).write_bytes(broken)
        try:
            convert_checkpoint(folder, tmp_path / "mine")
        except ValueError as error:
            num_refused += 1
            assert WEIGHTS in str(error) or "tensor " in str(error)  # noqa: PT017
            assert not list(tmp_path.iterdir())
        else:
            assert json.loads(broken[8 : header_end(broken)]) == json.loads(whole[8 : header_end(whole)])
            assert_same_weights(load_model(tmp_path / "mine"), model)
            shutil.rmtree(tmp_path / "mine")
    assert num_refused > 200


def test_a_truncated_file_is_refused(folder: Path, whole: bytes, tmp_path: Path):
    for length in [*range(0, 40), *np.random.default_rng(2).integers(0, len(whole), 60).tolist(), len(whole) - 1]:
        (folder / WEIGHTS).write_bytes(whole[:length])
        with pytest.raises(ValueError, match=rf"cannot convert .*{WEIGHTS} is no whole safetensors file"):
            convert_checkpoint(folder, tmp_path / "mine")
    assert not list(tmp_path.iterdir())


def test_a_damaged_payload_is_another_checkpoint(model: Decoder, folder: Path, whole: bytes, tmp_path: Path):
    (folder / WEIGHTS).write_bytes(whole)
    wanted = weights_hash(folder)
    for number, broken in enumerate(damages(whole, header_end(whole), len(whole), count=5, seed=3)):
        (folder / WEIGHTS).write_bytes(broken)
        target = convert_checkpoint(folder, tmp_path / str(number))
        stored = json.loads((target / "manifest.json").read_text())["weights_hash"]
        assert stored == weights_hash(folder) != wanted
        got, before = leaves_of(load_model(target)), leaves_of(model)
        changed = [path for path in got if got[path].tobytes() != before[path].tobytes()]
        assert 1 <= len(changed) <= 2


def test_a_file_that_shrinks_meanwhile_is_no_crash(folder: Path, whole: bytes, tmp_path: Path):
    """A mapped file would end the process with SIGBUS."""
    (folder / WEIGHTS).write_bytes(whole)

    def shrink(done: int, total: int) -> None:
        if done == 0:
            (folder / WEIGHTS).write_bytes(whole[: header_end(whole)])

    with pytest.raises(ValueError, match=rf"{WEIGHTS} ended within tensor \S+: it became shorter meanwhile"):
        convert_checkpoint(folder, tmp_path / "mine", on_progress=shrink)
    assert not (tmp_path / "mine").exists()


@pytest.fixture(scope="module")
def converted(folder: Path, whole: bytes) -> Path:
    (folder / WEIGHTS).write_bytes(whole)
    return convert_checkpoint(folder, folder.with_name("mine"))


def live_ranges(weights: Path) -> dict[str, tuple[Path, int, int]]:
    """Return file, start and end of every chunk, array description and newest node of the tree of keys, by its key.

    What lies elsewhere in `d` are nodes that newer ones have replaced.
    """
    base = tensorstore.KvStore.open({"driver": "file", "path": f"{weights}/"}).result()
    places: dict[str, str] = {}
    nodes = [tensorstore.ocdbt.dump(base).result()["versions"][-1]["root"]["location"]]
    while nodes:
        node = nodes.pop()
        entries = tensorstore.ocdbt.dump(base, node).result()["entries"]
        nodes += [entry["location"] for entry in entries if "location" in entry]
        places[f"node {node}"] = node
        places |= {str(entry["key"]): entry["indirect_value"] for entry in entries if "indirect_value" in entry}
    ranges = {}
    for key, place in places.items():
        _, _, name, offset, length = place.split(":")
        ranges[key] = (weights / name, int(offset), int(offset) + int(length))
    return ranges


@LEFT_BEHIND
def test_a_flipped_chunk_or_node_is_refused(model: Decoder, converted: Path):
    """Chunks and nodes carry checksums; the JSON files are checked by what they say."""
    ranges = live_ranges(converted / "weights")
    checked = [place for key, place in sorted(ranges.items()) if "zarr.json" not in key]
    described = [place for key, place in sorted(ranges.items()) if "zarr.json" in key]
    for file in (converted / "model.json", converted / "weights" / "_METADATA"):
        described.append((file, 0, file.stat().st_size))
    assert len(checked) > 8  # eight kernels and a node; small leaves lie within the nodes
    random = np.random.default_rng(4)
    for number in range(32):
        is_checked = number % 2 == 0
        places = checked if is_checked else described
        file, start, end = places[int(random.integers(len(places)))]
        content = file.read_bytes()
        (broken,) = damages(content, start, end, count=1, seed=number)
        file.write_bytes(broken)
        try:
            loaded = load_model(converted)
        except ValueError:
            pass
        else:
            assert not is_checked, (file, start, end)
            assert_same_weights(loaded, model)
        finally:
            file.write_bytes(content)
    assert_same_weights(load_model(converted), model)
    gc.collect()  # what Orbax left behind, while its warnings are expected


@LEFT_BEHIND
def test_every_truncation_that_takes_data_is_refused(model: Decoder, converted: Path):
    weights = converted / "weights"
    ranges = live_ranges(weights)
    assert sum(end - start for _, start, end in ranges.values()) > sum(
        leaf.nbytes for leaf in leaves_of(model).values()
    )
    ends = {file: file.stat().st_size for file in (weights / "_METADATA", weights / "manifest.ocdbt")}
    for file, _, end in ranges.values():
        ends[file] = max(ends.get(file, 0), end)
    for file, end in ends.items():
        content = file.read_bytes()
        for length in (end - 1, end // 2, None):
            if length is None:
                file.unlink()
            else:
                file.write_bytes(content[:length])
            with pytest.raises(ValueError, match="is no whole Orbax checkpoint"):
                load_model(converted)
        file.write_bytes(content[:end])
    for file in weights.joinpath("d").iterdir():
        if file not in ends:
            file.unlink()
    assert_same_weights(load_model(converted), model)  # nothing else was needed
    gc.collect()


@LEFT_BEHIND
def test_a_damaged_chunk_is_named_by_its_leaf(converted: Path, folder: Path, model: Decoder):
    """The bytes of the embedding lie uncompressed in one file of the weights."""
    embedding = leaves_of(model)[("embed", "embedding")].tobytes()
    (file,) = [file for file in (converted / "weights" / "d").iterdir() if embedding in file.read_bytes()]
    content = file.read_bytes()
    broken = bytearray(content)
    broken[content.index(embedding) + 100] ^= 4
    file.write_bytes(broken)
    with pytest.raises(ValueError, match=r"is no whole Orbax checkpoint: .*embed\.embedding.* Digest mismatch"):
        load_model(converted)
    with pytest.raises(ValueError, match=r"cannot export .*leaf embed\.embedding is damaged; convert again"):
        export_checkpoint(converted, folder.with_name("back"))
    file.write_bytes(content)
    export_checkpoint(converted, folder.with_name("back"))
    assert weights_hash(folder.with_name("back")) == weights_hash(folder)
    gc.collect()
