"""The name tables: complete errors, no changes; and the hardware in them."""

from typing import Any

import pytest

from kinetics_jax.specs import HARDWARE, MODELS


def test_unknown_names_list_the_known():
    with pytest.raises(ValueError, match=r"unknown model 'Qwen9'\. Known: Qwen3-0\.6B, .*Kinetics-Mini-7M"):
        MODELS["Qwen9"]
    with pytest.raises(ValueError, match=r"unknown hardware 'H1000'\. Known: H100-SXM, PAPER_B200"):
        HARDWARE["H1000"]


def test_names_agree_with_the_specs_they_stand_for():
    for table in (MODELS, HARDWARE):
        assert [spec.name for spec in table.values()] == list(table)
        assert len(table) == len(list(table))


def test_membership_asks_without_an_error():
    assert "Qwen3-8B" in MODELS
    assert "Qwen9" not in MODELS


def test_tables_cannot_be_changed():
    table: Any = MODELS
    with pytest.raises(TypeError):
        table["mine"] = MODELS["Qwen3-8B"]
    with pytest.raises(TypeError):
        del table["Qwen3-8B"]
    assert not hasattr(table, "update")
    assert not hasattr(table, "pop")


def test_intensity_is_peak_over_bandwidth():
    """H100: 989.4e12 FLOP/s dense bfloat16 over 3.35e12 bytes/s; the paper's preset is fixed at 562.5 (errata 2)."""
    assert HARDWARE["H100-SXM"].intensity("bfloat16") == pytest.approx(989.4 / 3.35, rel=1e-6)
    assert HARDWARE["PAPER_B200"].intensity("bfloat16") == 562.5


def test_unknown_dtype_lists_the_known():
    with pytest.raises(ValueError, match=r"H100-SXM has no peak for 'float4'\. Known: bfloat16, float16, float8, int8"):
        HARDWARE["H100-SXM"].intensity("float4")


@pytest.mark.parametrize("name", list(HARDWARE))
def test_every_chip_names_source_and_date(name: str):
    assert "read 20" in HARDWARE[name].source
