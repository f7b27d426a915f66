"""The weights that we write are those that Orbax would write, and need no device."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest

from checkpoints_conversion import weights_hash
from checkpoints_conversion._orbax import Leaf, create_weights, regions, start_writing
from kinetics_jax.models import load_model
from tests.conversion.families import assert_same_weights

ROOT = Path(__file__).resolve().parents[2]
LEAVES = {
    "layers.10.mlp": Leaf(shape=(3, 4), dtype=np.dtype(np.int8), chunk=(2, 4)),
    "layers.2.mlp": Leaf(shape=(3, 4), dtype=np.dtype(np.float32), chunk=(1, 3)),
    "embed": Leaf(shape=(5,), dtype=np.dtype("bfloat16"), chunk=(5,)),
}
ARRAYS = {name: np.arange(leaf.num_bytes // leaf.dtype.itemsize).reshape(leaf.shape) for name, leaf in LEAVES.items()}
ARRAYS = {name: array.astype(LEAVES[name].dtype) for name, array in ARRAYS.items()}


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    stores = create_weights(tmp_path / "ours", LEAVES)
    for name, leaf in LEAVES.items():
        for region in regions(leaf.shape, leaf.chunk):
            stores.finish(start_writing(stores, name, (), region, np.ascontiguousarray(ARRAYS[name][region])))
    return tmp_path / "ours"


@pytest.mark.parametrize("handler", [ocp.StandardCheckpointHandler, ocp.PyTreeCheckpointHandler])
def test_orbax_reads_it(ours: Path, handler: Callable[[], ocp.CheckpointHandler]):
    with ocp.Checkpointer(handler()) as opened:
        restored = opened.restore(ours)
    assert set(restored) == set(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(restored[name], array, strict=True)


def test_orbax_would_describe_it_in_the_same_words(ours: Path, tmp_path: Path):
    """If a newer Orbax describes a checkpoint otherwise, ours should follow."""
    theirs = tmp_path / "theirs"
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=True)) as opened:
        opened.save(theirs, ocp.args.PyTreeSave(ARRAYS))
    tree, step = (
        [json.loads((folder / name).read_text()) for folder in (ours, theirs)]
        for name in ("_METADATA", "_CHECKPOINT_METADATA")
    )
    assert tree[0] == tree[1]
    times = dict.fromkeys(("init_timestamp_nsecs", "commit_timestamp_nsecs"))
    assert step[0] == step[1] | times


def test_the_weights_hold_nothing_that_is_not_read(ours: Path):
    """Orbax's own `save` leaves a second, partial copy beside."""
    assert {file.name for file in ours.iterdir()} == {"_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt", "d"}


def test_no_device_is_looked_for(tiny_folder: Path, tiny_model):
    """On a GPU, JAX would take most of its memory, and host memory and a second for it."""
    code = f"""
import sys
from checkpoints_conversion import convert_checkpoint, export_checkpoint
convert_checkpoint({str(tiny_folder)!r}, {str(tiny_folder.with_name("mine"))!r})
export_checkpoint({str(tiny_folder.with_name("mine"))!r}, {str(tiny_folder.with_name("back"))!r})
import jax
try:
    jax.devices()
except RuntimeError as error:
    print(error)
"""
    environment = {**os.environ, "JAX_PLATFORMS": "nonexistent"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "nonexistent" in done.stdout  # a device could not have been found
    assert_same_weights(load_model(tiny_folder.with_name("mine")), tiny_model)
    assert weights_hash(tiny_folder.with_name("back")) == weights_hash(tiny_folder)
