"""Seconds, joules and dollars: by hand on a toy chip, and the paper's B200-seconds."""

from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest

from kinetics_jax.cost import Cost, dollars, joules, request_cost, seconds
from kinetics_jax.specs import HARDWARE, MODELS, Dense, HardwareSpec, TopK

MODEL = MODELS["Qwen3-1.7B"]
BILL = Cost(
    linear_flops=2e12,
    attention_flops=0.75e12,
    search_flops=0.25e12,
    kv_read_bytes=1e11,
    kv_write_bytes=0.25e11,
    search_bytes=0.5e11,
    param_bytes=0.25e11,
)  # 3e12 FLOP, 2e11 bytes


def toy(**figures: Any) -> HardwareSpec:
    given = {"hbm_bytes_per_s": 1e11, "hbm_bytes": 1e9} | figures
    peaks = {"bfloat16": 1e12, "float8": 3e12}
    sources = dict.fromkeys(("peak_flops_per_s", *given), "made up, 2026-11-22")
    return HardwareSpec(name="toy", peak_flops_per_s=peaks, sources=sources, **given)


CHIP = toy(watts=100.0, dollars_per_hour=36.0)


@pytest.mark.parametrize(("combine", "wanted"), [("max", 3.0), ("add", 5.0), (2.0, 13**0.5)])
def test_seconds_by_hand(combine: Any, wanted: float) -> None:
    assert seconds(BILL, CHIP, combine=combine) == pytest.approx(wanted, rel=1e-14)
    assert seconds(BILL, CHIP, combine=combine, num_devices=4) == pytest.approx(wanted / 4, rel=1e-14)
    assert joules(BILL, CHIP, combine=combine) == pytest.approx(100 * wanted, rel=1e-14)
    assert dollars(BILL, CHIP, combine=combine) == pytest.approx(0.01 * wanted, rel=1e-14)


def test_energy_and_rent_do_not_depend_on_the_number_of_chips() -> None:
    for figure in (joules, dollars):
        assert figure(BILL, CHIP, num_devices=8) == pytest.approx(figure(BILL, CHIP), rel=1e-14)


def test_the_wider_operand_sets_the_peak() -> None:
    assert seconds(BILL, CHIP, compute_dtype="float8", kv_dtype="bfloat16") == pytest.approx(3.0)
    assert seconds(BILL, CHIP, compute_dtype="float8", kv_dtype="float8") == pytest.approx(2.0)  # Bytes bind now.
    assert seconds(BILL, CHIP, compute_dtype="float8", kv_dtype="float8", combine="add") == pytest.approx(3.0)


def test_b200_seconds_of_the_paper() -> None:
    """1.04841412608e15 + 1.69869312e14 + 562.5 x 3.8338560e13 eFLOPs (Qwen3-8B, 8 x 8000 after 500) / 4.5e15."""
    cost = request_cost(MODELS["Qwen3-8B"], Dense(), prompt_len=500, gen_len=8000, num_trials=8, convention="paper")
    assert seconds(cost, HARDWARE["PAPER_B200"], combine="add") == pytest.approx(5.06304965291, rel=1e-6)


@pytest.mark.parametrize(("figure", "field"), [(joules, "watts"), (dollars, "dollars_per_hour")])
def test_a_missing_figure_is_named(figure: Any, field: str) -> None:
    known = "peak_flops_per_s, hbm_bytes_per_s, hbm_bytes, link_bytes_per_s"
    chip = toy(link_bytes_per_s=1e9)
    with pytest.raises(ValueError, match=rf"toy has no {field}\. Known: {known}\. If you have the figure"):
        figure(BILL, chip)
    named = replace(chip, sources={**chip.sources, field: "ours, 2026-11-22"}, **{field: 7.0})
    assert figure(BILL, named) > 0


@pytest.mark.parametrize("figure", [seconds, joules, dollars])
def test_bad_input(figure: Any) -> None:
    with pytest.raises(ValueError, match="num_devices must be at least 1; got 0"):
        figure(BILL, CHIP, num_devices=0)
    with pytest.raises(ValueError, match="toy has no peak for 'int8'"):
        figure(BILL, CHIP, compute_dtype="int8", kv_dtype="int8")
    with pytest.raises(ValueError, match=r"combine must be 'add', 'max' or a norm p >= 1; got 0\.5"):
        figure(BILL, CHIP, combine=0.5)


def test_arrays_jit_vmap_and_gradients() -> None:
    def price(gen_len: Any) -> Any:
        cost = request_cost(MODEL, TopK(budget_len=64), prompt_len=30, gen_len=gen_len, batch_size=4)
        return [figure(cost, HARDWARE["H100-SXM"], combine=3.0) for figure in (seconds, joules, dollars)]

    lengths = np.array([3.3, 70.4, 5000.2])
    with jax.enable_x64(True):
        values, slopes = jax.jit(jax.vmap(lambda x: (price(x), jax.jacfwd(price)(x))))(lengths)
    above, level, below = (price(lengths + step) for step in (1e-4, 0.0, -1e-4))
    for figure in range(3):
        assert isinstance(level[figure], np.ndarray)
        np.testing.assert_allclose(values[figure], level[figure], rtol=1e-12)
        np.testing.assert_allclose(slopes[figure], (above[figure] - below[figure]) / 2e-4, rtol=1e-5)
