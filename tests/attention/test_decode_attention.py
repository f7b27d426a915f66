"""decode_attention: the four specs against the oracles, alone, in a loop and under vmap."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kinetics_jax.attention import PagedCache, advance, append, decode_attention, init_shared_cache, write_prompt
from kinetics_jax.specs import AttentionSpec, BlockTopK, Dense, Local, ModelSpec, TopK
from pallas_kernels._reference import (
    reference_block_topk_decode,
    reference_key_means,
    reference_paged_decode,
    reference_topk_decode,
)

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
    BlockTopK(page_len=4, num_pages=2),
    BlockTopK(page_len=4, num_pages=3, num_sink_pages=1),
    Local(window_len=6),
]
FULL_SPECS = [
    TopK(budget_len=TABLE_LEN),
    BlockTopK(page_len=4, num_pages=5),
    BlockTopK(page_len=4, num_pages=9, num_sink_pages=2),
    Local(window_len=TABLE_LEN),
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


def oracle(spec: AttentionSpec, q: jax.Array, cache: PagedCache, layer: int) -> np.ndarray:
    pages, table, lengths = (cache.key_pages[layer], cache.value_pages[layer]), cache.page_table, cache.lengths + 1
    match spec:
        case Dense():
            return reference_paged_decode(q, *pages, table, lengths)
        case Local(window_len=window_len):
            return reference_paged_decode(q, *pages, table, lengths, window_len=window_len)
        case TopK(budget_len=budget_len):
            return reference_topk_decode(q, *pages, table, lengths, budget_len=budget_len)[0]
        case BlockTopK(num_pages=num_pages, num_sink_pages=num_sinks):
            means = jnp.asarray(reference_key_means(pages[0], table, lengths), "float32")
            return reference_block_topk_decode(
                q, *pages, means, table, lengths, num_blocks=num_pages, num_sink_blocks=num_sinks
            )[0]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_every_step_equals_the_oracle(spec, rng):
    cache = start(0, 6)
    append_token = jax.jit(lambda cache, k, v: append(cache, 1, k, v))
    traces = []

    @jax.jit
    def attend(q, cache):
        traces.append(spec)
        return decode_attention(spec, q, cache, 1)

    for _ in range(MAX_GEN_LEN):
        k, v, q = normal(rng, 3, NUM_TRIALS, 6, 8)
        cache = append_token(cache, k[:, :2], v[:, :2])
        np.testing.assert_allclose(attend(q, cache), oracle(spec, q, cache, 1), atol=3e-6)
        cache = advance(cache)
    assert len(traces) == 1


@pytest.mark.parametrize("spec", [Dense(), SPECS[3]], ids=str)
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


@pytest.mark.parametrize(
    "spec", [TopK(budget_len=16), BlockTopK(page_len=4, num_pages=4), Local(window_len=16)], ids=str
)
def test_budget_over_the_context_is_dense(spec, rng):
    # 7 + 9 = 16 tokens in a table of 20.
    noise = normal(rng, MAX_GEN_LEN, NUM_TRIALS, 6, 8)
    _, dense = run(Dense(), start(2, 7), noise)
    # Each step feeds the next: rounding grows.
    np.testing.assert_allclose(run(spec, start(2, 7), noise)[1], dense, atol=2e-5)


def test_topk_ties_go_to_the_lowest_token():
    @jax.jit
    def step(cache, zeros):  # every score is 0
        return decode_attention(TopK(budget_len=3), zeros, append(cache, 0, zeros[:, :2], zeros[:, :2]), 0)

    cache = start(3, 8)
    values = np.asarray(cache.value_pages)[0, 0, :, :3].mean(axis=1)  # the first three tokens, [K, H]
    wanted = np.broadcast_to(np.repeat(values, 3, axis=0), (3, 6, 8))
    np.testing.assert_allclose(step(cache, jnp.zeros((3, 6, 8))), wanted, atol=1e-6)


@pytest.mark.parametrize("spec", [TopK(budget_len=5), BlockTopK(page_len=4, num_pages=3, num_sink_pages=1)], ids=str)
def test_vmap_over_problems_equals_one_at_a_time(spec, rng):
    prompt_lens, noise = jnp.array([1, 4, 11]), normal(rng, 3, 4, NUM_TRIALS, 6, 8)
    caches = [start(4, prompt_len) for prompt_len in prompt_lens]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *caches)
    cache, outs = jax.jit(jax.vmap(lambda cache, noise: decode(spec, cache, noise)))(stacked, noise)
    for i in range(3):
        single_cache, single = run(spec, caches[i], noise[i])
        np.testing.assert_allclose(outs[i], single, atol=1e-5)
        np.testing.assert_array_equal(cache.lengths[i], single_cache.lengths)


@pytest.mark.parametrize("spec", [TopK(budget_len=5), BlockTopK(page_len=4, num_pages=2)], ids=str)
def test_a_trial_does_not_depend_on_the_others(spec, rng):
    @jax.jit
    def step(cache, q, k, v):
        return decode_attention(spec, q, append(cache, 0, k, v), 0)

    cache, (q, k, v) = start(5, 6), normal(rng, 3, NUM_TRIALS, 6, 8)
    out = step(cache, q, k[:, :2], v[:, :2])
    others = (np.arange(NUM_TRIALS) > 0)[:, None, None]
    changed = step(cache, jnp.where(others, 7.0, q), *(jnp.where(others, jnp.nan, x)[:, :2] for x in (k, v)))
    np.testing.assert_array_equal(changed[0], out[0])


def test_page_len_of_the_spec_must_be_the_cache_s():
    with pytest.raises(ValueError, match="Build the cache with page_len=8"):
        decode_attention(BlockTopK(page_len=8, num_pages=2), jnp.ones((3, 6, 8)), start(6, 5), 0)
