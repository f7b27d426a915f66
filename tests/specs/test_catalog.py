"""The name tables: complete errors, no changes."""

from typing import Any

import pytest

from kinetics_jax.specs import HARDWARE, MODELS


def test_unknown_names_list_the_known():
    with pytest.raises(ValueError, match=r"unknown model 'Qwen9'\. Known: Qwen3-0\.6B, .*Kinetics-Mini-7M"):
        MODELS["Qwen9"]
    with pytest.raises(ValueError, match=r"unknown hardware 'H1000'\. Known: A100-SXM-80GB, H100-SXM, .*PAPER_B200"):
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
