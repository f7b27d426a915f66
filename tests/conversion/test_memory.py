"""How much a conversion holds at one time: a tensor or a few, never a layer's experts and never the model."""

import json
import math
import threading
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import checkpoints_conversion._convert as convert_module
import checkpoints_conversion._export as export_module
import checkpoints_conversion._orbax as orbax_module
import checkpoints_conversion._stored as stored_module
from checkpoints_conversion import convert_checkpoint, export_checkpoint
from checkpoints_conversion._prefetch import Budget, prefetch
from checkpoints_conversion._rules import tensor_rules
from kinetics_jax.specs import ModelSpec
from tests.conversion.families import MIXTURE, QWEN3, WEIGHTS

MIB = 1 << 20


def write_zeros(folder: Path, spec: ModelSpec) -> None:
    """Write a folder of zeros in bfloat16: a header and a hole, which costs no disk."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for rule in tensor_rules(spec):
        end = offset + 2 * math.prod(rule.hf_shape)
        header[rule.hf_name] = {"dtype": "BF16", "shape": list(rule.hf_shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    folder.mkdir()
    with (folder / WEIGHTS).open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)
    (folder / "config.json").write_text(json.dumps(spec.to_hf_config()))


def peak_bytes(run: Callable[[], object]) -> int:
    """Return the most that Python and NumPy held while `run` ran."""
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("spec", "num_model_bytes", "num_largest_bytes"),
    [
        (replace(QWEN3, d_model=1024, mlp_dim=1024, num_layers=6), 37 * MIB, 2 * MIB),
        # 32 experts of 1 MiB: a leaf of 32 MiB is never held whole.
        (replace(MIXTURE, d_model=512, mlp_dim=1024, num_experts=32, num_layers=1), 97 * MIB, 1 * MIB),
    ],
    ids=["dense", "experts"],
)
def test_memory_is_that_of_a_few_tensors(
    spec: ModelSpec, num_model_bytes: int, num_largest_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert num_model_bytes - MIB < 2 * spec.num_params < num_model_bytes + MIB
    held, pieces = 4 * MIB, MIB // 2
    for module in (convert_module, export_module):
        monkeypatch.setattr(module, "MAX_HELD_BYTES", held)
    monkeypatch.setattr(orbax_module, "_MAX_ENCODED_BYTES", 2 * MIB)
    monkeypatch.setattr(stored_module, "_PIECE_BYTES", pieces)
    write_zeros(tmp_path / "source", spec)
    convert_checkpoint(tmp_path / "source", tmp_path / "warm")  # imports and caches of libraries stay out
    bound = held + num_largest_bytes + 8 * pieces + 4 * MIB
    assert bound < num_model_bytes / 2
    assert peak_bytes(lambda: convert_checkpoint(tmp_path / "source", tmp_path / "mine")) < bound
    assert peak_bytes(lambda: export_checkpoint(tmp_path / "mine", tmp_path / "back")) < bound


def test_a_budget_bounds_what_waits_and_keeps_the_order():
    budget, most = Budget(10), 0
    started: list[int] = []
    lock = threading.Lock()

    def work(size: int) -> np.ndarray:
        nonlocal most
        with lock:
            started.append(size)
            most = max(most, budget.held_bytes)
        return np.full(size, size, np.int8)

    sizes = [4, 6, 3, 25, 1, 1, 1, 9, 10, 2]
    results = prefetch(sizes, work, num_bytes=lambda size: size, budget=budget, wait=lambda: pytest.fail("no wait"))
    got = []
    for result in results:
        got.append(result.size)
        budget.give_back(result.size)
    assert got == sizes
    assert sorted(started) == sorted(sizes)
    assert most == 25  # one item alone may exceed the limit, and nothing waits beside it
    assert budget.held_bytes == 0


def test_what_was_yielded_is_waited_for():
    """The consumer writes in the background: when nothing is left to yield, `wait` gives memory back."""
    budget, waits = Budget(4), []

    def wait() -> None:
        waits.append(budget.held_bytes)
        budget.give_back(4)

    assert list(prefetch([4, 4, 4], str, num_bytes=lambda size: size, budget=budget, wait=wait)) == ["4", "4", "4"]
    assert waits == [4, 4]


def test_the_first_error_ends_the_work():
    done: list[int] = []

    def work(item: int) -> int:
        if item == 3:
            raise ValueError("item 3")
        return item

    budget = Budget(2)

    def consume() -> None:
        for item in prefetch(range(100), work, num_bytes=lambda item: 1, budget=budget, wait=lambda: None):
            done.append(item)
            budget.give_back(1)

    with pytest.raises(ValueError, match="item 3"):
        consume()
    assert done == [0, 1, 2]
