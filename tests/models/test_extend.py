"""`Decoder.extend`: however a text is cut into chunks, whatever was taken back, the result is that of the whole text.

Nobody has written the pools before: what they hold is NaN.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinetics_jax.attention import PagedCache, advance, init_cache
from kinetics_jax.models import Decoder
from kinetics_jax.specs import Dense
from kinetics_jax.zoo import load_zoo_model

PAGE_LEN, MAX_LEN, CHUNK_LEN, NUM_SEQUENCES = 4, 28, 6, 2
TABLE = np.array([[3, 7, 1, 12, 5, 9, 0], [2, 13, 8, 4, 10, 6, 11]], np.int32)
TEXTS = np.random.default_rng(0).integers(16, 64, (NUM_SEQUENCES, MAX_LEN)).astype(np.int32)


@pytest.fixture(scope="module")
def model() -> Decoder:
    return load_zoo_model("Kinetics-Mini-0.1M").model


@pytest.fixture(scope="module")
def whole(model: Decoder) -> np.ndarray:
    """Logits of every position, all at once."""
    return np.asarray(jax.jit(model)(jnp.asarray(TEXTS)))


def empty(model: Decoder) -> PagedCache:
    cache = init_cache(model.spec, num_sequences=NUM_SEQUENCES, num_pages=14, max_len=MAX_LEN, page_len=PAGE_LEN)
    rubbish = jax.tree.map(
        lambda pool: jnp.full_like(pool, jnp.nan), (cache.key_pages, cache.value_pages, cache.key_means)
    )
    leaves = (*rubbish, jnp.asarray(TABLE), cache.lengths)
    return jax.tree.unflatten(jax.tree.structure(cache), leaves)


@jax.jit
def extend(model: Decoder, cache: PagedCache, chunk: jax.Array, num_new: jax.Array) -> tuple[jax.Array, PagedCache]:
    hidden, cache = model.extend(chunk, cache, num_new)
    return model.next_logits(hidden), cache


@jax.jit
def decode(model: Decoder, cache: PagedCache, tokens: jax.Array, active: jax.Array) -> tuple[jax.Array, PagedCache]:
    return model.decode_step(tokens, cache, Dense(), active=active)


def held_means(cache: PagedCache) -> tuple[np.ndarray, np.ndarray]:
    """Return the means of the pages that hold tokens, as kept and as the keys say."""
    kept, wanted = [], []
    for row, length in enumerate(cache.lengths.tolist()):
        for page in range(-(-length // PAGE_LEN)):
            num_held = min(PAGE_LEN, length - page * PAGE_LEN)
            kept.append(cache.key_means[:, TABLE[row, page]])
            wanted.append(cache.key_pages[:, TABLE[row, page], :, :num_held].mean(axis=2))
    return np.asarray(kept), np.asarray(wanted)


Step = tuple[list[int], bool]


@settings(max_examples=25)
@given(
    steps=st.lists(st.tuples(st.lists(st.integers(0, CHUNK_LEN), min_size=2, max_size=2), st.booleans()), max_size=12)
)
def test_chunks_and_single_tokens_with_steps_back_equal_the_whole_text(
    model: Decoder, whole: np.ndarray, steps: list[Step]
):
    cache = empty(model)
    for sizes, back in steps:
        lengths = cache.lengths
        num_new = np.minimum(sizes, MAX_LEN - np.asarray(lengths)).astype(np.int32)
        place = np.minimum(np.asarray(lengths)[:, None] + np.arange(CHUNK_LEN), MAX_LEN - 1)
        chunk = jnp.asarray(np.take_along_axis(TEXTS, place, axis=1))
        logits, cache = extend(model, cache, chunk, jnp.asarray(num_new))
        for row in range(NUM_SEQUENCES):
            wanted = whole[row, int(lengths[row]) : int(lengths[row]) + num_new[row]]
            np.testing.assert_allclose(logits[row, : num_new[row]], wanted, atol=2e-4)
        np.testing.assert_array_equal(cache.lengths, lengths + num_new)
        if back and num_new.any():  # what a rejected draft leaves behind is never seen again
            taken = jnp.asarray(-(num_new // 2))
            cache = advance(cache, taken)
            place = np.asarray(cache.lengths)
            active = jnp.asarray(place < MAX_LEN)
            tokens = jnp.asarray(TEXTS[np.arange(NUM_SEQUENCES), np.minimum(place, MAX_LEN - 1)])
            logits, cache = decode(model, cache, tokens, active)
            for row in np.flatnonzero(active):
                np.testing.assert_allclose(logits[row], whole[row, place[row]], atol=2e-4)
        np.testing.assert_allclose(*held_means(cache), atol=1e-5)


def test_the_first_chunk_needs_no_page(model: Decoder):
    chunk, num_new = jnp.asarray(TEXTS[:, :CHUNK_LEN]), jnp.array([6, 3])
    hidden, cache = jax.jit(model.extend)(chunk, empty(model), num_new)
    first, first_cache = jax.jit(lambda *given: model.extend(*given, is_first=True))(chunk, empty(model), num_new)
    np.testing.assert_allclose(first[0], hidden[0], atol=2e-5)
    np.testing.assert_allclose(first[1, :3], hidden[1, :3], atol=2e-5)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=2e-5), first_cache, cache)


def test_pages_that_a_sequence_lacks_are_not_written(model: Decoder):
    cache = jax.tree.map(jnp.nan_to_num, empty(model))  # what lies in pages that it lacks is read as well
    short = jnp.asarray(np.where(np.arange(7) < 1, TABLE, -1))
    cache = jax.tree.unflatten(jax.tree.structure(cache), [*jax.tree.leaves(cache)[:3], short, cache.lengths])
    _, written = extend(model, cache, jnp.asarray(TEXTS[:, :CHUNK_LEN]), jnp.array([6, 0]))
    own = np.arange(14) == TABLE[0, 0]
    np.testing.assert_array_equal(written.key_pages[:, ~own], cache.key_pages[:, ~own])
    assert (np.asarray(written.key_pages)[:, own] != np.asarray(cache.key_pages)[:, own]).all()


@pytest.mark.parametrize("is_first", [True, False])
def test_donated_pools_are_written_in_place(model: Decoder, is_first: bool):
    """A pool takes most of a device's memory: one copy of its keys would not fit."""
    cache = jax.eval_shape(lambda: init_cache(model.spec, num_sequences=1, num_pages=5_000, max_len=8, page_len=4))
    shapes = jax.ShapeDtypeStruct((1, 4), jnp.int32), cache, jax.ShapeDtypeStruct((1,), jnp.int32)
    program = jax.jit(lambda *given: model.extend(*given, is_first=is_first), donate_argnums=1)
    memory = program.lower(*shapes).compile().memory_analysis()
    assert memory is not None
    pool_bytes = cache.key_pages.size * cache.key_pages.dtype.itemsize
    assert memory.alias_size_in_bytes > 2 * pool_bytes
    assert memory.temp_size_in_bytes < pool_bytes / 10
