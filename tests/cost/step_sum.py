"""The oracle of the cost model: prices a request one step at a time, in whole numbers and fractions.

It imports nothing of the house and takes plain numbers only, in the form of docs/conformance/README.md, which says in
words what is counted here. Slow on purpose: no sum over steps is ever taken in closed form.
"""

from collections.abc import Mapping
from fractions import Fraction
from typing import NamedTuple

LEAVES: tuple[str, ...] = (
    "linear_flops",
    "attention_flops",
    "search_flops",
    "kv_read_bytes",
    "kv_write_bytes",
    "search_bytes",
    "param_bytes",
)
# What the price of a model depends on: fields of `ModelSpec`.
GEOMETRY = (
    "num_layers",
    "d_model",
    "mlp_dim",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "vocab_size",
    "qk_norm",
    "qkv_bias",
    "num_experts",
    "num_active_experts",
    "gated_mlp",
    "has_biases",
)
FORMATS = {  # name: bits of an element, bytes of the scale beside each cached vector
    "float32": (32, 0),
    "bfloat16": (16, 0),
    "float16": (16, 0),
    "float8": (8, 2),
    "int8": (8, 2),
    "int4": (4, 2),
}
_SUMMARY_VECTORS = {"block_topk": 1, "quest": 2}
_DENSE = {"method": "dense"}

Bill = dict[str, Fraction]
Sizes = Mapping[str, int]
Method = Mapping[str, str | int]


class Step(NamedTuple):
    """What one decode step does, in one layer and KV head.

    attended: Entries that one trial multiplies with its query.
    fetched: Entries that all trials together read from memory.
    scored: Page summaries that one trial multiplies with its query.
    summaries: Page summaries that all trials together read from memory.
    """

    attended: int
    fetched: int
    scored: int
    summaries: int


def price_request(
    geometry: Sizes,
    attention: Method,
    *,
    prompt_len: int,
    gen_len: int,
    num_trials: int = 1,
    kv_dtype: str = "bfloat16",
    weight_dtype: str = "bfloat16",
    batch_size: int | None = None,
    share_prompt: bool = True,
) -> Bill:
    """Price `num_trials` generations from one prompt."""
    width, num_kv_heads = geometry["head_dim"], geometry["num_kv_heads"]
    vector_bytes, summary_bytes = _vector_bytes(kv_dtype, width), _summary_bytes(kv_dtype, width)
    num_steps = gen_len * num_trials
    bill = dict.fromkeys(LEAVES, Fraction(0))
    bill["linear_flops"] += 2 * active_matmul_params(geometry) * num_steps
    if batch_size is not None:
        bill["param_bytes"] += num_steps * weight_bytes(geometry, weight_dtype, batch_size) / batch_size
    for num_layers, method in _layers(geometry, attention):
        steps = [step(method, prompt_len, t, num_trials, share_prompt) for t in range(1, gen_len + 1)]
        num_query_heads, num_caches = num_layers * geometry["num_heads"], num_layers * num_kv_heads
        num_vectors = _SUMMARY_VECTORS.get(str(method["method"]), 0)
        attended, scored = sum(s.attended for s in steps), sum(s.scored for s in steps)
        bill["attention_flops"] += num_query_heads * num_trials * 4 * width * attended
        bill["search_flops"] += num_query_heads * num_trials * num_vectors * 2 * width * scored
        bill["kv_read_bytes"] += num_caches * 2 * vector_bytes * sum(s.fetched for s in steps)
        bill["kv_write_bytes"] += num_caches * num_steps * (2 * vector_bytes + num_vectors * summary_bytes)
        bill["search_bytes"] += num_caches * num_vectors * summary_bytes * sum(s.summaries for s in steps)
    return bill


def price_prefill(
    geometry: Sizes,
    attention: Method,
    *,
    prompt_len: int,
    chunk_len: int | None = None,
    kv_dtype: str = "bfloat16",
    weight_dtype: str = "bfloat16",
    batch_size: int | None = None,
) -> Bill:
    """Price the prompt, chunk by chunk and token by token."""
    width, num_caches = geometry["head_dim"], geometry["num_layers"] * geometry["num_kv_heads"]
    vector_bytes, head = _vector_bytes(kv_dtype, width), geometry["vocab_size"] * geometry["d_model"]
    bill = dict.fromkeys(LEAVES, Fraction(0))
    if prompt_len == 0:
        return bill
    for position in range(prompt_len):
        bill["linear_flops"] += 2 * (active_matmul_params(geometry) - head)
        bill["attention_flops"] += 4 * width * geometry["num_layers"] * geometry["num_heads"] * (position + 1)
        bill["kv_write_bytes"] += num_caches * 2 * vector_bytes
    bill["linear_flops"] += 2 * head
    for start in range(0, prompt_len, chunk_len or prompt_len):
        end = min(start + (chunk_len or prompt_len), prompt_len)
        bill["kv_read_bytes"] += num_caches * 2 * vector_bytes * end
        if batch_size is not None:
            num_tokens = batch_size * (end - start)
            bill["param_bytes"] += weight_bytes(geometry, weight_dtype, num_tokens) / batch_size
    for num_layers, method in _layers(geometry, attention):
        num_vectors = _SUMMARY_VECTORS.get(str(method["method"]), 0)
        num_pages = _num_pages(prompt_len, int(method["page_len"])) if num_vectors else 0
        one_page = num_layers * geometry["num_kv_heads"] * num_vectors * _summary_bytes(kv_dtype, width)
        bill["kv_write_bytes"] += num_pages * one_page
    return bill


