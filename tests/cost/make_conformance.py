"""Makes docs/conformance/cost_vectors.json: `python -m tests.cost.make_conformance` in the repository's root.

Inputs are laid out by hand below, prices come from the step-by-step oracle alone. No chance and no clock: the same
code makes the same file.
"""

import json
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

from tests.cost.step_sum import FORMATS, GEOMETRY, Bill, price_prefill, price_request

SCHEMA_VERSION = 1
COMMAND = "python -m tests.cost.make_conformance"
PATH = Path(__file__).parents[2] / "docs" / "conformance" / "cost_vectors.json"

# In the order of GEOMETRY, whether the embedding is tied (which changes no price) at the end.
MODELS: dict[str, tuple[int, ...]] = {
    # layers d_model mlp heads kv_heads head_dim vocab qk_norm qkv_bias experts active gated biases tied
    "Qwen3-0.6B": (28, 1024, 3072, 16, 8, 128, 151_936, 1, 0, 0, 0, 1, 0, 1),
    "Qwen3-8B": (36, 4096, 12_288, 32, 8, 128, 151_936, 1, 0, 0, 0, 1, 0, 0),
    "Qwen3-32B": (64, 5120, 25_600, 64, 8, 128, 151_936, 1, 0, 0, 0, 1, 0, 0),
    "Qwen3-30B-A3B": (48, 2048, 768, 32, 4, 128, 151_936, 1, 0, 128, 8, 1, 0, 0),
    "Qwen3-235B-A22B": (94, 4096, 1536, 64, 4, 128, 151_936, 1, 0, 128, 8, 1, 0, 0),
    "Qwen2.5-0.5B": (24, 896, 4864, 14, 2, 64, 151_936, 0, 1, 0, 0, 1, 0, 1),
    "Llama-3.1-8B": (32, 4096, 14_336, 32, 8, 128, 128_256, 0, 0, 0, 0, 1, 0, 0),
    "OPT-1.3B": (24, 2048, 8192, 32, 32, 64, 50_272, 0, 0, 0, 0, 0, 1, 1),
    "toy of one KV head": (3, 10, 7, 16, 1, 6, 11, 0, 0, 0, 0, 1, 0, 1),
    "toy of 3 in 5 experts": (2, 6, 5, 6, 3, 2, 13, 1, 1, 5, 3, 1, 0, 0),
}
TOP_K = {"method": "topk", "sink_len": 0, "local_len": 0, "dense_layers": 0}
LOCAL = {"method": "local", "sink_len": 0, "dense_layers": 0}
BLOCK = {"method": "block_topk", "num_sink_pages": 0, "num_local_pages": 1, "dense_layers": 0}
QUEST = {**BLOCK, "method": "quest"}
METHODS: list[dict[str, Any]] = [
    {"method": "dense"},
    {**TOP_K, "budget_len": 1},
    {**TOP_K, "budget_len": 64},
    {**TOP_K, "budget_len": 48, "sink_len": 4, "local_len": 16},
    {**TOP_K, "budget_len": 128, "dense_layers": 1},
    {**TOP_K, "budget_len": 24, "dense_layers": 2},
    {**LOCAL, "window_len": 1},
    {**LOCAL, "window_len": 64},
    {**LOCAL, "window_len": 60, "sink_len": 4},
    {**LOCAL, "window_len": 20, "sink_len": 45, "dense_layers": 2},
    {**BLOCK, "page_len": 1, "num_pages": 1},
    {**BLOCK, "page_len": 16, "num_pages": 4},
    {**BLOCK, "page_len": 16, "num_pages": 5, "num_sink_pages": 1, "num_local_pages": 2},
    {**BLOCK, "page_len": 8, "num_pages": 8, "dense_layers": 1},
    {**BLOCK, "page_len": 24, "num_pages": 3},
    {**BLOCK, "page_len": 128, "num_pages": 1},
    {**QUEST, "page_len": 16, "num_pages": 4},
    {**QUEST, "page_len": 8, "num_pages": 16, "dense_layers": 2},
    {**QUEST, "page_len": 1, "num_pages": 7},
    {**QUEST, "page_len": 30, "num_pages": 3, "num_sink_pages": 1, "num_local_pages": 2},
]
TRIALS = (1, 4, 2, 32, 7)
BATCHES = (1, 8, 3, 64, 17)
CHUNKS = (None, 16, 1, 100, 33)
DTYPES = ("kv_dtype", "weight_dtype")


def conformance() -> dict[str, Any]:
    """Lay out inputs and prices as the file holds them."""
    return {
        "schema_version": SCHEMA_VERSION,
        "made_by": COMMAND,
        "request": [_vector(inputs, price_request) for inputs in _requests()],
        "prefill": [_vector(inputs, price_prefill) for inputs in _prefills()],
    }


