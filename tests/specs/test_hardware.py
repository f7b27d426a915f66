"""Hardware: numbers typed from the vendors' pages, each with source and date, and the intensity that follows dtypes."""

import copy
import dataclasses
import pickle
import re
from functools import partial
from typing import Any

import jax
import pytest

from kinetics_jax.specs import DTYPES, HARDWARE, HardwareSpec

NAMES = (
    *("A100-SXM-80GB", "H100-SXM", "H200-SXM", "B200", "L4", "T4"),
    *("TPU-v4", "TPU-v5e", "TPU-v5p", "TPU-v6e", "TPU-7x", "PAPER_B200"),
)
OPTIONAL = ("link_bytes_per_s", "watts", "dollars_per_hour", "fixed_flops_per_byte")


@pytest.fixture
def chip() -> HardwareSpec:
    """Return a chip of one's own, with round numbers."""
    fields = ("peak_flops_per_s", "hbm_bytes_per_s", "hbm_bytes")
    return HardwareSpec(
        name="mine",
        peak_flops_per_s={"bfloat16": 200.0, "float8": 400.0},
        hbm_bytes_per_s=10.0,
        hbm_bytes=1e9,
        sources=dict.fromkeys(fields, "measured, read 2026-11-22"),
    )


def test_the_table_holds_the_chips_of_the_design():
    assert tuple(HARDWARE) == NAMES


# (bfloat16 or, for T4, float16 peak [TFLOP/s], bandwidth [GB/s], memory [GB or GiB], links [GB/s]), typed from the
# vendors' pages a second time; dense rates.
@pytest.mark.parametrize(
    ("name", "tflops", "gb_per_s", "memory", "link_gb_per_s"),
    [
        ("A100-SXM-80GB", 312, 2039, 80e9, 600),
        ("H100-SXM", 989.4, 3350, 80e9, 900),
        ("H200-SXM", 989.4, 4800, 141e9, 900),
        ("B200", 2250, 8000, 180e9, 1800),
        ("L4", 121, 300, 24e9, 64),
        ("T4", 65, 320, 16e9, 32),
        ("TPU-v4", 275, 1200, 32 * 2**30, 600),
        ("TPU-v5e", 197, 819, 16e9, 400),
        ("TPU-v5p", 459, 2765, 95 * 2**30, 1200),
        ("TPU-v6e", 918, 1638, 32 * 2**30, 800),
        ("TPU-7x", 2307, 7380, 192 * 2**30, 1200),
    ],
)
def test_numbers_are_the_vendors(name: str, tflops: float, gb_per_s: float, memory: float, link_gb_per_s: float):
    chip = HARDWARE[name]
    assert chip.peak_flops_per_s["float16" if name == "T4" else "bfloat16"] == pytest.approx(tflops * 1e12)
    assert chip.hbm_bytes_per_s == pytest.approx(gb_per_s * 1e9)
    assert chip.hbm_bytes == memory
    assert chip.link_bytes_per_s == pytest.approx(link_gb_per_s * 1e9)


@pytest.mark.parametrize(
    ("name", "watts", "dollars"),
    [
        ("A100-SXM-80GB", 400, 3.43),
        ("H100-SXM", 700, 6.88),
        ("H200-SXM", 700, 7.91),
        ("B200", 1000, 14.24),
        ("L4", 72, 0.80),
        ("T4", 70, 0.53),
        ("TPU-v4", 192, 3.22),
        ("TPU-v5e", None, 1.20),
        ("TPU-v5p", None, 4.20),
        ("TPU-v6e", None, 2.70),
        ("TPU-7x", None, None),
        ("PAPER_B200", None, None),
    ],
)
def test_power_and_price_where_published(name: str, watts: float | None, dollars: float | None):
    chip = HARDWARE[name]
    assert chip.watts == watts
    assert (None if chip.dollars_per_hour is None else round(chip.dollars_per_hour, 2)) == dollars


@pytest.mark.parametrize("name", NAMES)
def test_every_number_has_a_source_with_a_date(name: str):
    chip = HARDWARE[name]
    given = {"peak_flops_per_s", "hbm_bytes_per_s", "hbm_bytes"}
    given |= {field for field in OPTIONAL if getattr(chip, field) is not None}
    assert set(chip.sources) == given
    for text in chip.sources.values():
        assert re.search(r"(read|recalled) 2026-\d\d-\d\d$", text)
        assert len(text) > 40  # a source, not a date alone


@pytest.mark.parametrize("name", NAMES)
def test_narrower_operands_are_never_slower(name: str):
    peaks = HARDWARE[name].peak_flops_per_s
    by_width = sorted(peaks, key=lambda dtype: -DTYPES[dtype].num_bits)
    assert [peaks[dtype] for dtype in by_width] == sorted(peaks.values())


@pytest.mark.parametrize(
    ("name", "compute_dtype", "kv_dtype", "flops_per_byte"),
    [
        ("H100-SXM", "bfloat16", "bfloat16", 295.343),
        ("B200", "bfloat16", "bfloat16", 281.25),  # errata 2: about 281
        ("B200", "float8", "bfloat16", 281.25),  # float8 arithmetic on a bfloat16 cache runs at the bfloat16 rate
        ("B200", "float8", "float8", 562.5),  # where the paper's number comes from
        ("H100-SXM", "bfloat16", "int4", 295.343),  # int4 is widened to the compute dtype
        ("H100-SXM", "int4", "float8", 590.716),
        ("H100-SXM", "float8", "int8", 590.716),
        ("H100-SXM", "bfloat16", "float32", 19.970),
        ("A100-SXM-80GB", "bfloat16", "bfloat16", 153.016),
        ("T4", "float16", "float16", 203.125),
        ("TPU-v5e", "bfloat16", "bfloat16", 240.537),
        ("TPU-v6e", "bfloat16", "bfloat16", 560.440),
    ],
)
def test_intensity_follows_the_wider_dtype(name: str, compute_dtype: str, kv_dtype: str, flops_per_byte: float):
    assert HARDWARE[name].intensity(compute_dtype, kv_dtype) == pytest.approx(flops_per_byte, rel=1e-5)


