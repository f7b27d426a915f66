"""The tables of tunings: what is shipped can be read, and shapes find their own row."""

import json
import types
from dataclasses import asdict

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import _mosaic_gpu_tuning
from pallas_kernels._mosaic_gpu_tuning import FOLDER, Tuning, table_file, tuned
from pallas_kernels.benchmarks.tune import SHAPES, candidates, name_of, settings_of

ARRAYS = (
    jnp.zeros((2, 8, 64), "bfloat16"),
    jnp.zeros((9, 2, 16, 64), "int8"),
    jnp.zeros((2, 4), "int32"),
)


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.json")), ids=lambda file: file.stem)
def test_shipped_tables_hold_settings_of_shapes_that_were_tried(file):
    tried = {name_of(operation, shape): operation for operation, shape in SHAPES}
    for name, settings in json.loads(file.read_text(encoding="utf-8")).items():
        assert settings in [settings_of(tuning) for tuning in candidates(tried[name])]
        assert all(value > 0 for value in asdict(Tuning(**settings)).values() if value is not None)


def test_a_shape_finds_its_row_and_others_the_formula(tmp_path, monkeypatch):
    device = types.SimpleNamespace(platform="gpu", device_kind="NVIDIA X 9")
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    monkeypatch.setattr(_mosaic_gpu_tuning, "FOLDER", tmp_path)
    assert table_file(device.device_kind).name == "nvidia_x_9.json"
    row = {"paged_decode B=2 K=2 G=4 H=64 P=16 M=4 int8": {"num_stages": 2}}
    table_file(device.device_kind).write_text(json.dumps(row))
    _mosaic_gpu_tuning._table.cache_clear()
    try:
        assert tuned("paged_decode", *ARRAYS, None) == Tuning(num_stages=2)
        assert tuned("block_topk_decode", *ARRAYS, 2) == Tuning()
        device.platform = "cpu"
        assert tuned("paged_decode", *ARRAYS, None) == Tuning()
    finally:
        _mosaic_gpu_tuning._table.cache_clear()