def text_of(content: dict[str, Any]) -> str:
    """Write one vector a line, so that a change shows as the lines it changes."""
    lists = {name: part for name, part in content.items() if isinstance(part, list)}
    head = "".join(f"{json.dumps(name)}: {json.dumps(content[name])},\n" for name in content if name not in lists)
    body = (f"{json.dumps(name)}: [\n" + ",\n".join(map(json.dumps, part)) + "\n]" for name, part in lists.items())
    return "{\n" + head + ",\n".join(body) + "\n}\n"


def _requests() -> Iterator[dict[str, Any]]:
    """Price every method at every edge; each with two settings of model, dtypes and sharing, so that both meet it."""
    for row, method in enumerate(METHODS):
        for column, (edge, prompt_len, gen_len) in enumerate(_edges(method)):
            setting = 2 * row + column % 2
            yield {
                "edge": edge,
                **_settings(setting, method),
                "prompt_len": prompt_len,
                "gen_len": gen_len,
                "num_trials": TRIALS[(row + column) % len(TRIALS)],
                "batch_size": None if setting % 4 == 3 else BATCHES[(row + column // 2) % len(BATCHES)],
                "share_prompt": setting % 3 != 2,
            }


def _prefills() -> Iterator[dict[str, Any]]:
    for row, method in enumerate(METHODS):
        prompt_lens = (0, 1, 95, 96, 97, 500)
        for column in (row % 6, (row + 3) % 6):
            settings = _settings(2 * row + 1, method)
            # A fraction has n digits per n tokens of a chunk: kept below 1e300, so that doubles can divide it.
            chunk_len = 16 if settings["model"]["num_experts"] else CHUNKS[(row + column) % len(CHUNKS)]
            yield {
                **settings,
                "prompt_len": prompt_lens[column],
                "chunk_len": chunk_len,
                "batch_size": None if row % 5 == 4 else BATCHES[(row + column) % 3],
            }


def _settings(number: int, method: dict[str, Any]) -> dict[str, Any]:
    """Pick a model and the dtypes: steps without a common factor meet all combinations in time."""
    names, dtypes = list(MODELS), list(FORMATS)
    name = names[(3 * number + number // len(names)) % len(names)]
    return {
        "model": {"name": name, **dict(zip((*GEOMETRY, "tied_embeddings"), MODELS[name], strict=True))},
        "attention": method,
        "kv_dtype": dtypes[(number + number // len(dtypes)) % len(dtypes)],
        "weight_dtype": dtypes[(5 * number + 1) % len(dtypes)],
    }


def _edges(method: dict[str, Any]) -> list[tuple[str, int, int]]:
    """List (name, prompt_len, gen_len) where closed forms go wrong."""
    page_len = method.get("page_len", 16)
    budget_len = page_len * method["num_pages"] if "num_pages" in method else method.get("budget_len", 64)
    if method["method"] == "local":
        budget_len = method["window_len"] + method["sink_len"]
    return [
        ("nothing generated", 37, 0),
        ("one token from nothing", 0, 1),
        ("no prompt, ends at the budget", 0, budget_len),
        ("prompt of one token", 1, 2 * budget_len + 3),
        ("context reaches the budget exactly", budget_len - 1, 1),
        ("first step beyond the budget", budget_len, 1),
        ("prompt ends with a page", 6 * page_len, page_len + 1),
        ("prompt one short of a page", 6 * page_len - 1, 2),
        ("prompt one into a page", 6 * page_len + 1, 2 * page_len - 1),
        ("crosses the budget", max(budget_len - 10, 0), 25),
        ("generation shorter than what the budget lacks", budget_len // 3, budget_len // 3),
        ("trials outgrow the shared prompt", 3 * budget_len + 5, 4 * budget_len + 11),
        ("long", 1003, 2100),
    ]


def _vector(inputs: dict[str, Any], price: Any) -> dict[str, Any]:
    arguments = {name: value for name, value in inputs.items() if name not in ("edge", "model", "attention")}
    bill: Bill = price(inputs["model"], inputs["attention"], **arguments)
    formats = {name: {"name": inputs[name], "num_bits": FORMATS[inputs[name]][0]} for name in DTYPES}
    formats["kv_dtype"]["scale_bytes"] = FORMATS[inputs["kv_dtype"]][1]
    return {**inputs, **formats, "cost": {leaf: _exact(term) for leaf, term in bill.items()}}


def _exact(term: Fraction) -> int | str:
    return term.numerator if term.denominator == 1 else f"{term.numerator}/{term.denominator}"


if __name__ == "__main__":
    PATH.parent.mkdir(parents=True, exist_ok=True)
    PATH.write_text(text_of(conformance()), encoding="utf-8")