def step(method: Method, prompt_len: int, t: int, num_trials: int, share_prompt: bool) -> Step:
    """Count what the t-th generated token reads, t = 1, 2, ...: its context holds prompt_len + t entries."""
    context_len = prompt_len + t
    attended = entries_read(method, context_len)
    scored = pages_scored(method, context_len)
    if not share_prompt:
        return Step(attended, num_trials * attended, scored, num_trials * scored)
    streamed = prompt_len + num_trials * t
    fetched = min(num_trials * attended, streamed)
    if method["method"] == "dense":
        fetched = streamed
    if method["method"] == "local":
        common = _local_rows_of_prompt(method, prompt_len, context_len)
        fetched = common + num_trials * (attended - common)
    common = prompt_len // int(method["page_len"]) if scored else 0
    return Step(attended, fetched, scored, common + num_trials * (scored - common))


def entries_read(method: Method, context_len: int) -> int:
    """Count the entries that one trial reads of a context, in one layer and KV head."""
    if method["method"] == "dense":
        return context_len
    if method["method"] == "topk":
        return min(context_len, int(method["budget_len"]))
    if method["method"] == "local":
        return min(context_len, int(method["window_len"]) + int(method["sink_len"]))
    page_len, num_selected = int(method["page_len"]), int(method["num_pages"])
    num_pages = _num_pages(context_len, page_len)
    if num_pages <= num_selected:
        return context_len
    newest = context_len - (num_pages - 1) * page_len
    return (num_selected - 1) * page_len + newest


def pages_scored(method: Method, context_len: int) -> int:
    """Count the pages that one trial scores: all of them, if they do not all fit."""
    if method["method"] not in _SUMMARY_VECTORS:
        return 0
    num_pages = _num_pages(context_len, int(method["page_len"]))
    return num_pages if num_pages > int(method["num_pages"]) else 0


def matmul_params(geometry: Sizes, num_experts: Fraction | int) -> Fraction:
    """Count the parameters in matrix products, norms and biases; every layer holds `num_experts` MLPs.

    The look-ups of the input embedding and of a learned position are left out; the head counts, tied or not.
    """
    width, d_model, mlp_dim = geometry["head_dim"], geometry["d_model"], geometry["mlp_dim"]
    q_width, kv_width = geometry["num_heads"] * width, geometry["num_kv_heads"] * width
    has_biases = geometry["has_biases"]
    norm = 2 * d_model if has_biases else d_model
    attention = d_model * q_width + 2 * d_model * kv_width + q_width * d_model
    if geometry["qkv_bias"] or has_biases:
        attention += q_width + 2 * kv_width
    if has_biases:
        attention += d_model
    if geometry["qk_norm"]:
        attention += 2 * width
    expert = (3 if geometry["gated_mlp"] else 2) * d_model * mlp_dim
    if has_biases:
        expert += d_model + (2 if geometry["gated_mlp"] else 1) * mlp_dim
    router = d_model * geometry["num_experts"]
    layer = attention + 2 * norm + router + num_experts * Fraction(expert)
    return geometry["vocab_size"] * d_model + geometry["num_layers"] * layer + norm


def active_matmul_params(geometry: Sizes) -> Fraction:
    """Count the parameters that one token meets in matrix products."""
    return matmul_params(geometry, max(geometry["num_active_experts"], 1))


def distinct_experts(geometry: Sizes, num_tokens: int) -> Fraction:
    """Return the expected number of experts that some of `num_tokens` tokens visit; 1 for a plain MLP."""
    num_experts, num_active = geometry["num_experts"], geometry["num_active_experts"]
    if num_experts == 0:
        return Fraction(1)
    return num_experts * (1 - (1 - Fraction(num_active, num_experts)) ** num_tokens)


def weight_bytes(geometry: Sizes, weight_dtype: str, num_tokens: int) -> Fraction:
    """Return the bytes of weights that one forward pass over `num_tokens` tokens reads."""
    return matmul_params(geometry, distinct_experts(geometry, num_tokens)) * Fraction(FORMATS[weight_dtype][0], 8)


def _layers(geometry: Sizes, attention: Method) -> list[tuple[int, Method]]:
    """List (layers, what they run): the first `dense_layers` are dense."""
    num_dense = min(int(attention.get("dense_layers", 0)), geometry["num_layers"])
    return [(num_dense, _DENSE), (geometry["num_layers"] - num_dense, attention)]


def _local_rows_of_prompt(method: Method, prompt_len: int, context_len: int) -> int:
    """Count the rows among sinks and window that lie in the prompt."""
    num_sinks = min(int(method["sink_len"]), prompt_len)
    window_start = max(context_len - int(method["window_len"]), num_sinks)
    return num_sinks + max(prompt_len - window_start, 0)


def _num_pages(context_len: int, page_len: int) -> int:
    return -(-context_len // page_len)


def _vector_bytes(kv_dtype: str, width: int) -> Fraction:
    num_bits, scale_bytes = FORMATS[kv_dtype]
    return Fraction(width * num_bits, 8) + scale_bytes


def _summary_bytes(kv_dtype: str, width: int) -> Fraction:
    """Page summaries are never quantised: below 16 bits they are kept in bfloat16."""
    return Fraction(width * max(FORMATS[kv_dtype][0], 16), 8)