def test_cache_is_bfloat16_unless_said():
    assert HARDWARE["B200"].intensity("float8") == 281.25
    assert HARDWARE["B200"].peak_flops("float8") == 2.25e15


@pytest.mark.parametrize("compute_dtype", list(DTYPES))
def test_the_papers_preset_is_fixed(compute_dtype: str):
    """PAPER.md section 2: I = 562.5, and B200-seconds are eFLOPs / 4.5e15; whatever the dtypes (errata 2)."""
    assert HARDWARE["PAPER_B200"].intensity(compute_dtype, compute_dtype) == 562.5
    assert HARDWARE["PAPER_B200"].peak_flops(compute_dtype, compute_dtype) == 4.5e15


def test_a_missing_peak_lists_the_known():
    with pytest.raises(
        ValueError, match=r"T4 has no peak for 'bfloat16', the wider of .*Known: float32, float16, int8"
    ):
        HARDWARE["T4"].intensity("bfloat16", "int8")
    with pytest.raises(ValueError, match=r"TPU-v5e has no peak for 'float32'.*Known: bfloat16, int8"):
        HARDWARE["TPU-v5e"].peak_flops("bfloat16", "float32")


@pytest.mark.parametrize("name", ["H100-SXM", "PAPER_B200"])
def test_an_unknown_dtype_lists_the_known(name: str):
    with pytest.raises(
        ValueError, match=r"unknown dtype 'float4'\. Known: float32, bfloat16, float16, float8, int8, int4"
    ):
        HARDWARE[name].intensity("float4")
    with pytest.raises(ValueError, match="unknown dtype 'fp8'"):
        HARDWARE[name].intensity("bfloat16", "fp8")


def test_chips_are_values():
    copies = [copy.deepcopy(HARDWARE["B200"]), pickle.loads(pickle.dumps(HARDWARE["B200"]))]
    assert copies == [HARDWARE["B200"]] * 2
    assert {*copies, *HARDWARE.values()} == set(HARDWARE.values())
    assert len({*HARDWARE.values()}) == len(NAMES)
    assert hash(dataclasses.replace(HARDWARE["B200"], watts=999.0)) != hash(HARDWARE["B200"])


def test_a_chip_is_a_static_argument_of_jit():
    compiled = []

    @partial(jax.jit, static_argnums=0)
    def seconds(chip: HardwareSpec, num_bytes: jax.Array) -> jax.Array:
        compiled.append(chip.name)
        return num_bytes / chip.hbm_bytes_per_s

    for chip in (HARDWARE["H100-SXM"], copy.deepcopy(HARDWARE["H100-SXM"]), HARDWARE["T4"]):
        assert float(seconds(chip, jax.numpy.float32(1e9))) == pytest.approx(1e9 / chip.hbm_bytes_per_s, rel=1e-6)
    assert compiled == ["H100-SXM", "T4"]


def test_chips_cannot_be_changed(chip: HardwareSpec):
    peaks: Any = chip.peak_flops_per_s
    sources: Any = chip.sources
    with pytest.raises(TypeError):
        peaks["bfloat16"] = 1.0
    with pytest.raises(TypeError):
        del sources["hbm_bytes"]
    spec: Any = chip
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.watts = 1.0


def test_a_chip_keeps_its_own_copy_of_what_it_was_given(chip: HardwareSpec):
    peaks = {"bfloat16": 200.0}
    mine = dataclasses.replace(chip, peak_flops_per_s=peaks)
    peaks["bfloat16"] = 1.0
    assert mine.peak_flops("bfloat16") == 200.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hbm_bytes_per_s": 0.0}, "hbm_bytes_per_s must be a positive number; got 0.0 in hardware 'mine'"),
        ({"hbm_bytes": float("nan")}, "hbm_bytes must be a positive number; got nan"),
        ({"watts": -1.0}, "watts must be a positive number; got -1.0"),
        ({"dollars_per_hour": float("inf")}, "dollars_per_hour must be a positive number; got inf"),
        (
            {"peak_flops_per_s": {"bfloat16": -2.0}},
            r"peak_flops_per_s\['bfloat16'\] must be a positive number; got -2.0",
        ),
        ({"peak_flops_per_s": {"fp8": 2.0}}, "unknown dtype 'fp8'. Known: float32"),
        ({"peak_flops_per_s": {}}, "peak_flops_per_s must have one dtype at least"),
        ({"link_bytes_per_s": 5.0}, "every number needs a source; hardware 'mine' has none for link_bytes_per_s"),
        ({"sources": {}}, "has none for hbm_bytes, hbm_bytes_per_s, peak_flops_per_s"),
    ],
)
def test_bad_numbers_are_named(chip: HardwareSpec, change: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(chip, **change)


def test_a_source_needs_a_date_and_a_number(chip: HardwareSpec):
    with pytest.raises(ValueError, match=r"needs the date it was read .*got 'a page' for hbm_bytes of 'mine'"):
        dataclasses.replace(chip, sources={**chip.sources, "hbm_bytes": "a page"})
    with pytest.raises(ValueError, match="sources must name a number given; hardware 'mine' gives no watts"):
        dataclasses.replace(chip, sources={**chip.sources, "watts": "a page, read 2026-11-22"})
