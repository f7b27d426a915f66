"""The table of rules: documented as it is, and tried on every kind of model that it tells apart."""

from pathlib import Path

from checkpoints_conversion import _rules as rules
from tests.conversion.families import FAMILIES


def test_every_family_is_in_the_documented_table():
    """The name map of docs/checkpoints.md is that of the rules."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    tables = [table for name, table in vars(rules).items() if name.endswith("_TABLE")]
    assert len(tables) >= 7
    for hf_name, leaf, shape in (row for table in tables for row in table):
        assert f"| `{hf_name}` | `{leaf}` | {shape.replace('|', '→')} |" in page, (hf_name, leaf, shape)


def test_families_cover_what_the_rules_distinguish():
    assert {(spec.tied_embeddings, spec.qk_norm, spec.qkv_bias, spec.num_experts > 0) for spec in FAMILIES.values()} > {
        (True, True, False, False),
        (True, False, True, False),
        (False, False, False, False),
        (False, True, False, True),
    }
