"""decode_attention: every spec and option against the oracles, alone, in a loop and under vmap."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kinetics_jax.attention import PagedCache, advance, decode_attention, init_shared_cache, write_prompt
from kinetics_jax.specs import AttentionSpec, BlockTopK, Dense, Local, ModelSpec, Quest, TopK
from pallas_kernels._reference import (
    reference_block_topk_decode,
    reference_key_bounds,
    reference_key_means,
    reference_paged_decode,
    reference_quest_decode,
    reference_topk_decode,
)
from tests.attention.appending import append

MODEL = ModelSpec(
    name="test",
    family="test",
    num_layers=2,
    d_model=8,
    mlp_dim=8,
    num_heads=6,
    num_kv_heads=2,
    head_dim=8,
    vocab_size=8,
    max_len=64,
)
PAGE_LEN, MAX_PROMPT_LEN, MAX_GEN_LEN, NUM_TRIALS = 4, 11, 9, 3
TABLE_LEN = 20
SPECS = [
    Dense(),
    TopK(budget_len=5),
    TopK(budget_len=7, sink_len=2, local_len=3),
    BlockTopK(page_len=4, num_pages=2),
    BlockTopK(page_len=4, num_pages=3, num_sink_pages=1),
    BlockTopK(page_len=4, num_pages=3, num_local_pages=2),
    Quest(page_len=4, num_pages=2),
    Quest(page_len=4, num_pages=4, num_sink_pages=1, num_local_pages=2),
    Local(window_len=6),
    Local(window_len=5, sink_len=3),
]
FULL_SPECS = [
    TopK(budget_len=TABLE_LEN, sink_len=3, local_len=2),
    BlockTopK(page_len=4, num_pages=9, num_sink_pages=2, num_local_pages=2),
    Quest(page_len=4, num_pages=5, num_sink_pages=2),
    Local(window_len=TABLE_LEN - 3, sink_len=3),
]


def normal(rng: np.random.Generator, *shape: int) -> jax.Array:
    return jnp.asarray(rng.normal(size=shape), "float32")


def start(seed: int, prompt_len: int | jax.Array) -> PagedCache:
    cache = init_shared_cache(
        MODEL, num_trials=NUM_TRIALS, max_prompt_len=MAX_PROMPT_LEN, max_gen_len=MAX_GEN_LEN, page_len=PAGE_LEN
    )
    keys, values = normal(np.random.default_rng(seed), 2, 2, MAX_PROMPT_LEN, 2, 8)
    return jax.jit(write_prompt)(cache, keys, values, prompt_len)


def decode(spec: AttentionSpec, cache: PagedCache, noise: jax.Array) -> tuple[PagedCache, jax.Array]:
    """Run a step for each row of noise [T, B, N, H], each feeding the next; return the outputs [T, L, B, N, H]."""

    def step(carry):
        index, cache, x, outs = carry
        for layer in range(2):
            cache = append(cache, layer, x[:, :2], x[:, 2:4])
            out = decode_attention(spec, x, cache, layer)
            outs = outs.at[index, layer].set(out)
            x = jnp.roll(out, 1, axis=-1) + noise[index]
        return index + 1, advance(cache), x, outs

    num_steps = noise.shape[0]
    outs = jnp.zeros((num_steps, 2, *noise.shape[1:]))
    _, cache, _, outs = jax.lax.while_loop(lambda carry: carry[0] < num_steps, step, (0, cache, noise[0], outs))
    return cache, outs


run = jax.jit(decode, static_argnums=0)
append_token = jax.jit(lambda cache, k, v: append(cache, 1, k, v))


def oracle(spec: AttentionSpec, q: jax.Array, cache: PagedCache, layer: int) -> np.ndarray:
    pages, table, lengths = (cache.key_pages[layer], cache.value_pages[layer]), cache.page_table, cache.lengths + 1
    match spec:
        case Dense():
            return reference_paged_decode(q, *pages, table, lengths).out
        case Local(window_len=window_len, sink_len=sink_len):
            return reference_paged_decode(q, *pages, table, lengths, window_len=window_len, sink_len=sink_len).out
        case TopK(budget_len=budget_len, sink_len=sink_len, local_len=local_len):
            counts = {"budget_len": budget_len, "sink_len": sink_len, "local_len": local_len}
            return reference_topk_decode(q, *pages, table, lengths, **counts).out
        case BlockTopK() | Quest():
            blocks: dict[str, Any] = {
                "num_blocks": spec.num_pages,
                "num_sink_blocks": spec.num_sink_pages,
                "num_local_blocks": spec.num_local_pages,
            }
            if isinstance(spec, Quest):
                bounds = jnp.asarray(reference_key_bounds(pages[0], table, lengths), "float32")
                return reference_quest_decode(q, *pages, bounds, table, lengths, **blocks).out
            means = jnp.asarray(reference_key_means(pages[0], table, lengths), "float32")
            return reference_block_topk_decode(q, *pages, means, table, lengths, **blocks).out


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_every_step_equals_the_oracle(spec, rng):
    traces = []

    @jax.jit
    def attend(q, cache):
        traces.append(spec)
        return decode_attention(spec, q, cache, 1)

    for prompt_len in (1, 11):  # contexts of 2 .. 10 and 12 .. 20: within every budget, and the whole table
        cache = start(prompt_len, prompt_len)
        for _ in range(MAX_GEN_LEN):
            k, v, q = normal(rng, 3, NUM_TRIALS, 6, 8)
            cache = append_token(cache, k[:, :2], v[:, :2])
            np.testing.assert_allclose(attend(q, cache), oracle(spec, q, cache, 1), atol=3e-6)
            cache = advance(cache)
    assert len(traces) == 1


def test_what_is_not_held_never_leaks(rng):
    k, v, q = normal(rng, 3, NUM_TRIALS, 6, 8)
    sparse = [spec for spec in SPECS if not isinstance(spec, Dense) and spec.budget_len < 12]
    attend = jax.jit(lambda cache: [decode_attention(spec, q, cache, 1) for spec in sparse])
    for prompt_len in (3, 9, 11):
        cache = append_token(start(prompt_len, prompt_len), k[:, :2], v[:, :2])
        table, pools = np.asarray(cache.page_table), jax.device_get((cache.key_pages, cache.value_pages))
        blank = np.ones((pools[0].shape[1], PAGE_LEN), bool)
        for s in range(prompt_len + 1):
            blank[table[:, s // PAGE_LEN], s % PAGE_LEN] = False
        keys, values = (jnp.asarray(np.where(blank[:, None, :, None], np.float32("nan"), pool)) for pool in pools)
        means = np.where(np.reshape(blank.all(axis=1), (-1, 1, 1)), np.float32("nan"), np.asarray(cache.key_means))
        poisoned = dataclasses.replace(cache, key_pages=keys, value_pages=values, key_means=jnp.asarray(means))
        for clean, out in zip(attend(cache), attend(poisoned), strict=True):
            np.testing.assert_array_equal(out, clean)
            assert np.isfinite(out).all()


@pytest.mark.parametrize("spec", [Dense(), SPECS[4]], ids=str)
def test_the_loop_updates_the_pools_in_place(spec, rng):
    """The compiled loop holds no copy of a pool: a step touches what it reads and the page that it writes."""
    noise, cache = normal(rng, MAX_GEN_LEN, NUM_TRIALS, 6, 8), start(0, 6)
    loop = jax.jit(lambda cache, noise: decode(spec, cache, noise), donate_argnums=0)
    compiled = loop.lower(cache, noise).compile().as_text() or ""
    shape = ",".join(map(str, cache.key_pages.shape))
    assert f"f32[{shape}]" in compiled
    assert not re.findall(rf"= f32\[{shape}\]\S* copy\(", compiled)


@pytest.mark.parametrize("spec", FULL_SPECS, ids=str)
def test_budget_over_the_table_is_dense_bit_for_bit(spec, rng):
    noise = normal(rng, MAX_GEN_LEN, NUM_TRIALS, 6, 8)
    dense_cache, dense = run(Dense(), start(1, 7), noise)
    cache, outs = run(spec, start(1, 7), noise)
    np.testing.assert_array_equal(outs, dense)
    jax.tree.map(np.testing.assert_array_equal, cache, dense_cache)


@pytest.mark.parametrize("spec", [TopK(budget_len=16), Quest(page_len=4, num_pages=4), Local(window_len=16)], ids=str)
def test_budget_over_the_context_is_dense(spec, rng):
    # 7 + 9 = 16 tokens in a table of 20.
    noise = normal(rng, MAX_GEN_LEN, NUM_TRIALS, 6, 8)
    _, dense = run(Dense(), start(2, 7), noise)
    # Each step feeds the next: rounding grows.
    np.testing.assert_allclose(run(spec, start(2, 7), noise)[1], dense, atol=2e-5)


def test_equal_scores_go_to_the_lowest_and_every_entry_counts_once():
    """With q = 0 all scores are equal, and the output is the plain mean of the values read."""
    read = {  # of tokens 0 .. 8 in pages of 4: the newest page holds token 8 alone
        TopK(budget_len=3): [0, 1, 2],
        TopK(budget_len=4, sink_len=1, local_len=2): [0, 1, 7, 8],
        BlockTopK(page_len=4, num_pages=2, num_local_pages=2): [4, 5, 6, 7, 8],
        Quest(page_len=4, num_pages=2): [0, 1, 2, 3, 8],
        Quest(page_len=4, num_pages=2, num_local_pages=2): [4, 5, 6, 7, 8],
        Local(window_len=2, sink_len=3): [0, 1, 2, 7, 8],
        Local(window_len=7, sink_len=4): list(range(9)),
    }
    zeros = jnp.zeros((NUM_TRIALS, 6, 8))
    cache = append_token(start(3, 8), zeros[:, :2], zeros[:, :2])
    outs = jax.jit(lambda cache: [decode_attention(spec, zeros, cache, 1) for spec in read])(cache)
    values = np.asarray(cache.value_pages)[1, np.asarray(cache.page_table)[0]].swapaxes(1, 2).reshape(-1, 2, 8)
    for out, positions in zip(outs, read.values(), strict=True):
        wanted = np.repeat(values[positions].mean(axis=0), 3, axis=0)
        np.testing.assert_allclose(out, np.broadcast_to(wanted, out.shape), atol=1e-6)


@pytest.mark.parametrize("spec", [SPECS[2], SPECS[7]], ids=str)
def test_vmap_over_problems_equals_one_at_a_time(spec, rng):
    prompt_lens, noise = jnp.array([1, 4, 11]), normal(rng, 3, 4, NUM_TRIALS, 6, 8)
    caches = [start(4, prompt_len) for prompt_len in prompt_lens]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *caches)
    cache, outs = jax.jit(jax.vmap(lambda cache, noise: decode(spec, cache, noise)))(stacked, noise)
    for i in range(3):
        single_cache, single = run(spec, caches[i], noise[i])
        np.testing.assert_allclose(outs[i], single, atol=1e-5)
        np.testing.assert_array_equal(cache.lengths[i], single_cache.lengths)


@pytest.mark.parametrize("spec", [TopK(budget_len=5), SPECS[3], SPECS[6], SPECS[9]], ids=str)
def test_a_trial_does_not_depend_on_the_others(spec, rng):
    @jax.jit
    def step(cache, q, k, v):
        return decode_attention(spec, q, append(cache, 0, k, v), 0)

    cache, (q, k, v) = start(5, 6), normal(rng, 3, NUM_TRIALS, 6, 8)
    out = step(cache, q, k[:, :2], v[:, :2])
    others = (np.arange(NUM_TRIALS) > 0)[:, None, None]
    changed = step(cache, jnp.where(others, 7.0, q), *(jnp.where(others, jnp.nan, x)[:, :2] for x in (k, v)))
    np.testing.assert_array_equal(changed[0], out[0])


@pytest.mark.parametrize("method", [BlockTopK, Quest])
def test_page_len_of_the_spec_must_be_the_cache_s(method):
    with pytest.raises(ValueError, match="Build the cache with page_len=8"):
        decode_attention(method(page_len=8, num_pages=2), jnp.ones((3, 6, 8)), start(6, 5), 0)
