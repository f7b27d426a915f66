"""The cache: where a shared prompt and the tokens after it end up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kinetics_jax.attention import (
    PagedCache,
    Rotation,
    advance,
    init_shared_cache,
    rotate_and_append,
    write_prompt,
)
from kinetics_jax.specs import ModelSpec
from tests.attention.appending import append

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


def held(pool: jax.Array, cache: PagedCache) -> np.ndarray:
    """The entries of a pool in order of position, [L, B, S, K, H]."""
    pages = np.asarray(pool)[:, np.asarray(cache.page_table)].swapaxes(3, 4)
    return pages.reshape(*pages.shape[:2], -1, *pages.shape[4:])


@jax.jit
def append_token(cache: PagedCache, keys: jax.Array, values: jax.Array) -> PagedCache:
    for layer in range(2):
        cache = append(cache, layer, keys[layer], values[layer])
    return advance(cache)


def fill(prompt_len: int, gen_len: int, *, page_len: int = 4, num_trials: int = 3) -> tuple[PagedCache, np.ndarray]:
    """Write a prompt and append tokens; return the cache and the keys [L, B, T, K, H] it should hold."""
    rng = np.random.default_rng(prompt_len)
    cache = init_shared_cache(MODEL, num_trials=num_trials, max_prompt_len=9, max_gen_len=7, page_len=page_len)
    prompt = rng.normal(size=(2, 9, 2, 4)).astype("float32")
    tokens = rng.normal(size=(gen_len, 2, num_trials, 2, 4)).astype("float32")
    poisoned = jnp.asarray(np.where((np.arange(9) < prompt_len)[:, None, None], prompt, np.nan))
    cache = jax.jit(write_prompt)(cache, poisoned, poisoned, prompt_len)
    for token in tokens:
        cache = append_token(cache, jnp.asarray(token), jnp.asarray(-token))
    shared = np.broadcast_to(prompt[:, None, :prompt_len], (2, num_trials, prompt_len, 2, 4))
    return cache, np.concatenate([shared, np.moveaxis(tokens, 0, 2)], axis=2)


@pytest.mark.parametrize(
    ("prompt_len", "gen_len", "page_len", "num_trials"),
    # Page edges at one static shape, then a page of one token and a page longer than everything.
    [(1, 7, 4, 3), (4, 7, 4, 3), (7, 2, 4, 3), (8, 6, 4, 3), (9, 7, 4, 3), (5, 7, 1, 1), (2, 3, 16, 1)],
)
def test_cache_holds_prompt_then_tokens(prompt_len, gen_len, page_len, num_trials):
    cache, wanted = fill(prompt_len, gen_len, page_len=page_len, num_trials=num_trials)
    total = prompt_len + gen_len
    assert cache.lengths.tolist() == [total] * num_trials
    np.testing.assert_array_equal(held(cache.key_pages, cache)[:, :, :total], wanted)
    np.testing.assert_array_equal(held(cache.value_pages, cache)[:, :, prompt_len:total], -wanted[:, :, prompt_len:])
    # Means: every page that holds a token, exact to rounding.
    key_means, table = np.asarray(cache.key_means), np.asarray(cache.page_table)
    for m in range(-(-total // page_len)):
        means = wanted[:, :, m * page_len : (m + 1) * page_len].mean(axis=2)
        np.testing.assert_allclose(key_means[:, table[:, m]], means, atol=3e-7)


def test_full_prompt_pages_are_stored_once():
    cache, _ = fill(9, 0, num_trials=5)
    assert cache.page_table[:, :2].tolist() == [[0, 1]] * 5
    assert len(set(cache.page_table[:, 2].tolist())) == 5  # the partial tail: a copy each
    # 2 shared pages, and ceil((7 + 3) / 4) = 3 for each trial.
    assert cache.key_pages.shape == (2, 2 + 5 * 3, 2, 4, 4)


def test_page_means_do_not_depend_on_the_route():
    """A page written by the prompt and the same page built by appends agree bit for bit."""
    keys = jnp.asarray(np.random.default_rng(0).normal(size=(2, 9, 1, 2, 4)), "bfloat16")
    empty = init_shared_cache(MODEL, num_trials=1, max_prompt_len=9, max_gen_len=9, page_len=4, dtype="bfloat16")
    write = jax.jit(write_prompt)
    written = write(empty, keys[:, :, 0], keys[:, :, 0], 9)
    built = write(empty, keys[:, :, 0], keys[:, :, 0], 1)
    for t in range(1, 9):
        built = append_token(built, keys[:, t], keys[:, t])
    means = [np.asarray(cache.key_means)[:, np.asarray(cache.page_table)[0, :3]] for cache in (written, built)]
    np.testing.assert_array_equal(means[0], means[1])


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
        cache = append_token(cache, jnp.stack([token, token]), jnp.stack([token, token]))
    np.testing.assert_array_equal(held(cache.key_pages, cache)[:, :, :16], wanted)


def test_only_active_sequences_advance():
    cache, _ = fill(5, 2)
    assert advance(cache, jnp.array([1, 0, 1])).lengths.tolist() == [8, 7, 8]


def test_layer_may_be_traced():
    cache, _ = fill(5, 0)
    token = jnp.ones((3, 2, 4))
    by_int = jax.jit(lambda cache: append(append(cache, 0, token, token), 1, token, token))(cache)
    by_scan, _ = jax.lax.scan(lambda cache, layer: (append(cache, layer, token, token), None), cache, jnp.arange(2))
    jax.tree.map(np.testing.assert_array_equal, by_scan, by_int)


def test_cache_is_a_named_pytree():
    shapes = jax.eval_shape(lambda: init_shared_cache(MODEL, num_trials=2, max_prompt_len=9, max_gen_len=7, page_len=4))
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(shapes)]
    assert names == [".key_pages", ".value_pages", ".key_means", ".page_table", ".lengths"]
    assert shapes.num_shared_pages == 2
    assert shapes.page_len == 4


def test_a_rotation_of_other_tokens_is_refused():
    cache, _ = fill(5, 0)
    token, angles = jnp.ones((3, 2, 4)), jnp.ones((3, 2, 2))
    with pytest.raises(ValueError, match="one token to each of 3 sequences; got a rotation of 2 tokens of 3"):
        rotate_and_append(cache, 0, token, token, token, Rotation(cos=angles, sin=angles))


def test_a_rotation_is_a_pytree():
    """It goes through `jit` whole, with epsilon static: what is appended is what `turned` gives."""
    cache, _ = fill(5, 0)
    token, angles, norm = jnp.arange(24.0).reshape(3, 2, 4), jnp.ones((3, 1, 2)), jnp.arange(4.0)
    rotation = Rotation(cos=angles, sin=angles / 2, norms=(norm, norm), epsilon=0.5)
    queries, after = jax.jit(rotate_and_append, static_argnums=1)(cache, 0, token, token, token, rotation)
    wanted, keys = jax.jit(Rotation.turned)(rotation, token[:, None], token[:, None])
    np.testing.assert_allclose(queries, wanted[:, 0], rtol=1e-6)
    np.testing.assert_allclose(after.key_pages, append(cache, 0, keys[:, 0], token).key_pages, rtol=1e-6)


def test_bad_input():
    with pytest.raises(ValueError, match="max_gen_len must be at least 1; got 0"):
        init_shared_cache(MODEL, num_trials=2, max_prompt_len=9, max_gen_len=0)
    cache = init_shared_cache(MODEL, num_trials=2, max_prompt_len=9, max_gen_len=7, page_len=4)
    prompt = jnp.ones((2, 12, 2, 4))
    with pytest.raises(ValueError, match="Build the cache with max_prompt_len=12"):
        write_prompt(cache, prompt, prompt, 12)
