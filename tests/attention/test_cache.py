"""The cache: where a shared prompt and the tokens after it end up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kinetics_jax.attention import PagedCache, advance, append, init_shared_cache, write_prompt
from kinetics_jax.specs import ModelSpec
from pallas_kernels import gather_pages

MODEL = ModelSpec(
    name="test",
    family="test",
    num_layers=2,
    d_model=8,
    mlp_dim=8,
    num_heads=6,
    num_kv_heads=2,
    head_dim=4,
    vocab_size=8,
    max_len=64,
)


def held(cache: PagedCache, layer: int) -> jax.Array:
    """The keys of one layer in order of position, [B, K, S, H]."""
    return gather_pages(cache.key_pages[layer], cache.page_table)


def append_all_layers(cache: PagedCache, keys: jax.Array, values: jax.Array) -> PagedCache:
    for layer in range(2):
        cache = append(cache, layer, keys[layer], values[layer])
    return advance(cache)


def fill(prompt_len: int, gen_len: int, *, page_len: int = 4, num_trials: int = 3, dtype: str = "float32"):
    """Write a prompt and append tokens; return the cache and the keys [L, B, T, K, H] it should hold."""
    rng = np.random.default_rng(prompt_len)
    cache = init_shared_cache(
        MODEL, num_trials=num_trials, max_prompt_len=9, max_gen_len=7, page_len=page_len, dtype=dtype
    )
    prompt = jnp.asarray(rng.normal(size=(2, 9, 2, 4)), dtype)
    tokens = jnp.asarray(rng.normal(size=(gen_len, 2, num_trials, 2, 4)), dtype)
    poisoned = jnp.where((jnp.arange(9) < prompt_len)[None, :, None, None], prompt, jnp.nan)
    cache = jax.jit(write_prompt)(cache, poisoned, poisoned, prompt_len)
    step = jax.jit(append_all_layers)
    for token in tokens:
        cache = step(cache, token, -token)
    shared = jnp.broadcast_to(prompt[:, None, :prompt_len], (2, num_trials, prompt_len, 2, 4))
    return cache, jnp.concatenate([shared, jnp.moveaxis(tokens, 0, 2)], axis=2)


@pytest.mark.parametrize(
    ("prompt_len", "gen_len", "page_len", "num_trials"),
    [(1, 7, 4, 3), (4, 7, 4, 3), (7, 2, 4, 3), (8, 6, 4, 3), (9, 7, 4, 3), (9, 7, 3, 1), (5, 7, 1, 2), (2, 3, 16, 2)],
)
def test_cache_holds_prompt_then_tokens(prompt_len, gen_len, page_len, num_trials):
    cache, wanted = fill(prompt_len, gen_len, page_len=page_len, num_trials=num_trials)
    total = prompt_len + gen_len
    assert cache.lengths.tolist() == [total] * num_trials
    for layer in range(2):
        np.testing.assert_array_equal(held(cache, layer)[:, :, :total], wanted[layer].swapaxes(1, 2))
        # Means: every page that holds a token, exact to rounding.
        for m in range(-(-total // page_len)):
            means = wanted[layer][:, m * page_len : (m + 1) * page_len].mean(axis=1)
            np.testing.assert_allclose(cache.key_means[layer][cache.page_table[:, m]], means, atol=3e-7)
    gen_values = gather_pages(cache.value_pages[0], cache.page_table)[:, :, prompt_len:total]
    np.testing.assert_array_equal(gen_values, -wanted[0].swapaxes(1, 2)[:, :, prompt_len:])


def test_full_prompt_pages_are_stored_once():
    cache, _ = fill(9, 0, num_trials=5)
    assert cache.page_table[:, :2].tolist() == [[0, 1]] * 5
    assert len(set(cache.page_table[:, 2].tolist())) == 5  # the partial tail: a copy each
    # 2 shared pages, and ceil((7 + 3) / 4) = 3 for each trial.
    assert cache.key_pages.shape == (2, 2 + 5 * 3, 2, 4, 4)


def test_page_means_do_not_depend_on_the_route():
    """A page written by the prompt and the same page built by appends agree bit for bit."""
    written, keys = fill(9, 0, num_trials=1, dtype="bfloat16")
    cache = init_shared_cache(MODEL, num_trials=1, max_prompt_len=9, max_gen_len=9, page_len=4, dtype="bfloat16")
    cache = write_prompt(cache, keys[:, 0, :1], keys[:, 0, :1], 1)
    step = jax.jit(append_all_layers)
    for t in range(1, 9):
        cache = step(cache, keys[:, :, t], keys[:, :, t])
    for m in range(3):
        np.testing.assert_array_equal(
            cache.key_means[:, cache.page_table[0, m]], written.key_means[:, written.page_table[0, m]]
        )


def test_prompt_length_is_traced_and_compiles_once():
    cache = init_shared_cache(MODEL, num_trials=2, max_prompt_len=9, max_gen_len=7, page_len=4)
    prompt = jnp.ones((2, 9, 2, 4))
    traces = []

    @jax.jit
    def write(cache, keys, values, prompt_len):
        traces.append(prompt_len)
        return write_prompt(cache, keys, values, prompt_len)

    lengths = [write(cache, prompt, prompt, jnp.int32(length)).lengths.tolist() for length in range(1, 10)]
    assert lengths == [[length] * 2 for length in range(1, 10)]
    assert len(traces) == 1


def test_a_full_sequence_overwrites_nothing():
    cache, wanted = fill(9, 7)
    token = jnp.full((3, 2, 4), 99.0)
    for _ in range(9):  # far beyond every page
        cache = advance(append(cache, 0, token, token))
    np.testing.assert_array_equal(held(cache, 0)[:, :, :16], wanted[0].swapaxes(1, 2))
    np.testing.assert_array_equal(held(cache, 1)[:, :, :16], wanted[1].swapaxes(1, 2))


def test_only_active_sequences_advance():
    cache, _ = fill(5, 2)
    assert advance(cache, jnp.array([True, False, True])).lengths.tolist() == [8, 7, 8]


def test_layer_may_be_traced():
    cache, _ = fill(5, 0)
    token = jnp.ones((3, 2, 4))
    by_int = append(append(cache, 0, token, token), 1, token, token)
    by_scan, _ = jax.lax.scan(lambda cache, layer: (append(cache, layer, token, token), None), cache, jnp.arange(2))
    jax.tree.map(np.testing.assert_array_equal, by_scan, by_int)


def test_cache_is_a_named_pytree():
    shapes = jax.eval_shape(lambda: init_shared_cache(MODEL, num_trials=2, max_prompt_len=9, max_gen_len=7, page_len=4))
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(shapes)]
    assert names == [".key_pages", ".value_pages", ".key_means", ".page_table", ".lengths"]
    assert shapes.num_shared_pages == 2
    assert shapes.page_len == 4


def test_bad_input():
    with pytest.raises(ValueError, match="max_gen_len must be at least 1; got 0"):
        init_shared_cache(MODEL, num_trials=2, max_prompt_len=9, max_gen_len=0)
    cache = init_shared_cache(MODEL, num_trials=2, max_prompt_len=9, max_gen_len=7, page_len=4)
    prompt = jnp.ones((2, 12, 2, 4))
    with pytest.raises(ValueError, match="Build the cache with max_prompt_len=12"):
        write_prompt(cache, prompt, prompt, 12)
