"""The chips that have a name, as their vendors print them.

Peaks are dense: where a vendor prints the rate "with sparsity", half of it stands here. float32 is the IEEE rate, not
TF32. A dtype without a published rate is left out, so that asking for it is an error (T4 has no bfloat16).
Prices are those of a whole cloud instance over its chips; they change often.

"read" means read on that day in stored copies of the vendor's pages, or in pages that cite them; "recalled" means
entered on that day without such a page at hand.
"""

from collections.abc import Mapping

from ._catalog import Catalog
from ._hardware import HardwareSpec

_DAY = "2026-11-22"
_READ = f"read {_DAY}"
_TFLOPS, _GB, _GIB = 1e12, 1e9, 2.0**30

# Name, dense peaks [TFLOP/s], (bandwidth [GB/s], memory [GB], links [GB/s], power [W]), data sheet, and a cloud
# instance: ($/h, its GPUs, its name).
_NVIDIA = (
    (
        "A100-SXM-80GB",
        {"float32": 19.5, "bfloat16": 312.0, "float16": 312.0, "int8": 624.0, "int4": 1248.0},
        (2039.0, 80.0, 600.0, 400.0),
        "NVIDIA A100 data sheet and architecture white paper, A100 80GB SXM, NVLink 3",
        (27.44705, 8, "p4de.24xlarge"),
    ),
    (
        "H100-SXM",
        {"float32": 66.9, "bfloat16": 989.4, "float16": 989.4, "float8": 1978.9, "int8": 1978.9},
        (3350.0, 80.0, 900.0, 700.0),
        "NVIDIA H100 data sheet and architecture white paper, H100 SXM5, NVLink 4",
        (55.04, 8, "p5.48xlarge"),
    ),
    (
        "H200-SXM",
        {"float32": 66.9, "bfloat16": 989.4, "float16": 989.4, "float8": 1978.9, "int8": 1978.9},
        (4800.0, 141.0, 900.0, 700.0),
        "NVIDIA H200 data sheet, H200 SXM (the arithmetic of H100 SXM5), NVLink 4",
        (63.296, 8, "p5en.48xlarge"),
    ),
    (
        "B200",
        {"float32": 75.0, "bfloat16": 2250.0, "float16": 2250.0, "float8": 4500.0, "int8": 4500.0},
        (8000.0, 180.0, 1800.0, 1000.0),
        "NVIDIA HGX B200 and DGX B200 data sheets, an eighth of the board (1,440 GB, 64 TB/s); float32 recalled",
        (113.9328, 8, "p6-b200.48xlarge"),
    ),
    (
        "L4",
        {"float32": 30.3, "bfloat16": 121.0, "float16": 121.0, "float8": 242.5, "int8": 242.5},
        (300.0, 24.0, 64.0, 72.0),
        "NVIDIA L4 data sheet; the link is PCIe Gen4 x16",
        (0.8048, 1, "g6.xlarge"),
    ),
    (
        "T4",
        {"float32": 8.1, "float16": 65.0, "int8": 130.0, "int4": 260.0},
        (320.0, 16.0, 32.0, 70.0),
        "NVIDIA T4 data sheet; the link is PCIe Gen3 x16",
        (0.526, 1, "g4dn.xlarge"),
    ),
)


def _nvidia(
    name: str,
    peak_tflops: Mapping[str, float],
    board: tuple[float, float, float, float],
    data_sheet: str,
    price: tuple[float, int, str],
) -> HardwareSpec:
    gb_per_s, gb, link_gb_per_s, watts = board
    dollars, num_gpus, instance = price
    shared = ("peak_flops_per_s", "hbm_bytes_per_s", "hbm_bytes", "link_bytes_per_s", "watts")
    return HardwareSpec(
        name=name,
        peak_flops_per_s={dtype: peak * _TFLOPS for dtype, peak in peak_tflops.items()},
        hbm_bytes_per_s=gb_per_s * _GB,
        hbm_bytes=gb * _GB,
        link_bytes_per_s=link_gb_per_s * _GB,
        watts=watts,
        dollars_per_hour=dollars / num_gpus,
        sources={
            **dict.fromkeys(shared, f"{data_sheet}; {_READ}"),
            "dollars_per_hour": f"AWS EC2 on demand, us-east-1, {instance}: ${dollars} over {num_gpus}; {_READ}",
        },
    )


