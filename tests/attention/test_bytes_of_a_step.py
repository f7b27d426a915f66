"""What a decode reads, counted from the pages it selected, is what `cost` charges for the step."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinetics_jax.cost import request_cost
from kinetics_jax.specs import BlockTopK, ModelSpec, Quest, attention_by_layer
from pallas_kernels import BlockTopKResult, block_topk_decode, page_bounds, page_means, quest_decode

MODEL = ModelSpec(
    name="test",
    family="test",
    num_layers=3,
    d_model=8,
    mlp_dim=8,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    vocab_size=8,
    max_len=64,
)
PAGE_LEN, MAX_PAGES, BATCH_SIZE = 4, 8, 3
SPECS = [
    BlockTopK(page_len=PAGE_LEN, num_pages=1),
    BlockTopK(page_len=PAGE_LEN, num_pages=4, num_sink_pages=1, num_local_pages=2, dense_layers=1),
    Quest(page_len=PAGE_LEN, num_pages=3, num_sink_pages=1),
    Quest(page_len=PAGE_LEN, num_pages=MAX_PAGES, dense_layers=2),
]


@partial(jax.jit, static_argnums=0)
def decode(spec: BlockTopK | Quest, seed: jax.Array, lengths: jax.Array) -> BlockTopKResult:
    """Select among random pages of each sequence's own."""
    keys = jax.random.split(jax.random.key(seed), 2)
    q = jax.random.normal(keys[0], (BATCH_SIZE, MODEL.num_heads, MODEL.head_dim))
    shape = (BATCH_SIZE * MAX_PAGES, MODEL.num_kv_heads, PAGE_LEN, MODEL.head_dim)
    pages = jax.random.normal(keys[1], shape)
    table = jnp.arange(BATCH_SIZE * MAX_PAGES, dtype=jnp.int32).reshape(BATCH_SIZE, MAX_PAGES)
    position = jnp.arange(MAX_PAGES * PAGE_LEN, dtype=jnp.int32)[None] < lengths[:, None]
    held = position.reshape(-1, 1, PAGE_LEN)
    counts = (spec.num_pages, spec.num_sink_pages, spec.num_local_pages)
    blocks = dict(zip(("num_blocks", "num_sink_blocks", "num_local_blocks"), counts, strict=True))
    if isinstance(spec, Quest):
        return quest_decode(q, pages, pages, page_bounds(pages, held), table, lengths, **blocks, return_residuals=True)
    return block_topk_decode(q, pages, pages, page_means(pages, held), table, lengths, **blocks, return_residuals=True)


def bytes_read(spec: BlockTopK | Quest, selected: np.ndarray, length: int) -> tuple[int, int]:
    """Count the bytes of entries and of summaries that one sequence reads in one layer, from its pages [K, J]."""
    entries = summaries = 0
    for row in selected.tolist():
        pages = [m for m in row if m < MAX_PAGES]
        tail_len = length - pages[-1] * PAGE_LEN  # the newest page is always read
        assert 0 < tail_len <= PAGE_LEN
        entries += (len(pages) - 1) * PAGE_LEN + tail_len
        num_held = pages[-1] + 1
        summaries += num_held if len(pages) < num_held else 0
    vector = MODEL.head_dim * 4
    return 2 * entries * vector, summaries * vector * (2 if isinstance(spec, Quest) else 1)


@pytest.mark.parametrize("spec", SPECS, ids=str)
@settings(max_examples=15)
@given(lengths=st.tuples(*[st.integers(1, MAX_PAGES * PAGE_LEN)] * BATCH_SIZE), seed=st.integers(0, 2**30))
def test_the_bytes_of_a_step_are_those_that_cost_predicts(spec, lengths, seed):
    entries, summaries = np.zeros(BATCH_SIZE), np.zeros(BATCH_SIZE)
    for layer, of_layer in enumerate(attention_by_layer(spec, MODEL.num_layers)):
        if isinstance(of_layer, BlockTopK | Quest):
            selected = np.asarray(decode(of_layer, seed + layer, jnp.asarray(lengths, "int32")).selected)
            found = np.array([bytes_read(spec, selected[b], lengths[b]) for b in range(BATCH_SIZE)])
            entries, summaries = entries + found[:, 0], summaries + found[:, 1]
        else:
            entries = entries + 2 * np.array(lengths) * MODEL.num_kv_heads * MODEL.head_dim * 4
    for b, length in enumerate(lengths):
        step = request_cost(MODEL, spec, prompt_len=length - 1, gen_len=1, num_trials=1, kv_dtype="float32")
        assert (entries[b], summaries[b]) == (step.kv_read_bytes, step.search_bytes)
