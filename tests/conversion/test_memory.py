"""How much a conversion holds at one time: a tensor or a few, never a layer's experts and never the model."""

import json
import math
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

import checkpoints_conversion._convert as convert_module
import checkpoints_conversion._export as export_module
import checkpoints_conversion._gguf_file as gguf_file_module
import checkpoints_conversion._orbax as orbax_module
import checkpoints_conversion._stored as stored_module
from checkpoints_conversion import convert_checkpoint, export_checkpoint, save_checkpoint
from checkpoints_conversion._prefetch import Budget, gather, prefetch
from checkpoints_conversion._rules import tensor_rules
from kinetics_jax.specs import ModelSpec
from tests.conversion.families import MIXTURE, QWEN3, WEIGHTS
from tests.conversion.gguf_files import gguf_tensors, metadata_of, read_folder, write_gguf

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
    monkeypatch.setattr(orbax_module, "_MAX_READ_BYTES", 2 * MIB)
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
    results = prefetch(sizes, work, num_bytes=lambda size: size, budget=budget)
    got = []
    for result in results:
        got.append(result.size)
        budget.give_back(result.size)
    assert got == sizes
    assert sorted(started) == sorted(sizes)
    assert most == 25  # one item alone may exceed the limit, and nothing waits beside it
    assert budget.held_bytes == 0


def test_the_first_error_ends_the_work():
    done: list[int] = []

    def work(item: int) -> int:
        if item == 3:
            raise ValueError("item 3")
        return item

    budget = Budget(2)

    def consume() -> None:
        for item in prefetch(range(100), work, num_bytes=lambda item: 1, budget=budget):
            done.append(item)
            budget.give_back(1)

    with pytest.raises(ValueError, match="item 3"):
        consume()
    assert done == [0, 1, 2]


def test_whoever_wants_much_is_not_overtaken():
    """Two threads want more than there is room for; room comes piece by piece, and none of it is given twice."""
    budget, order = Budget(10), list[int]()
    budget.take(10)

    def work(size: int) -> None:
        budget.take(size)
        order.append(size)
        assert budget.held_bytes <= 10
        budget.give_back(size)

    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(work, size) for size in (10, 4, 1)]
        for _ in range(5):
            budget.give_back(2)
        for future in waiting:
            future.result()
    assert sorted(order) == [1, 4, 10]
    assert budget.held_bytes == 0


def test_a_closed_budget_ends_those_who_wait():
    budget = Budget(1)
    budget.take(1)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(budget.take, 1)
        budget.close()
        with pytest.raises(CancelledError):
            waiting.result()


@pytest.mark.parametrize("fails", [False, True])
def test_gathering_keeps_the_order_of_an_item_and_ends_its_threads(fails: bool):
    """When the consumer fails, workers that wait for room end, and none runs on."""
    budget, running = Budget(3), set[int]()

    def work(item: int) -> Iterator[tuple[int, int]]:
        running.add(item)
        try:
            for number in range(4):
                budget.take(1)
                yield item, number
        finally:
            running.remove(item)

    got: list[tuple[int, int]] = []

    def consume() -> None:
        with closing(gather(range(6), work, on_end=budget.close)) as results:
            for result in results:
                got.append(result)
                budget.give_back(1)
                if fails and len(got) == 5:
                    raise OSError("the disk is full")

    if fails:
        with pytest.raises(OSError, match="the disk is full"):
            consume()
        assert len(got) == 5
    else:
        consume()
        assert sorted(got) == [(item, number) for item in range(6) for number in range(4)]
    for item in range(6):
        numbers = [number for its, number in got if its == item]
        assert numbers == list(range(len(numbers)))
    assert not running


def test_what_was_gathered_before_an_error_comes_first():
    def work(item: int) -> Iterator[int]:
        yield item
        raise ValueError(f"item {item}")

    results = gather([7], work, on_end=lambda: None)
    assert next(results) == 7
    with pytest.raises(ValueError, match="item 7"):
        next(results)


def test_a_gguf_tensor_is_dequantised_some_rows_at_a_time(
    random_decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Eight threads would else hold eight tensors of floats, four times what the file has of each."""
    spec = replace(QWEN3, d_model=256, vocab_size=1 << 14, num_layers=1)
    save_checkpoint(random_decoder(spec), tmp_path / "tiny", dtype="float32")
    config, tensors = read_folder(tmp_path / "tiny")
    stored = gguf_tensors(config, tensors)
    kind = gguf.GGMLQuantizationType.Q8_0
    stored["token_embd.weight"] = gguf.quantize(stored["token_embd.weight"], kind)
    path = write_gguf(
        tmp_path / "tiny.gguf", "qwen3", metadata_of(config), stored, quantised={"token_embd.weight": kind}
    )
    del config, tensors, stored
    monkeypatch.setattr(convert_module, "MAX_HELD_BYTES", 2 * MIB)
    monkeypatch.setattr(gguf_file_module, "_CHUNK_BYTES", MIB // 2)
    convert_checkpoint(path, tmp_path / "warm")
    assert 4 * spec.vocab_size * spec.d_model == 16 * MIB
    assert peak_bytes(lambda: convert_checkpoint(path, tmp_path / "mine")) < 12 * MIB