_TPU_DOCS = "https://docs.cloud.google.com/tpu/docs"
_COMPARED = f"{_TPU_DOCS}/tpu7x (comparison of v5p, v6e and TPU7x)"


def _tpu(
    name: str,
    peak_tflops: Mapping[str, float],
    memory: tuple[float, float, float],
    page: str,
    *,
    watts: float | None = None,
    dollars: float | None = None,
    notes: Mapping[str, str] | None = None,
) -> HardwareSpec:
    gb_per_s, num_bytes, link_gb_per_s = memory
    shared = ("peak_flops_per_s", "hbm_bytes_per_s", "hbm_bytes", "link_bytes_per_s")
    sources: dict[str, str] = {field: page for field in shared}
    if watts is not None:
        sources["watts"] = f"{page}, the largest measured"
    if dollars is not None:
        sources["dollars_per_hour"] = "https://cloud.google.com/tpu/pricing, on demand, US regions, per chip"
    sources |= notes or {}
    return HardwareSpec(
        name=name,
        peak_flops_per_s={dtype: peak * _TFLOPS for dtype, peak in peak_tflops.items()},
        hbm_bytes_per_s=gb_per_s * _GB,
        hbm_bytes=num_bytes,
        link_bytes_per_s=link_gb_per_s * _GB,
        watts=watts,
        dollars_per_hour=dollars,
        sources={
            field: f"{text} {_DAY}" if text.endswith("recalled") else f"{text}; {_READ}"
            for field, text in sources.items()
        },
    )


_TPUS = (
    _tpu(
        "TPU-v4",
        {"bfloat16": 275.0, "int8": 275.0},
        (1200.0, 32 * _GIB, 600.0),
        f"{_TPU_DOCS}/v4",
        watts=192.0,
        dollars=3.22,
        notes={
            "link_bytes_per_s": "TPU v4 (arXiv 2304.01433), table 4: 6 links of 50 GB/s each way, recalled",
            "dollars_per_hour": "Cloud TPU price list of 2023, on demand, us-central2, per chip, recalled",
        },
    ),
    _tpu(
        "TPU-v5e",
        {"bfloat16": 197.0, "int8": 393.0},
        (819.0, 16 * _GB, 400.0),
        f"{_TPU_DOCS}/v5e (819 GBps; later versions of the page say 800 GiBps)",
        dollars=1.20,
    ),
    _tpu(
        "TPU-v5p",
        {"bfloat16": 459.0, "float8": 459.0, "int8": 918.0},
        (2765.0, 95 * _GIB, 1200.0),
        _COMPARED,
        dollars=4.20,
        notes={
            "peak_flops_per_s": f"{_COMPARED}; int8 from the announcement of Cloud TPU v5p, December 2023, recalled"
        },
    ),
    _tpu(
        "TPU-v6e",
        {"bfloat16": 918.0, "float8": 918.0, "int8": 1836.0},
        (1638.0, 32 * _GIB, 800.0),
        f"{_COMPARED}; int8 from {_TPU_DOCS}/v6e",
        dollars=2.70,
    ),
    _tpu("TPU-7x", {"bfloat16": 2307.0, "float8": 4614.0}, (7380.0, 192 * _GIB, 1200.0), _COMPARED),
)

_PAPER_SOURCE = f"Kinetics (arXiv 2506.05333), cost model: 4.5e15 FLOP/s over 8e12 bytes/s; {_READ}"

_PAPER_B200 = HardwareSpec(
    name="PAPER_B200",
    peak_flops_per_s={"bfloat16": 4.5e15},
    hbm_bytes_per_s=8e12,
    hbm_bytes=192e9,
    fixed_flops_per_byte=562.5,
    sources={
        **dict.fromkeys(("peak_flops_per_s", "hbm_bytes_per_s", "fixed_flops_per_byte"), _PAPER_SOURCE),
        "hbm_bytes": f"NVIDIA's announcement of B200, March 2024 (the paper names no capacity); {_READ}",
    },
)

HARDWARE = Catalog("hardware", {spec.name: spec for spec in (*(_nvidia(*row) for row in _NVIDIA), *_TPUS, _PAPER_B200)})
